"""Exact search for the best slots of a product-key memory."""

import torch

from pkm_fairseq.ops.compiling import not_compiled

from ..cpu import use_cpu_kernels
from .eager import eager_product_key_topk


@not_compiled
def product_key_topk(scores1, scores2, k):
    """Finds the ``k`` best of all ``subkeys ** 2`` slots, given the scores of their two halves.

    Slot ``i * subkeys + j`` scores ``scores1[..., i] + scores2[..., j]``.

    Args:
        scores1: scores of the first half's sub-keys, (..., subkeys), floating point.
        scores2: scores of the second half's sub-keys, the same shape and dtype.
        k: how many slots to select, from 1 to ``subkeys``.

    Returns:
        The scores of the selected slots, best first, (..., k), differentiable, and the slots
        themselves, (..., k), int64. Which of several slots with equal scores is selected is left
        open.

    Raises:
        ValueError: if the shapes differ or ``k`` is out of range.

    Source: Lample et al. 2019 (arXiv 1907.05242), section 3.1, "Product keys".
    """
    if scores1.shape != scores2.shape:
        raise ValueError(
            f"scores1 {tuple(scores1.shape)} and scores2 {tuple(scores2.shape)} must have one shape"
        )
    subkeys = scores1.shape[-1]
    if not 1 <= k <= subkeys:
        raise ValueError(f"k={k} is not between 1 and the number of sub-keys, {subkeys}")
    # The kernels add in float32, which loses nothing of the shorter dtypes.
    if scores1.dtype != torch.float64 and use_cpu_kernels(scores1):
        from .cpu_kernels import KernelTopk

        return KernelTopk.apply(scores1, scores2, k)
    return eager_product_key_topk(scores1, scores2, k)


__all__ = ["product_key_topk"]
