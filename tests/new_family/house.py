"""A copy of the project, into which toys move: a file each, and a line in a union."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.two_processes import ROOT

TOYS = Path(__file__).parent
PACKAGES = ("configs", "dataset", "models", "training", "evaluation", "tests")
FIRST_MEMBER = {
    "dataset/__init__.py": ("[RankConfig |", "[{} | RankConfig |"),
    "models/__init__.py": ("    RankTransformerConfig\n", "    RankTransformerConfig | {}\n"),
    "models/objectives/__init__.py": ("    ClassifyConfig\n", "    {} | ClassifyConfig\n"),
}


def build_house(copy: Path, moves_in: Sequence[tuple[str, str, str, str]]) -> Path:
    """Copy the project and let toys move in.

    ``moves_in`` says of each its name, the folder of its file, the union, and its config there.
    """
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for file in ("02_train_model.py", "pyproject.toml"):
        shutil.copy(ROOT / file, copy / file)
    for toy, folder, union, config in moves_in:
        shutil.copy(TOYS / f"{toy}.py", copy / folder / f"{toy}.py")
        text = (copy / union).read_text()
        line, changed = FIRST_MEMBER[union]
        assert text.count(line) == 1
        module = f"{folder.replace('/', '.')}.{toy}"
        text = text.replace(line, changed.format(config))
        docstring, rest = text.split('"""\n', 1)
        (copy / union).write_text(f'{docstring}"""\nfrom {module} import {config}\n{rest}')
    return copy


def run_python(house: Path, *arguments: str) -> str:
    """Run Python in a house; return what it prints."""
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=house,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout + found.stderr
