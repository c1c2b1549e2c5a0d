"""Where numbers go: ``metrics.jsonl`` always, Weights & Biases when it can be had.

W&B must never cost a run anything. Its calls are made in a thread that is waited for a few seconds
and no longer; a server that is away or slow turns an online run into an offline one, and whatever
else goes wrong turns W&B off with one warning.
"""

import importlib.util
import json
import logging
import math
import netrc
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlparse

from configs.schema import TrackingConfig

logger = logging.getLogger(__name__)

FINISH_TIMEOUT = 30.0  # seconds the end of a run may wait for an upload


class Tracker:
    """Writes one line of metrics a call to ``metrics.jsonl`` and the same to W&B.

    Parameters
    ----------
    folder
        The run's folder; W&B's own files go to ``wandb/`` in it.
    config
        How to use W&B.
    run_name, run_config
        Shown in W&B.
    first_step
        Lines of a metrics file left by an interrupted run are kept up to this step; what was
        logged after its last checkpoint is done again.
    """

    abandoned: ClassVar[bool] = False  # a W&B thread or server may still be waiting for something

    def __init__(
        self,
        folder: Path,
        config: TrackingConfig,
        *,
        run_name: str,
        run_config: dict,
        first_step: int = 0,
    ) -> None:
        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= first_step]
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._file = path.open("a", encoding="utf-8")
        self._folder = folder
        self.run: Any = None  # a wandb run, or None
        self._start(config, run_name, run_config)

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        """Write one line; ``step`` is the number of optimiser updates done."""
        line = {"step": step, **{name: _finite(value) for name, value in metrics.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self.send(lambda run: run.log(metrics, step=step))

    def send(self, call: Callable[[Any], object], *, timeout: float = 5.0) -> None:
        """Make ``call(run)`` if there is a W&B run; a failure ends W&B, not the training."""
        if self.run is not None:
            run = self.run
            _, error = _bounded(lambda: call(run), timeout)
            if error is not None:
                self._give_up(f"a call failed ({error})")

    def finish(self, *, timeout: float = FINISH_TIMEOUT) -> None:
        """Close the file and end the W&B run, waiting for uploads at most ``timeout`` seconds."""
        self._file.close()
        if self.run is not None:
            _, error = _bounded(self.run.finish, timeout)
            if error is not None:
                self._give_up(f"it did not finish ({error}); later: wandb sync <its folder>")
            self.run = None

    def _start(self, config: TrackingConfig, run_name: str, run_config: dict) -> None:
        mode = wandb_mode(config.wandb)
        if mode == "disabled":
            return
        if importlib.util.find_spec("wandb") is None:
            logger.warning("wandb is not installed: numbers go to metrics.jsonl alone")
            return

        def start(mode: str) -> Any:
            import wandb  # half a second, and only where it is wanted

            settings = wandb.Settings(
                mode=mode,
                init_timeout=config.init_timeout,
                login_timeout=config.init_timeout,
                console="off",  # the progress bar is not a log
                silent=True,
            )
            return wandb.init(
                project=config.project,
                name=run_name,
                group=config.group,
                tags=config.tags,
                config=run_config,
                dir=str(self._folder),
                settings=settings,
            )

        for attempt in dict.fromkeys((mode, "offline")):
            self.run, error = _bounded(lambda m=attempt: start(m), config.init_timeout + 3)
            if error is None:
                where = self.run.url if attempt == "online" else "offline, look with: wandb leet"
                logger.info("W&B: %s", where)
                return
            self._give_up(f"it could not start {attempt} ({_first_line(error)})")

    def _give_up(self, reason: str) -> None:
        logger.warning("W&B: %s; training goes on, metrics.jsonl has every number", reason)
        self.run = None
        Tracker.abandoned = True


def wandb_mode(choice: str) -> str:
    """Turn a config's choice into online, offline or disabled.

    ``auto`` follows the variable WANDB_MODE where it is set; otherwise it is online when there is
    a key, in WANDB_API_KEY or in the netrc file, and offline when there is none.
    """
    if choice != "auto":
        return choice
    chosen = os.environ.get("WANDB_MODE", "")
    if chosen in ("online", "offline", "disabled"):
        return chosen
    return "online" if _has_key() else "offline"


def read_metrics(path: Path) -> list[dict]:
    """Read a ``metrics.jsonl``; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    candidates = [os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in (Path(c) for c in candidates if c):
        try:
            if netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _bounded(call: Callable[[], Any], timeout: float) -> tuple[Any, Exception | None]:
    """Run ``call`` in a thread; return (result, error), an error too if it takes too long."""
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((call(), None))
        except Exception as error:  # noqa: BLE001 - whatever W&B raises, the run goes on
            answer.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return None, TimeoutError(f"no answer in {timeout:.0f} s")


def leave(status: int) -> NoReturn:
    """End the process; at once if W&B was given up on, for its exit hook waits for the server."""
    if Tracker.abandoned:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _finite(value: float) -> float | None:
    """NaN is not JSON: write null."""
    return value if isinstance(value, int) or math.isfinite(value) else None
