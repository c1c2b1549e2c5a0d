"""Checkpoints: safetensors, no pickle.

A checkpoint is one file: tensors by name, and beside them in its header a JSON text with the step,
the sampler's position and the scores so far. One file cannot be half new and half old.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from configs.user_error import UserError
from dataset.store.atomic import write_atomically


class CheckpointError(UserError):
    """A checkpoint is damaged or belongs to another model."""


WEIGHTS = "model.safetensors"  # in the folder of a finished run
ADVICE = "train again under another name, or move that folder away"


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict | None = None) -> None:
    """Write tensors as safetensors, atomically, with ``header`` as JSON in the file's metadata.

    Beside it stands a sha256 of all of this, so that a changed bit is found when it is read.
    """
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(header or {})
    metadata = {"header": text, "sha256": _sha256(contiguous, text)}
    write_atomically(path, lambda partial: save_file(contiguous, partial, metadata=metadata))


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
    """Name every tensor of an optimizer's state ``<prefix><parameter>/<state>``."""
    return {
        f"{prefix}{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()  # frozen: none
    }


def initialize_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the state that AdamW else makes in its first update, to be written over."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # The step count is on the CPU unless the update is fused, then beside the parameter.
            device = parameter.device if group["fused"] else "cpu"
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors under ``prefix``, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights, refusing a file that lacks some, has others or has other shapes."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:300]  # torch lists every tensor on its own line
        raise CheckpointError(f"{path}: weights of another model: {fault}") from None
