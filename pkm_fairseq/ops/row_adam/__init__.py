"""A step of Adam for the rows of a table that were touched."""

import torch

from ..cpu import use_cpu_kernels, with_huge_pages
from ..gpu import use_gpu_kernels
from .eager import eager_row_adam_


def new_row_state(values):
    """Returns the state that ``row_adam_`` keeps for a table, before its first step.

    Moments and their gradient weights are float32 or better whatever the table is.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    per_row = {"dtype": wide, "device": values.device}
    return {
        "exp_avg": with_huge_pages(torch.empty_like(values, dtype=wide)).zero_(),
        "exp_avg_sq": with_huge_pages(torch.empty_like(values, dtype=wide)).zero_(),
        "avg_weight": torch.zeros(len(values), **per_row),
        "avg_sq_weight": torch.zeros(len(values), **per_row),
        "row_step": torch.zeros(len(values), dtype=torch.int32, device=values.device),
    }


def row_adam_(values, rows, row_grads, state, *, step, lr, betas, eps, weight_decay, scale=1.0):
    """Moves the touched rows of a table by one step of AdamW, in place.

    Nothing is done for rows that were not touched. When a row is touched again, its moments first
    decay for the steps it missed, and are divided by the weight that its own gradients have in
    them (for a row that is touched at each step that is Adam's bias correction, ``1 - beta ** t``).
    So the first step of a row that was long untouched is as long as the first step of all, ``lr``,
    and not many times that. With all rows touched at each step this is AdamW.

    Args:
        values: the table, (S, D), floating point.
        rows: the touched rows, distinct, (R,), int64.
        row_grads: their gradients, (R, D).
        state: what ``new_row_state`` returned, changed in place: the moments, (S, D); the weight of
            the gradients in them, (S,); the last step that touched each row, (S,).
        step: the number of this step, from 1.
        lr, betas, eps: as in Adam.
        weight_decay: decoupled, as in AdamW; rows decay at the steps that touch them.
        scale: what the gradients are divided by.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), section 3; Loshchilov & Hutter 2019
    (arXiv 1711.05101), algorithm 2.
    """
    form = eager_row_adam_
    if use_gpu_kernels(values) and values.is_contiguous():
        from .triton_kernels import kernel_row_adam_ as form
    elif values.dtype == row_grads.dtype == torch.float32 and use_cpu_kernels(values):
        from .cpu_kernels import kernel_row_adam_ as form
    form(values, rows, row_grads, state, step, lr, betas, eps, weight_decay, scale)


__all__ = ["new_row_state", "row_adam_"]
