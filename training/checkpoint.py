"""Files that are whole or not there: atomic writes, checkpoints as safetensors, no pickle.

A checkpoint is one file: tensors by name, and beside them in its header a JSON text with the step,
the sampler's position and the scores so far. One file cannot be half new and half old.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint is damaged or belongs to another model."""


class WriteError(OSError):
    """A file cannot be written; the message names it."""


ADVICE = "choose another name=..., or move that folder away, and run again"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, flush it to disk, then rename it to ``path``.

    At no moment is there a file called ``path`` that is not complete: killed before the rename,
    the old one stays.

    Raises
    ------
    WriteError
        An OSError that names ``path``, on a full disk and otherwise.
    """
    aside = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            write(aside)
            flush_to_disk(aside)
            os.replace(aside, path)
        except BaseException:  # Ctrl-C too
            aside.unlink(missing_ok=True)
            raise
        flush_to_disk(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let what goes wrong in writing name the file: the system's own errors often do not."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        text = " ".join(str(error).split())
        # safetensors gives the number in its text only.
        full = (errno.ENOSPC, errno.EDQUOT)
        if getattr(error, "errno", None) in full or any(f"os error {n})" in text for n in full):
            text = "the disk is full; free space, then run the same again"
        raise WriteError(f"{path}: cannot be written: {text}") from error


def flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict | None = None) -> None:
    """Write tensors as safetensors, atomically, with ``header`` as JSON in the file's metadata.

    Beside it stands a sha256 of all of this, so that a changed bit is found when it is read.
    """
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(header or {})
    metadata = {"header": text, "sha256": _sha256(contiguous, text)}
    write_atomically(path, lambda aside: save_file(contiguous, aside, metadata=metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read what ``save_tensors`` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated or not safetensors, or holds something else than was
        written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); {ADVICE}"
        ) from None
    text = metadata.get("header", "{}")
    if metadata and metadata.get("sha256") != _sha256(tensors, text):
        raise CheckpointError(f"{path}: its content has changed since it was written; {ADVICE}")
    return tensors, json.loads(text)


def _sha256(tensors: dict[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, prefix: str = ""
) -> dict[str, Tensor]:
    """Name every tensor of an optimiser's state ``<prefix><parameter>/<state>``."""
    return {
        f"{prefix}{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def start_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW the state it makes itself in its first update, to be written over."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # The step count is on the CPU unless the update is fused, then beside the parameter.
            device = parameter.device if group["fused"] else "cpu"
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors under ``prefix``, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights, refusing a file that lacks some, has others or has other shapes."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300]  # torch lists every tensor on a line of its own
        raise CheckpointError(f"{path}: weights of another model: {what}") from None
