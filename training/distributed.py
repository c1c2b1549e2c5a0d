"""Processes and devices: one code path for ``python`` and ``torchrun``.

With one process nothing is started and every function below is the identity.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from configs.base import ConfigError
from models.transformer import Block


@dataclass(frozen=True)
class Ranks:
    """Where the present process stands among all of them, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Only the first process writes files and talks to the user."""
        return self.rank == 0


def start_ranks(device: str = "auto") -> Ranks:
    """Join the processes that torchrun started, if it did, and choose the device.

    Parameters
    ----------
    device
        auto, cpu, cuda or mps.

    Raises
    ------
    ConfigError
        If the device is not there.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    chosen = choose_device(device, local_rank)
    if "OMP_NUM_THREADS" not in os.environ:  # the user's own choice, or torchrun's, stands
        torch.set_num_threads(max(1, min(8, available_cores() // n_local)))
    if world_size > 1:
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
            dist.init_process_group("nccl", device_id=chosen)
        else:
            dist.init_process_group("gloo")
    return Ranks(rank, world_size, chosen)


def stop_ranks() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier(ranks: Ranks) -> None:
    """Wait until all processes have come here."""
    if ranks.world_size > 1:
        dist.barrier()


def available_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn a config's ``device`` into a torch device; ``auto`` takes the fastest one present."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"device: cuda {local_rank} was asked for, found {torch.cuda.device_count()} CUDA "
                "devices; say device=cpu or device=auto, or start fewer processes"
            )
        return torch.device("cuda", local_rank)
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps was asked for and is not there; say device=auto")
    return torch.device(name)


def wrap(
    network: nn.Module, ranks: Ranks, parallel: str = "ddp", precision: str = "float32"
) -> nn.Module:
    """Move a network to its device and let all processes average their gradients.

    Parameters
    ----------
    network
        The same on all processes but for rounding; the first one's weights are used. Optimizers
        are made afterwards.
    ranks
        Alone, nothing is wrapped.
    parallel
        ddp: every process holds the network. fsdp: each holds a shard of every weight, gradient
        and optimizer state, and a block's weights are gathered where they are needed
        (``fully_shard``, FSDP2). The network is changed in place, and what the device holds never
        exceeds the shards and a block or two.
    precision
        As of ``mixed_precision``. With bfloat16, fsdp sends the blocks' matrices as such, which
        they are multiplied as anyway; shards and gradients' sums stay float32.
    """
    if ranks.world_size == 1:
        return network.to(ranks.device)
    if parallel == "ddp":
        network = network.to(ranks.device)
        return nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            on_device = tensor.to(ranks.device)
            dist.broadcast(on_device, 0)
            tensor.copy_(on_device)
    # Its results are views. Nothing here changes them in place, which is what it warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    matrices = MixedPrecisionPolicy()
    if resolve_precision(precision, ranks.device) == "bfloat16":
        matrices = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in network.modules():
        if isinstance(block, Block):
            # Not the norms: they and what is left stay float32, as under mixed_precision.
            fully_shard([block.attention, block.feed_forward], mesh=mesh, mp_policy=matrices)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network


def compile_blocks(model: nn.Module) -> None:
    """Let torch compile the blocks of ``model``, in place; names of weights stay as they are.

    Block by block, for they are all alike: one compilation serves all layers, one the last, which
    computes other rows, and again one each without gradients. Lengths and number of the cells may
    change from batch to batch. That is so where ``varlen_supports``: elsewhere attention stays
    outside, and every new number of cells is compiled for again. Compiled at the first call.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True)


def gradient_sync(model: nn.Module, *, enabled: bool) -> AbstractContextManager:
    """Return the context of one of several backward passes whose gradients accumulate.

    DDP averages over the processes where it is ``enabled``, in the last pass. FSDP does so in
    every pass: what is not yet averaged is not sharded either, and would have to fit the device.
    """
    if enabled or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def sum_over_ranks(values: list[float], ranks: Ranks) -> list[float]:
    """Add up each value over the processes, in double precision."""
    if ranks.world_size == 1:
        return values
    # MPS has no float64, but does not run several processes either.
    total = torch.tensor(values, dtype=torch.float64, device=ranks.device)
    dist.all_reduce(total)
    return total.tolist()


def gather_rows(parts: list[torch.Tensor], n_rows: list[int], ranks: Ranks) -> np.ndarray:
    """Gather the rows that the processes have.

    Parameters
    ----------
    parts
        This process's rows, in order, in pieces of ``(n, width)``; all processes have some.
    n_rows
        Rows of each process; none is repeated to make the shards even.

    Returns
    -------
    The rows of one process behind those of the other, ``(n_total, width)``, on every process.
    """
    mine = torch.cat(parts)
    if ranks.world_size == 1:
        return mine.cpu().numpy()
    padded = mine.new_zeros((max(n_rows), *mine.shape[1:]))
    padded[: len(mine)] = mine
    shards = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    dist.all_gather(shards, padded)
    return torch.cat([shard[:n] for shard, n in zip(shards, n_rows, strict=True)]).cpu().numpy()


def seed_everything(seed: int, step: int, rank: int) -> None:
    """Make an update's random numbers a function of (seed, step, process) and of nothing else.

    A resumed run therefore draws what an undisturbed one does, with no generator state to keep.
    Dropout in the network draws from here, for the cells that a process has at a time: with it,
    the number of processes changes which units are dropped, but not the order of the cells, the
    learning rates or the augmentation (``counter_random``), which do not draw from here.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def mixed_precision(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass in float32, or in bfloat16 where ``precision`` says.

    bfloat16 has float32's range, so that no loss scaling is needed.
    """
    enabled = resolve_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return what ``auto`` means on this device: bfloat16 on CUDA devices that have it."""
    if precision != "auto":
        return precision
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if has_bfloat16 else "float32"
