"""The second Python of CI: the newest that runs, not the newest that is named."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "newest_python"


@pytest.fixture
def newest(tmp_path):
    """Return a function that says which Python is found, the machine's own out of sight."""

    def run():
        environment = {"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv")}
        command = [shutil.which("bash"), str(SCRIPT)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    return run


@pytest.fixture
def python(tmp_path):
    """Return a function that makes a Python of a version, or one that does not run."""

    def make(path, says):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{f'echo {says}' if says else 'exit 127'}\n")
        os.chmod(path, 0o755)
        return str(path)

    return make


def test_none_is_found_where_there_is_none(newest):
    assert newest() == ""


def test_a_shim_that_does_not_run_is_passed_over(newest, python):
    python("bin/python3.13", None)
    older = python("bin/python3.12", "3.12")
    assert newest() == older


def test_the_newest_of_the_path_and_of_pyenv_is_found(newest, python):
    python("bin/python3.13", None)
    python("bin/python3.12", "3.12")
    hidden = python("pyenv/versions/3.13.7/bin/python", "3.13")
    assert newest() == hidden
    first = python("bin/python3.13", "3.13")
    assert newest() == first
