"""Compilation of a network's blocks, where most of the time goes."""

from torch import nn

from models.transformer import Block


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Let ``torch.compile`` write the kernels of each transformer block, at its first batch.

    The blocks are compiled in place, one program for all: the names of the weights stay as they
    are, and so do the files. Shapes are dynamic, for batches differ in their number of tokens.

    Parameters
    ----------
    network
        Wrapped or not.
    backend
        Of ``torch.compile``.
    """
    for module in network.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True, backend=backend)
