"""Dropout whose random numbers are cheap on a CPU.

Hinton et al. 2012, scaled in training as ``torch.nn.Dropout`` does. There PyTorch draws one number
after the other, ten nanoseconds each, which took a quarter of an update of the transformers here.
Deliberate difference: four numbers of 16 bits are cut from each random number of 64, so a share is
a multiple of 2^-16. On a GPU PyTorch's own kernel is used.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16


class Dropout(nn.Dropout):
    """Zero a share ``p`` of the values in training and scale the others by ``1 / (1 - p)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the values, of any shape, some of them 0; in evaluation as they are."""
        if not (self.training and 0 < self.p < 1 and x.device.type == "cpu"):
            return F.dropout(x, self.p, self.training)
        n = x.numel()
        bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None)
        # float32 from here on: comparisons that yield bool are several times slower
        drawn = bits.view(torch.int16)[:n].view(x.shape).to(torch.float32)
        n_dropped = round(self.p * LEVELS)
        kept = drawn.ge_(n_dropped - LEVELS // 2).mul_(LEVELS / (LEVELS - n_dropped))
        return x * kept.to(x.dtype)
