"""configs/slurm.sh, with stand-ins for SLURM: what it would start."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "configs" / "slurm.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def started(tmp_path):
    """Run the script where ``srun`` writes down its words instead; return them."""
    for name, line in {
        "scontrol": "printf 'node07\\nnode08\\n'",
        "srun": 'printf "%s\\n" "OMP_NUM_THREADS=$OMP_NUM_THREADS" "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)

    def run(*words: str, **job: str) -> list[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *words],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"} | job,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()

    return run


def test_it_is_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_every_machine_starts_a_process_a_card(started):
    job = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NODELIST": "node[07-08]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32",
    }
    found = started("--config", "a b.yaml", "optim.lr=1e-4", **job)
    assert found == [
        "OMP_NUM_THREADS=8",
        "--kill-on-bad-exit=1",
        "torchrun",
        "--nnodes=2",
        "--nproc_per_node=4",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=node07:24567",
        "--rdzv_id=1234567",
        "02_train_model.py",
        "--config",
        "a b.yaml",
        "optim.lr=1e-4",
    ]


def test_without_gpus_there_is_a_process_a_machine(started):
    job = {"SLURM_JOB_ID": "8", "SLURM_JOB_NODELIST": "node07", "SLURM_JOB_NUM_NODES": "1"}
    found = started("--config", "a.yaml", **job)
    assert found[0] == "OMP_NUM_THREADS=1"
    assert "--nproc_per_node=1" in found
