"""Runs 02_train_model.py once per line of standard input, as one of two processes.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 python tests/two_processes.py < lines

A line is ``<port> <epoch to be stopped in, or -1> <arguments of the script>``. One start serves
many runs, for importing takes longer than they do; each has a port of its own, for on a port used
before one process may meet the other's last run.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def load_script():
    """Import 02_train_model.py, whose name no import statement can say."""
    spec = importlib.util.spec_from_file_location("train_model", ROOT / "02_train_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_model"] = module
    spec.loader.exec_module(module)
    return module


def run_until(script, epoch: int, arguments: list[str]) -> int:
    """Run the script; be interrupted when ``epoch`` begins. Return what it returns."""
    train_epoch = script.train_epoch

    def interrupted(training, *others):
        if training.epoch == epoch:
            raise KeyboardInterrupt
        train_epoch(training, *others)

    script.train_epoch = interrupted
    try:
        return script.main(arguments)
    finally:
        script.train_epoch = train_epoch


def run_alone(script, line: str) -> None:
    """Run the script in this process, on one thread, as each of two does.

    The line is ``<epoch to be stopped in, or -1> <arguments of the script>``.
    """
    epoch, *arguments = line.split()
    n_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # the script leaves it so
        torch.set_num_threads(1)
        assert run_until(script, int(epoch), arguments) in (0, 130)
    torch.set_num_threads(n_threads)


def run_on_two(
    lines: Sequence[str], folder: Path = ROOT, timeout: float = 120, *, world_size: int = 2
) -> None:
    """Hand the lines to processes of this file, in ``folder``, which holds the project."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in lines]
    ports = [free.getsockname()[1] for free in listening]
    for free in listening:
        free.close()
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "tests/two_processes.py"],
            cwd=folder,
            env=os.environ | shared | {"RANK": str(rank)},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    text = "".join(f"{port} {line}\n" for port, line in zip(ports, lines, strict=True))
    for process in processes:
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "".join(errors)


if __name__ == "__main__":
    script = load_script()
    for line in sys.stdin:
        os.environ["MASTER_PORT"], epoch, *arguments = line.split()
        if run_until(script, int(epoch), arguments) not in (0, 130):
            sys.exit(1)
    sys.stderr.flush()
    os._exit(0)  # threads of gloo that an interrupted run left can abort an orderly exit
