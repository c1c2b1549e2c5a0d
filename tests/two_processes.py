"""Runs 02_train_model.py once per line of standard input, as one of two processes.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 python tests/two_processes.py < lines

A line is ``<port> <epoch to be stopped in, or -1> <arguments of the script>``. One start serves
many runs, for importing takes longer than they do; each has a port of its own, for on a port used
before one process may meet the other's last run.
"""

import importlib.util
import os
import sys
from pathlib import Path

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


if __name__ == "__main__":
    script = load_script()
    for line in sys.stdin:
        os.environ["MASTER_PORT"], epoch, *arguments = line.split()
        if run_until(script, int(epoch), arguments) not in (0, 130):
            sys.exit(1)
    sys.stderr.flush()
    os._exit(0)  # threads of gloo that an interrupted run left can abort an orderly exit
