import json
import shutil
import subprocess

import pytest
import torch

from dataset import provenance
from dataset.encode import encode
from training.run_writer import environment


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Make a repository whose code is what ``git_commit`` looks at."""
    if not shutil.which("git"):
        pytest.skip("git is not here")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    code = tmp_path / "code.py"
    code.write_text("1\n")
    person = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "code.py"], [*person, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(code))
    return code


def test_the_commit_is_marked_when_the_code_was_edited(repository):
    commit = provenance.git_commit()
    assert len(commit) == 40
    repository.write_text("2\n")
    assert provenance.git_commit() == f"{commit}-changed"


def test_there_is_none_outside_git(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "code.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_commit() is None


def test_an_encoded_folder_and_a_run_of_edited_code_say_so(
    repository, preprocess_config, tmp_path
):
    commit = provenance.git_commit()
    repository.write_text("2\n")
    config = preprocess_config.model_copy(update={"data_dir": str(tmp_path / "data")})
    meta = json.loads((encode(config, progress=False) / "meta.json").read_text())
    assert meta["git_commit"] == f"{commit}-changed"
    assert environment(torch.device("cpu"))["git_commit"] == f"{commit}-changed"
