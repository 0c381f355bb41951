"""Adam on touched rows as torch operations.

S slots, D value-dim, R touched rows.
"""

import torch

# Rows are handled in pieces of this many numbers: few enough that their memory stays small.
PIECE = 2**22


def eager_row_adam_(values, rows, row_grads, state, step, lr, betas, eps, weight_decay, scale):
    """Same as ``row_adam_``."""
    size = max(1, PIECE // values.shape[1])
    for piece, grads in zip(rows.split(size), row_grads.split(size)):
        missed = step - state["row_step"][piece]  # (R,)
        grads = grads.to(state["exp_avg"].dtype) / scale  # (R, D)
        means = []
        for moment, weight, beta, new in (
            ("exp_avg", "avg_weight", betas[0], grads),
            ("exp_avg_sq", "avg_sq_weight", betas[1], grads.square()),
        ):
            decay = torch.pow(beta, missed.double()).to(grads.dtype)  # (R,)
            moments = state[moment][piece] * decay.unsqueeze(1) + (1 - beta) * new  # (R, D)
            weights = state[weight][piece] * decay + (1 - beta)  # (R,)
            state[moment][piece], state[weight][piece] = moments, weights
            means.append(moments / weights.unsqueeze(1))
        state["row_step"][piece] = step
        mean, mean_sq = means
        moved = values[piece].to(grads.dtype) * (1 - lr * weight_decay)
        moved -= lr * mean / (mean_sq.sqrt() + eps)
        values[piece] = moved.to(values.dtype)
