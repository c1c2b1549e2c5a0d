import shutil

import pytest

from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.encode_error import EncodeError


def test_two_files_of_the_same_bytes_are_refused(cells_adata, tmp_path):
    for name, part in (("a", slice(0, 60)), ("b", slice(60, 120))):
        cells_adata[part].write_h5ad(tmp_path / f"{name}.h5ad")

    def config(*files):
        return PreprocessConfig(
            name="set",
            input=[str(tmp_path / f"{file}.h5ad") for file in files],
            label_key="cell_type",
            quality_control={"min_genes": 1},
            tokenizer={"kind": "rank", "n_tokens": 24},
            data_dir=str(tmp_path / "data"),
        )

    shutil.copy(tmp_path / "a.h5ad", tmp_path / "copy.h5ad")
    with pytest.raises(EncodeError, match=r"a\.h5ad and \S*copy\.h5ad are the same file, byte"):
        encode(config("a", "b", "copy"), progress=False)
    assert not (tmp_path / "data" / "set").exists()
    assert encode(config("a", "b"), progress=False).exists()
