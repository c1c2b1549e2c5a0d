"""The requirements: all that our code imports, bounded at both ends, and nothing else."""

import ast
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PIPELINE = ("configs", "dataset", "evaluation", "models", "training", "tests/notebooks")
# Needed without being imported: the notebooks' kernel and runner, and what scanpy leaves open.
NOT_IMPORTED = {"jupyter", "papermill", "pynndescent", "scikit-image"}
FILES = ["requirements.txt", "tests/requirements.txt"]
OPTIONAL = ["benchmarks/requirements.txt", "tests/originals.txt"]
FILES += ["dataset/requirements.txt", *OPTIONAL]
COMPARATORS = "models/comparators/requirements.txt"  # of an environment of their own
FILES += [COMPARATORS]


def requirements(path):
    lines = [line.split(" #")[0].strip() for line in (ROOT / path).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


def imported(folders, *files):
    """Names of the modules that the code imports at the top or inside a function."""
    names = set()
    for path in [*(p for f in folders for p in (ROOT / f).glob("**/*.py")), *files]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    ours = {path.stem for path in ROOT.iterdir()}
    return names - set(sys.stdlib_module_names) - ours


def distributions(path):
    return {canonicalize_name(r.name) for r in requirements(path)}


def test_what_is_imported_is_required_and_nothing_else():
    provided_by = packages_distributions()
    modules = imported(PIPELINE, ROOT / "02_train_model.py")
    needed = {canonicalize_name(provided_by[module][0]) for module in modules}
    optional = distributions("dataset/requirements.txt")
    assert needed - optional == distributions("requirements.txt") - NOT_IMPORTED
    assert not NOT_IMPORTED & needed


@pytest.mark.parametrize("path", FILES)
def test_every_requirement_is_bounded_at_both_ends(path):
    for requirement in requirements(path):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({">=", "<"}, {"=="}), str(requirement)


@pytest.mark.parametrize("path", FILES)
def test_what_is_installed_is_within_the_bounds(path):
    if path == COMPARATORS:
        pytest.importorskip("celltypist", reason="make comparators installs them")
    for requirement in requirements(path):
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            assert path in OPTIONAL, f"{requirement} is not installed"
            continue
        assert found in requirement.specifier, f"{requirement.name} {found}"
