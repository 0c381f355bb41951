"""The gradients of a weighted sum as torch operations.

S slots, D value-dim, T tokens, n rows each token selected, R distinct rows among them.
"""

import torch
import torch.nn.functional as F

# How many numbers of the table ``weight_gradients`` copies at a time where it must copy.
PIECE = 2**24


def eager_touched_row_gradients(values, slots, weights, grad_output, out=None):
    """Does what ``touched_row_gradients`` does: the gradient of a bag is a bag the other way."""
    n = slots.shape[1]
    in_order, accesses = slots.flatten().sort(stable=True)  # (T * n,) each
    rows, counts = in_order.unique_consecutive(return_counts=True)  # (R,) each
    # A row sums the gradients of the tokens that selected it, in float32 or better.
    wide = torch.promote_types(values.dtype, torch.float32)
    row_grads = F.embedding_bag(
        accesses // n,
        grad_output.to(wide),
        offsets=counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=weights.to(values.dtype).to(wide).flatten()[accesses],
    ).to(values.dtype)  # (R, D)
    rows = rows.long()
    if out is not None:
        out.index_copy_(0, rows, row_grads.to(out.dtype))
        row_grads = None
    return rows, row_grads, weight_gradients(values, slots, grad_output).to(weights.dtype)


def weight_gradients(values, slots, grad_output):
    """Returns the product of each row that a token selected with its gradient, (T, n)."""
    tokens, n = slots.shape
    if values.is_cuda and values.dtype == torch.bfloat16:
        # torch has no kernel for it: some tokens at a time, so that the rows copied stay few.
        pieces = max(1, PIECE // max(1, n * values.shape[1]))
        return torch.cat(
            [
                torch.bmm(values[piece], grads.unsqueeze(-1)).squeeze(-1)
                for piece, grads in zip(slots.split(pieces), grad_output.split(pieces))
            ]
        )
    bags = torch.arange(tokens, dtype=slots.dtype, device=slots.device)  # (T,)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_output, values, slots.flatten(), bags * n, bags.repeat_interleave(n), 0
    ).view(tokens, n)
