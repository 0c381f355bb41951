"""Weighted sums of rows that are kept in fewer bits than they are summed in, without gradients.

S slots, D value-dim, T tokens, n rows each token selected.
"""

import torch

from pkm_fairseq.ops.compiling import not_compiled

from ..cpu import use_cpu_kernels, with_huge_pages
from ..gpu import use_gpu_kernels

# Rows are handled in pieces of this many numbers: few enough that their memory stays at hand.
PIECE = 2**18


@torch.no_grad()
def quantise_rows(values):
    """Rounds each row to 255 numbers, from minus to plus its largest.

    Args:
        values: (S, D), floating point, finite.

    Returns:
        The rows as multiples of their scale, (S, D), int8, and the scales, (S,), float32.
    """
    rows = with_huge_pages(values.new_empty(values.shape, dtype=torch.int8))
    scales = values.new_empty(len(values), dtype=torch.float32)
    piece = max(1, PIECE // max(1, values.shape[1]))
    for wide, row, scale in zip(values.split(piece), rows.split(piece), scales.split(piece)):
        wide = wide.float()
        # A row of zeros may have any scale.
        scale.copy_(wide.abs().amax(1).div_(127).clamp_(min=torch.finfo(torch.float32).tiny))
        row.copy_((wide / scale.unsqueeze(1)).round_().clamp_(-127, 127))
    return rows, scales


@not_compiled
@torch.no_grad()
def quantized_bag(values, slots, weights, scales=None):
    """Same as ``weighted_bag``, in float32, without gradients.

    Args:
        values: the table, (S, D), int8 or floating point.
        slots: the rows each token selected, (T, n), int64 or int32.
        weights: their weights, (T, n), floating point.
        scales: what the numbers of each row are multiples of, (S,), None for 1.

    Returns:
        (T, D), float32.
    """
    weights = weights.float()
    if scales is not None:
        weights = weights * scales[slots]
    form = eager_compact_bag
    if use_gpu_kernels(weights):
        from .triton_kernels import kernel_bag as form
    elif values.dtype in (torch.int8, torch.bfloat16) and use_cpu_kernels(values):
        from .cpu_kernels import kernel_bag as form
    return form(values, slots, weights)


def eager_compact_bag(values, slots, weights):
    """Same as ``quantized_bag``."""
    output = weights.new_empty(len(slots), values.shape[1])
    piece = max(1, PIECE // max(1, slots.shape[1] * values.shape[1]))
    for of_piece in zip(output.split(piece), weights.split(piece), slots.split(piece)):
        sums, factors, rows = of_piece
        sums.copy_((factors.unsqueeze(1) @ values[rows].float()).squeeze(1))
    return output
