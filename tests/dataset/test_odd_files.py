"""Files that are not what anndata writes end in one sentence that says what is wrong with them."""

import h5py
import numpy as np
import pytest

from dataset.reading.cell_file import CellFileError
from dataset.reading.cell_table import CellTable
from dataset.reading.cells import open_cells

DAMAGED = "is damaged"
TEXT = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
MASKED = {"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"}


def attribute(place, name, value):
    def edit(file):
        file[place].attrs[name] = value

    return edit


def no_attribute(place, name):
    def edit(file):
        del file[place].attrs[name]

    return edit


def gone(place):
    def edit(file):
        del file[place]

    return edit


def values(place, content, **attributes):
    """Put other values in a place, which keeps its attributes."""

    def edit(file):
        kept = dict(file[place].attrs) if place in file else {}
        if place in file:
            del file[place]
        array = file.create_dataset(place, data=content)
        array.attrs.update(kept | attributes)

    return edit


def group(place, attributes=(), **members):
    def edit(file):
        if place in file:
            del file[place]
        new = file.create_group(place)
        new.attrs.update(attributes)
        for name, content in members.items():
            new[name] = content

    return edit


def named_type(place):
    def edit(file):
        del file[place]
        file[place] = np.dtype("f4")

    return edit


def link(place, target):
    def edit(file):
        del file[place]
        file[place] = h5py.SoftLink(target)

    return edit


