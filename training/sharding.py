"""Full tensors from shards and back, so that files do not depend on how a run was sharded.

With FSDP every process holds a shard of each weight and of its optimizer state. Files hold full
tensors, and only the first process reads and writes them: a run that was sharded over four GPUs
resumes unsharded on one. Without FSDP the same functions copy and broadcast.
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from training.checkpoint import ADVICE, CheckpointError
from training.distributed import Ranks


def gather_full_state(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Gather tensors from their shards in the first process's main memory; others get none.

    All processes call it, with the same names.
    """
    full_state = {}
    for name, tensor in tensors.items():
        full = tensor.detach()
        if isinstance(full, DTensor):
            full = full.full_tensor()
        if ranks.is_first:
            full_state[name] = full.to("cpu", copy=True)
    return full_state


@torch.no_grad()
def load_full_state(
    full_state: dict[str, Tensor], targets: dict[str, Tensor], ranks: Ranks
) -> None:
    """Load the first process's full tensors into every process's shards.

    Parameters
    ----------
    full_state
        By name; only read on the first process.
    targets
        What is written to, the same names on all processes.
    ranks
        All of them call it.

    Raises
    ------
    CheckpointError
        If there are other names or shapes.
    """
    if ranks.is_first:
        found, expected = (
            {k: tuple(t.shape) for k, t in x.items()} for x in (full_state, targets)
        )
        if found != expected:
            differing = sorted(name for name, _ in found.items() ^ expected.items())
            raise CheckpointError(
                f"weights of another model: {differing[0]!r} is {found.get(differing[0])} and "
                f"should be {expected.get(differing[0])}; {ADVICE}"
            )
    for name, target in targets.items():
        if isinstance(target, DTensor):
            full = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            if ranks.is_first:
                full.copy_(full_state[name])
            target.copy_(distribute_tensor(full, target.device_mesh, target.placements))
        else:
            if ranks.is_first:
                target.copy_(full_state[name])
            if ranks.world_size > 1:
                on_device = target.to(ranks.device)  # AdamW may count its steps on the CPU
                dist.broadcast(on_device, 0)
                target.copy_(on_device)


def broadcast(value: Any, ranks: Ranks) -> Any:
    """Return the first process's value on all of them."""
    if ranks.world_size == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, 0, device=ranks.device)
    return holder[0]
