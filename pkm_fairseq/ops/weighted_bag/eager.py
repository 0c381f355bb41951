"""The gradients of a weighted sum as torch operations.

S slots, D value-dim, T tokens, n rows each token selected, R distinct rows among them.
"""

import torch
import torch.nn.functional as F

# Rows are handled in pieces of this many numbers: few enough that their memory stays at hand.
PIECE = 2**22


def eager_touched_row_gradients(values, slots, weights, grad_output, out=None, room=None):
    """Same as ``touched_row_gradients``."""
    rows, row_grads = row_gradients(values, slots, weights, grad_output, out, room)
    grad_weights = weight_gradients(values, slots, grad_output).to(weights.dtype)
    return rows, row_grads, grad_weights


def row_gradients(values, slots, weights, grad_output, out=None, room=None):
    """Returns the touched rows and their gradients: the gradient of a bag is a bag the other way.

    Arguments and results are those of ``touched_row_gradients``.
    """
    in_order, accesses = slots.flatten().sort(stable=True)  # (T * n,) each
    rows, counts = in_order.unique_consecutive(return_counts=True)  # (R,) each
    rows, starts = rows.long(), counts.cumsum(0) - counts
    gradients, targets = out, rows
    if out is None:
        room = values.new_empty(len(rows), values.shape[1]) if room is None else room
        gradients, targets = room[: len(rows)], torch.arange(len(rows), device=rows.device)

    # A row sums the gradients of the tokens that selected it, in float32 or better.
    wide = torch.promote_types(values.dtype, torch.float32)
    grads = grad_output.to(wide)
    tokens = accesses // slots.shape[1]
    factors = weights.to(values.dtype).to(wide).flatten()[accesses]
    step = max(1, PIECE // values.shape[1])
    bounds = [*starts[::step].tolist(), len(accesses)]
    for first, last, target, start in zip(
        bounds, bounds[1:], targets.split(step), starts.split(step)
    ):
        piece = F.embedding_bag(
            tokens[first:last],
            grads,
            offsets=start - first,
            mode="sum",
            per_sample_weights=factors[first:last],
        )
        gradients.index_copy_(0, target, piece.to(gradients.dtype))
    return rows, gradients if out is None else None


def weight_gradients(values, slots, grad_output):
    """Returns the product of each row that a token selected with its gradient, (T, n)."""
    tokens, n = slots.shape
    if values.is_cuda and values.dtype == torch.bfloat16:
        # torch has no kernel for it.
        step = max(1, PIECE // (n * values.shape[1]))
        pieces = zip(slots.split(step), grad_output.split(step))
        return torch.cat(
            [(values[piece] @ grads.unsqueeze(-1)).squeeze(-1) for piece, grads in pieces]
        )
    bags = torch.arange(tokens, dtype=slots.dtype, device=slots.device)  # (T,)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_output, values, slots.flatten(), bags * n, bags.repeat_interleave(n), 0
    ).view(tokens, n)
