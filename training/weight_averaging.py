"""Exponential moving average of the weights: the network that is judged, beside the one trained.

The decay warms up: in update ``t`` it is ``min(decay, (1 + t) / (10 + t))``, the form of
TensorFlow's ``ExponentialMovingAverage``. The average then spans about a tenth of the updates so
far, until it spans ``1 / (1 - decay)`` of them. With .99 from the first update on, a run of 80
updates would be 45 % its random start; dividing by ``1 - decay**t``, as Adam does for its moments,
would forget the start but weigh the first updates, whose weights are of no use, like the last.

Running statistics, as of batch normalization, are averaged like the weights they were taken under.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


def start_average(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights that are trained and the statistics, by name; of a shard its own part."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and name not in frozen
    }


def update_average(average: dict[str, Tensor], model: nn.Module, step: int, decay: float) -> None:
    """Move the average towards the weights, in place; ``step`` updates have made them."""
    decay = min(decay, (1 + step) / (10 + step))
    averaged, current = zip(*_pairs(average, model), strict=True)
    get_ema_multi_avg_fn(decay)(averaged, current, step)  # one fused lerp


@contextmanager
def averaged(average: dict[str, Tensor], model: nn.Module) -> Iterator[None]:
    """Let the model have the averaged weights inside the block; empty, they are its own."""
    _swap(average, model)
    try:
        yield
    finally:
        _swap(average, model)


@torch.no_grad()
def _swap(average: dict[str, Tensor], model: nn.Module) -> None:
    # In place: optimizer, DDP and FSDP all hold these very tensors.
    for mean, weight in _pairs(average, model):
        kept = weight.clone()
        weight.copy_(mean)
        mean.copy_(kept)


def _pairs(average: dict[str, Tensor], model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    return [(_local(mean), _local(weights[name].detach())) for name, mean in average.items()]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
