"""All attention masks: which tokens of a cell a token may look at. True: it may.

Legend: ``b`` cells of one length, ``t`` tokens of each.
"""

import torch
from torch import Tensor


def generative_mask(is_known: Tensor) -> Tensor:
    """Let every token look at the known tokens of its cell and at itself.

    The mask of scGPT's generative pretraining (Cui et al. 2024, Methods, "Specialized attention
    mask"): no unknown token is looked at by another, so that whatever is predicted of one follows
    from the known ones alone, however many others are to be predicted.

    Parameters
    ----------
    is_known
        Of each token, ``(b, t)``; that of ``<cls>`` is.

    Returns
    -------
    ``(b, 1, t, t)``: queries, then keys; the same for all heads.
    """
    itself = torch.eye(is_known.shape[1], dtype=torch.bool, device=is_known.device)
    return (is_known[:, None, :] | itself)[:, None]
