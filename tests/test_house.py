"""Who may know whom: imports and names only, nothing is run but one import.

A family (a tokenizer, a network, a baseline, an objective) is named in its own file and in the
union that lists it. Packages know each other one way only.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("configs", "dataset", "models", "training", "evaluation")
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        ROOT / "02_train_model.py",
        *(f for p in PACKAGES for f in (ROOT / p).rglob("*.py")),
    ]
)
# Formulas of arrays, which import nothing of the project: a baseline is chosen by them.
FORMULAS = {
    "evaluation/__init__.py", "evaluation/calibration.py", "evaluation/classification.py",
    "evaluation/plot_text.py", "evaluation/run_plots.py",
}  # fmt: skip
# A room may use those before it, and itself.
ROOMS = (
    "configs", "evaluation formulas", "dataset, shared", "dataset/reading", "dataset/store",
    "dataset/previous", "dataset/batches.py", "dataset/tokenizers", "dataset", "models",
    "training", "evaluation", "02_train_model.py",
)  # fmt: skip
# Leaves of dataset/: they know nothing of the rooms, and every room may use them.
SHARED = {
    f"dataset/{name}.py"
    for name in (
        "clean_names", "compiled", "cut_list", "encode_error", "log_expression", "nearest_names",
        "provenance", "vocabulary", "workers",
    )
}  # fmt: skip
UNIONS = {
    "dataset/tokenizers": "dataset/__init__.py",
    "models": "models/__init__.py",
    "models/baselines": "models/__init__.py",
    "models/comparators": "models/__init__.py",
    "models/objectives": "models/objectives/__init__.py",
}


TREES = {file: ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in FILES}


def imports_of(file: str) -> set[str]:
    """Return the files of the project that a file imports, wherever in it that is written."""
    found = set()
    for node in ast.walk(TREES[file]):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            path = name.replace(".", "/")
            found |= {f for f in (f"{path}.py", f"{path}/__init__.py") if f in FILES}
    return found


IMPORTS = {file: imports_of(file) for file in FILES}


def room_of(file: str) -> int:
    if file in FORMULAS:
        return ROOMS.index("evaluation formulas")
    if file in SHARED:
        return ROOMS.index("dataset, shared")
    inside = [room for room in ROOMS if file == room or file.startswith(f"{room}/")]
    return ROOMS.index(max(inside, key=len))


def kinds() -> dict[str, tuple[str, str]]:
    """Return, by its own file, the kind and the config class of every family."""
    found = {}
    for file in FILES:
        for node in TREES[file].body:
            if not isinstance(node, ast.ClassDef):
                continue
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == "kind":
                    literal = re.fullmatch(r"Literal\['(\w+)'\]", ast.unparse(field.annotation))
                    if literal:
                        found[file] = literal[1], node.name
    return found


KINDS = kinds()


def test_the_families_are_found():
    assert {"rank", "rank_transformer", "classify", "knn"} <= {kind for kind, _ in KINDS.values()}
    assert {Path(file).parent.as_posix() for file in KINDS} == set(UNIONS)


@pytest.mark.parametrize("file", KINDS)
def test_a_family_is_named_in_its_own_file_and_its_union_only(file):
    kind, config = KINDS[file]
    union = UNIONS[Path(file).parent.as_posix()]
    importing = {other for other in FILES if file in IMPORTS[other]}
    own = {
        f for f in KINDS if Path(f).parent == Path(file).parent
    }  # a family may build on another
    assert importing - own == {union}
    for other in sorted({*FILES} - {file, union}):
        tree = TREES[other]
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert kind not in texts, f"{other} asks for the kind {kind!r}"
        assert other in own or config not in names, f"{other} knows {config}"


@pytest.mark.parametrize("file", FILES)
def test_rooms_know_each_other_one_way(file):
    known = {other for other in IMPORTS[file] if room_of(other) > room_of(file)}
    assert not known, f"{file} ({ROOMS[room_of(file)]}) uses a later room"


def test_no_circles():
    done, path = set(), []

    def visit(file):
        assert file not in path, " -> ".join([*path, file])
        if file not in done:
            path.append(file)
            for other in sorted(IMPORTS[file]):
                visit(other)
            done.add(path.pop())

    for file in FILES:
        visit(file)


def test_no_file_is_too_long_to_read():
    long = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: n for file, n in long.items() if n > 400} == {}


def test_what_to_read_is_as_long_as_the_readme_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## What to read")[1].split("## ")[0]
    files = re.findall(r"^\d\. `([^`]+)`", section, flags=re.MULTILINE)
    n_files, said = re.search(r"in (\w+) files of ([\d,]+) lines", section).groups()
    assert (len(files), n_files) == (7, "seven")
    n_lines = sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files)
    assert int(said.replace(",", "")) - 50 < n_lines <= int(said.replace(",", ""))


def test_training_needs_neither_scanpy_nor_anndata():
    # A machine with a GPU and without them trains from an encoded folder.
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('train', '02_train_model.py')\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print(sorted({'anndata', 'h5py', 'matplotlib', 'scanpy', 'zarr'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_cells_are_read_without_torch():
    code = (
        "import sys, dataset.encode, dataset.store.encoded_folder\nprint('torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"
