"""Logging of metrics: ``metrics.jsonl`` always, Weights & Biases when it can be had.

W&B must never cost a run anything. Its calls are made in a thread that is waited for a few seconds
and no longer; a server that is away or slow turns an online run into an offline one, and whatever
else goes wrong turns W&B off with one warning.
"""

import importlib.util
import io
import json
import logging
import math
import netrc
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlparse

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from configs.user_error import UserError
from dataset.store.atomic import write_text, writing
from evaluation.plot_text import plain
from training.checkpoint import ADVICE
from training.config import TrainConfig

logger = logging.getLogger(__name__)

GRACE = 3.0  # seconds the client gets beyond its own timeout
FINISH_TIMEOUT = 30.0  # seconds the end of a run may wait for an upload


class MetricsError(UserError):
    """A ``metrics.jsonl`` holds what this code does not write."""


class Tracker:
    """Writes the metrics of a run, one line a call, to ``metrics.jsonl`` and to W&B.

    Parameters
    ----------
    path
        The ``metrics.jsonl``.
    config
        The run's config, shown in W&B, and in it how to use W&B.
    writes
        False on every process but the first, where all calls do nothing.
    """

    abandoned: ClassVar[bool] = False  # a W&B thread or server may still be waiting for something

    def __init__(self, path: Path, config: TrainConfig, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.run: Any = None  # a wandb run, or None
        self.url: str | None = None  # of its page, where it is online
        if writes:
            self._start(config)

    def forget_after(self, step: int) -> None:
        """Drop what an interrupted run wrote after its last checkpoint, test scores too."""
        if self.writes and self.path.exists():
            kept = [
                line
                for line in read_metrics(self.path)
                if line["step"] <= step and not any(name.startswith("test/") for name in line)
            ]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Write one line; ``step`` is the number of optimizer updates done."""
        if not self.writes:
            return
        line = {"step": step, **{name: _json_number(value) for name, value in metrics.items()}}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._send(lambda run: run.log(metrics, step=step))

    def summarize(self, scores: dict[str, float]) -> None:
        """Let W&B's table of runs hold these scores, and not those of the last epoch."""
        self._send(lambda run: run.summary.update(scores))

    def report(
        self,
        folder: Path,
        split: str,
        class_names: list[str],
        labels: np.ndarray,
        probabilities: np.ndarray,
        embeddings: np.ndarray | None,
    ) -> None:
        """Show the cells of a finished run's split in W&B: confusion, classes, UMAP, the model.

        The UMAP is drawn where the run is online; 03 and 04 draw theirs whatever W&B does.

        What cannot be drawn is left out with a warning.
        """
        if self.run is not None:
            try:
                self._report(folder, split, class_names, labels, probabilities, embeddings)
            except Exception as error:  # noqa: BLE001 - the run is finished, whatever a figure does
                logger.warning("W&B: the %s cells are not shown (%s)", split, _first_line(error))

    def _report(
        self,
        folder: Path,
        split: str,
        class_names: list[str],
        labels: np.ndarray,
        probabilities: np.ndarray,
        embeddings: np.ndarray | None,
    ) -> None:
        import wandb

        from evaluation.run_plots import figures  # draws with matplotlib: only where it is wanted

        predicted = probabilities.argmax(axis=1)
        names = [str(name) for name in class_names]
        scores = precision_recall_fscore_support(
            labels, predicted, labels=range(len(names)), zero_division=0
        )
        rows: list[Iterable] = [
            [name, int(n), float(p), float(r), float(f)]
            for name, p, r, f, n in zip(names, *scores, strict=True)
        ]

        def send(run: Any) -> None:
            table = wandb.Table(columns=["class", "n", "precision", "recall", "f1"], data=rows)
            content = {
                f"{split}/classes": table,
                f"{split}/confusion": wandb.plot.confusion_matrix(
                    y_true=labels.tolist(), preds=predicted.tolist(), class_names=names
                ),
            }
            run.log(content | {f"{split}/{k}": wandb.Image(v) for k, v in images.items()})
            artifact = wandb.Artifact(f"model-{folder.name}", type="model")
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                if path.suffix != ".npz":
                    # Not copied: the run folder stays where it is.
                    name = str(path.relative_to(folder))
                    artifact.add_file(str(path), name, policy="immutable", skip_cache=True)
            run.log_artifact(artifact)

        # Images beside the tables: the offline viewer shows nothing else.
        drawn = figures(labels, probabilities, names)
        images = {name: _image(figure) for name, figure in drawn.items()}
        # Online only, where somebody looks: UMAP compiles itself for half a minute in each process
        if embeddings is not None and self.url is not None:
            umap = umap_image(embeddings, labels, names)
            images |= {} if umap is None else {"umap": umap}
        self._send(send, timeout=10.0)

    def finish(self, timeout: float = FINISH_TIMEOUT) -> None:
        """End the W&B run, waiting for its uploads at most ``timeout`` seconds."""
        if self.run is not None:
            _, error = _bounded(self.run.finish, timeout)
            if error is not None:
                self._give_up(f"it did not finish ({error}); upload later with wandb sync")
            self.run = None

    def _send(self, call: Callable[[Any], object], timeout: float = 5.0) -> None:
        if self.run is not None:
            run = self.run
            _, error = _bounded(lambda: call(run), timeout)
            if error is not None:
                self._give_up(f"a call failed ({_first_line(error)})")

    def _start(self, config: TrainConfig) -> None:
        tracking = config.tracking
        mode = wandb_mode(tracking.wandb)
        if mode == "disabled":
            return
        if importlib.util.find_spec("wandb") is None:
            logger.warning("wandb is not installed: numbers go to metrics.jsonl alone")
            return

        def start(mode: str) -> Any:
            import wandb  # half a second, and only where it is wanted

            settings = wandb.Settings(
                mode=mode,
                init_timeout=tracking.init_timeout,
                login_timeout=tracking.init_timeout,
                console="off",  # a progress bar is not a log
                silent=True,
            )
            return wandb.init(
                project=tracking.project,
                name=config.name,
                group=tracking.group,
                tags=tracking.tags,
                config=config.model_dump(mode="json"),
                dir=config.runs_dir,  # wandb/ there, beside the runs: theirs are renamed
                settings=settings,
            )

        for attempt in dict.fromkeys((mode, "offline")):
            self.run, error = _bounded(partial(start, attempt), tracking.init_timeout + GRACE)
            if error is None:
                if attempt == "online":
                    self.url = self.run.url
                logger.info("W&B: %s", self.url or Path(self.run.dir).parent)
                return
            self._give_up(f"it could not start {attempt} ({_first_line(error)})")

    def _give_up(self, reason: str) -> None:
        logger.warning("W&B: %s; the run continues, metrics.jsonl has every number", reason)
        self.run = None
        Tracker.abandoned = True


def umap_image(
    embeddings: np.ndarray, labels: np.ndarray, class_names: list[str], max_cells: int = 5000
) -> Any:
    """Draw the UMAP of cell embeddings, colored by cell type; None where it cannot be drawn."""
    import warnings

    from matplotlib.figure import Figure

    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(labels))[:max_cells])
    if len(rows) < 10:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's and umap's own
        from umap import UMAP

        xy = UMAP(n_neighbors=min(15, len(rows) - 1), random_state=0).fit_transform(
            embeddings[rows]
        )
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    for label in np.unique(labels[rows]):
        cells = labels[rows] == label
        x, y = xy[cells].T
        axes.scatter(x, y, s=5, color=f"C{label % 10}", label=plain(class_names[label]))
    figure.legend(loc="outside right upper", markerscale=3, fontsize="small")
    return _image(figure)


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
    """Read a ``metrics.jsonl``; a last line cut short by a kill is left out.

    Raises
    ------
    MetricsError
        If another line is not a step with its metrics.
    """
    if not path.exists():
        return []
    lines: list[dict] = []
    texts = path.read_bytes().splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except ValueError:  # not UTF-8, not JSON
            line = None
        if _is_point(line):
            lines.append(line)
        elif number < len(texts):
            raise MetricsError(
                f"{path}, line {number}: is no step with its metrics: it was changed since it was "
                f"written; {ADVICE}"
            )
    return lines


def _is_point(line: object) -> bool:
    return (
        isinstance(line, dict)
        and type(line.get("step")) is int
        and all(value is None or type(value) in (int, float) for value in line.values())
    )


def _image(figure: Any) -> Any:
    from PIL import Image

    image = io.BytesIO()
    figure.savefig(image, dpi=100)
    return Image.open(image)


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
        except Exception as error:  # noqa: BLE001 - whatever W&B raises, the run continues
            answer.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return None, TimeoutError(f"no answer in {timeout:.0f} s")


def exit_process(status: int) -> NoReturn:
    """End the process; at once if W&B was given up on, for its exit hook waits for the server."""
    if Tracker.abandoned:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _json_number(value: float) -> float | None:
    """NaN and infinity are not JSON: write null."""
    return value if math.isfinite(value) else None