CELLS = [f"cell {i}" for i in range(120)]
COUNTS = np.ones((120, 60))
NO_MATRIX = "no raw counts in auto. Found: X holds something else"
CASES = {
    "no X": (gone("X"), "no matrix of cells by genes: neither X nor raw nor a layer"),
    "X is None": (
        values("X", h5py.Empty("f4"), **{"encoding-type": "null", "encoding-version": "0.1.0"}),
        "no matrix of cells by genes",
    ),
    "X is nothing": (values("X", h5py.Empty("f4")), NO_MATRIX),
    "X is a number": (values("X", 3.0), NO_MATRIX),
    "X is a vector": (values("X", np.ones(120)), NO_MATRIX),
    "X is a cube": (values("X", np.ones((120, 60, 2))), NO_MATRIX),
    "X is text": (values("X", COUNTS.astype("S1")), "expected a matrix of numbers"),
    "X is complex": (values("X", COUNTS.astype(complex)), "not numbers"),
    "X is an empty group": (group("X"), NO_MATRIX),
    "X is COO": (attribute("X", "encoding-type", "coo_matrix"), "found 'coo_matrix'"),
    "X is a type": (named_type("X"), "X is a type"),
    "X leads in a circle": (link("X", "/X"), DAMAGED),
    "no cells": (attribute("X", "shape", [0, 60]), DAMAGED),
    "shape is a word": (attribute("X", "shape", "wide"), DAMAGED),
    "shape of three": (attribute("X", "shape", [120, 60, 2]), DAMAGED),
    "shape is NaN": (attribute("X", "shape", [np.nan, 60.0]), DAMAGED),
    "shape is negative": (attribute("X", "shape", [-1, 60]), DAMAGED),
    "shape is huge": (attribute("X", "shape", [2**40, 60]), DAMAGED),
    "no data": (gone("X/data"), DAMAGED),
    "data are a group": (group("X/data"), DAMAGED),
    "data are text": (values("X/data", np.full(9, b"x")), DAMAGED),
    "indptr is a number": (values("X/indptr", 3), DAMAGED),
    "indptr is text": (values("X/indptr", np.full(121, b"1")), DAMAGED),
    "indices are fractions": (values("X/indices", np.full(9, 0.5)), DAMAGED),
    "raw without var": (group("raw", X=COUNTS), None),
    "layers are an array": (values("layers", np.ones(3)), None),
    "no obs": (gone("obs"), "no 'obs' in the file"),
    "obs is an empty group": (group("obs"), "obs is a dict, expected a table"),
    "obs is a vector": (values("obs", np.arange(120)), "obs is an array, expected a table"),
    "obs without encoding": (no_attribute("obs", "encoding-type"), "obs has the encoding '' 0.2"),
    "obs without order": (no_attribute("obs", "column-order"), DAMAGED),
    "obs without index": (no_attribute("obs", "_index"), DAMAGED),
    "order is a number": (attribute("obs", "column-order", 5), DAMAGED),
    "order is nothing": (attribute("obs", "column-order", h5py.Empty("f4")), "columns: none"),
    "order is bytes": (attribute("obs", "column-order", np.array([b"donor", b"time"])), None),
    "a column is gone": (gone("obs/donor"), DAMAGED),
    "a column leads nowhere": (link("obs/donor", "/gone"), DAMAGED),
    "no codes": (gone("obs/donor/codes"), DAMAGED),
    "codes beyond": (values("obs/donor/codes", np.full(120, 100, "i1")), DAMAGED),
    "codes are short": (values("obs/donor/codes", np.zeros(60, "i1")), DAMAGED),
    "codes in two columns": (
        values("obs/donor/codes", np.zeros((60, 2), "i1")),
        "one value a row",
    ),
    "a column in two": (values("obs/donor", np.zeros((120, 2)), **ARRAY), "one value a row"),
    "a column of pairs": (
        values("obs/donor", np.zeros(120, "i4,f4"), **ARRAY),
        "values of several parts",
    ),
    "a column is a table": (lambda file: file.copy("var", file["obs"], "more"), None),
    "Latin 1": (values("obs/donor", np.full(120, b"\xe9"), **TEXT), "text that is not UTF-8"),
    "UTF-8 called ASCII": (values("obs/donor", np.full(120, "é".encode()), **TEXT), None),
    "names in two columns": (values("obs/names", np.array([[b"a", b"b"]] * 120)), DAMAGED),
    "names are short": (values("obs/names", np.array(CELLS[:60], "S")), "lists 60 cells"),
    "names are one": (values("obs/names", "cell"), DAMAGED),
    "names are numbers": (values("obs/names", np.arange(120), **TEXT), DAMAGED),
    "names are an array of numbers": (
        values("obs/names", np.arange(120), **ARRAY),
        None,
    ),
    "names without a mask": (group("obs/names", MASKED, values=CELLS), DAMAGED),
    "a short mask": (group("obs/names", MASKED, values=CELLS, mask=np.zeros(60, bool)), DAMAGED),
    "numbers under a mask": (
        group("obs/names", MASKED, values=np.arange(120), mask=np.zeros(120, bool)),
        DAMAGED,
    ),
    "no var": (gone("var"), "no 'var' in the file"),
    "var without order": (no_attribute("var", "column-order"), DAMAGED),
    "gene without a name": (
        values("var/names", np.array([b"", *[b"GENE%d" % i for i in range(59)]]), **TEXT),
        "1 of 60 genes have no name",
    ),
    "genes in Latin 1": (values("var/names", np.full(60, b"\xe9"), **TEXT), "not UTF-8"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_odd_file_is_read_or_is_one_sentence(cells_adata, tmp_path, case):
    edit, said = CASES[case]
    path = tmp_path / "cells.h5ad"
    cells_adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for table, n in (("obs", 120), ("var", 60)):  # whichever anndata wrote them
            del file[table][file[table].attrs["_index"]]
            values(f"{table}/names", np.array([b"%d" % i for i in range(n)]), **TEXT)(file)
            file[table].attrs["_index"] = "names"
        edit(file)

    def read():
        cells = open_cells(path)
        assert cells.n_cells == len(cells.names(0, 200)) == 120
        return cells.column("donor"), list(cells.blocks())

    if said is None:
        assert len(read()[0]) == 120
        return
    with pytest.raises(CellFileError) as error:
        read()
    text = str(error.value)
    assert "cells.h5ad: " in text
    assert "\n" not in text
    if said == DAMAGED:
        assert said in text or "damaged or incomplete" in text
    else:
        assert said in text


def test_a_compression_not_known_here_is_not_called_damage(cells_adata, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells_adata.write_h5ad(path, compression="lzf")
    content = path.read_bytes()
    lzf, unknown = (number.to_bytes(2, "little") for number in (32000, 32099))
    path.write_bytes(content.replace(lzf + b"\x08\x00", unknown + b"\x08\x00").replace(
        lzf + b"\x04\x00", unknown + b"\x04\x00"
    ))  # fmt: skip
    assert path.read_bytes() != content
    with pytest.raises(CellFileError, match="a compression or a format that is not known here"):
        open_cells(path)


def test_a_fault_of_ours_is_a_traceback(cells_adata, tmp_path, monkeypatch):
    path = tmp_path / "cells.h5ad"
    cells_adata.write_h5ad(path)
    namespace = {"__name__": "dataset.reading.cell_table"}
    exec("def look(root, path): return root.no_such_thing", namespace)  # as if it stood there
    monkeypatch.setattr(CellTable, "look", namespace["look"])
    with pytest.raises(AttributeError, match="no_such_thing"):
        open_cells(path)
