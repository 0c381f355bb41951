"""Adam on touched rows in one pass over them, compiled with numba.

S slots, D value-dim, R touched rows.
"""

import numpy as np
from numba import prange

from ..cpu import compiled, follow_torch_threads


def kernel_row_adam_(values, rows, row_grads, state, step, lr, betas, eps, weight_decay, scale):
    """Same as ``row_adam_``, for float32 tables."""
    follow_torch_threads()
    scalars = np.array(
        [betas[0], betas[1], lr, eps, 1 - lr * weight_decay, 1 / float(scale)], np.float64
    )
    move(
        values.detach().numpy(),
        rows.numpy(),
        row_grads.detach().contiguous().numpy(),
        *(state[name].numpy() for name in ("exp_avg", "exp_avg_sq")),
        *(state[name].numpy() for name in ("avg_weight", "avg_sq_weight", "row_step")),
        step,
        scalars,
    )


@compiled(parallel=True, fastmath={"contract"})
def move(
    values,
    rows,
    row_grads,
    exp_avg,
    exp_avg_sq,
    avg_weight,
    avg_sq_weight,
    row_step,
    step,
    scalars,
):
    """Moves each touched row, which belongs to one thread."""
    beta1, beta2, lr, eps, keep, factor = scalars
    new1, new2 = np.float32(1 - beta1), np.float32(1 - beta2)
    eps, keep, factor = np.float32(eps), np.float32(keep), np.float32(factor)
    for r in prange(len(rows)):
        row = rows[r]
        missed = step - row_step[row]
        row_step[row] = step
        decay1, decay2 = np.float32(beta1**missed), np.float32(beta2**missed)
        avg_weight[row] = avg_weight[row] * decay1 + new1
        avg_sq_weight[row] = avg_sq_weight[row] * decay2 + new2
        rate = np.float32(lr / avg_weight[row])
        spread = np.float32(1 / np.sqrt(avg_sq_weight[row]))
        value, grads, mean, mean_sq = values[row], row_grads[r], exp_avg[row], exp_avg_sq[row]
        for d in range(len(value)):
            grad = grads[d] * factor
            mean[d] = mean[d] * decay1 + new1 * grad
            mean_sq[d] = mean_sq[d] * decay2 + new2 * (grad * grad)
            value[d] = value[d] * keep - rate * mean[d] / (np.sqrt(mean_sq[d]) * spread + eps)
