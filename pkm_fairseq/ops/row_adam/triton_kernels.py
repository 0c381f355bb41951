"""Adam on touched rows in one pass over them, on a GPU.

S slots, D value-dim, R touched rows.
"""

import math

import torch
import triton
import triton.language as tl

from ..gpu import power_of_two

MOST_COLUMNS = 1024


def kernel_row_adam_(values, rows, row_grads, state, step, lr, betas, eps, weight_decay, scale):
    """Same as ``row_adam_``."""
    dim = values.shape[1]
    if not rows.numel() or not dim:
        return
    if not torch.is_tensor(scale):
        scale = torch.full((), scale, device=values.device)  # does not wait for the GPU
    with torch.cuda.device_of(values):
        move[len(rows),](
            values,
            rows.contiguous(),
            row_grads.contiguous(),
            *(state[name] for name in ("exp_avg", "exp_avg_sq")),
            *(state[name] for name in ("avg_weight", "avg_sq_weight", "row_step")),
            scale.float(),
            step,
            *(math.log2(beta) if beta else -math.inf for beta in betas),
            *(1 - beta for beta in betas),
            lr,
            eps,
            1 - lr * weight_decay,
            dim,
            COLUMNS=power_of_two(min(dim, MOST_COLUMNS)),
        )


@triton.jit(do_not_specialize=["step"])
def move(
    values,
    rows,
    row_grads,
    exp_avg,
    exp_avg_sq,
    avg_weight,
    avg_sq_weight,
    row_step,
    scale,
    step,
    log_beta1,
    log_beta2,
    new1,
    new2,
    lr,
    eps,
    keep,
    dim,
    COLUMNS: tl.constexpr,
):
    """Moves one touched row."""
    r = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + r)
    missed = (step - tl.load(row_step + row)).to(tl.float32)
    decay1, decay2 = tl.exp2(missed * log_beta1), tl.exp2(missed * log_beta2)
    weight1 = tl.load(avg_weight + row) * decay1 + new1
    weight2 = tl.load(avg_sq_weight + row) * decay2 + new2
    divisor = tl.load(scale)
    for first in range(0, dim, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        in_row = column < dim
        place = row * dim + column
        grad = tl.load(row_grads + r * dim + column, mask=in_row, other=0).to(tl.float32) / divisor
        mean = tl.load(exp_avg + place, mask=in_row, other=0) * decay1 + new1 * grad
        mean_sq = tl.load(exp_avg_sq + place, mask=in_row, other=0) * decay2 + new2 * grad * grad
        value = tl.load(values + place, mask=in_row, other=0).to(tl.float32) * keep
        value -= lr * (mean / weight1) / (tl.sqrt(mean_sq / weight2) + eps)
        tl.store(exp_avg + place, mean, mask=in_row)
        tl.store(exp_avg_sq + place, mean_sq, mask=in_row)
        tl.store(values + place, value, mask=in_row)
    # Only after every thread has read the row's state may it change.
    tl.debug_barrier()
    tl.store(avg_weight + row, weight1)
    tl.store(avg_sq_weight + row, weight2)
    tl.store(row_step + row, step)
