"""The weighted sum and its gradients, which cost what the touched rows cost.

S slots, D value-dim, T tokens, n rows each token selected, R distinct rows among them.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ..cpu import use_cpu_kernels
from .eager import eager_touched_row_gradients, weight_gradients


class WeightedBag(torch.autograd.Function):
    """Does what ``weighted_bag`` does; torch's own bag of embeddings reads the table fastest."""

    @staticmethod
    def forward(ctx, values, slots, weights):
        ctx.save_for_backward(values, slots, weights)
        weights = weights.to(values.dtype)
        return F.embedding_bag(slots, values, mode="sum", per_sample_weights=weights)  # (T, D)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        values, slots, weights = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, weight_gradients(values, slots, grad_output).to(weights.dtype)
        grad_values = torch.zeros_like(values)
        _, _, grad_weights = touched_row_gradients(
            values, slots, weights, grad_output, out=grad_values
        )
        return grad_values, None, grad_weights


def touched_row_gradients(values, slots, weights, grad_output, out=None):
    """Returns the gradients of a bag for the rows it touched and for its weights.

    The cost follows the rows touched, not the size of the table. The order in which the accesses
    of a row are summed is fixed, so the result does not depend on the number of threads.

    Args:
        values, slots, weights: as given to ``weighted_bag``.
        grad_output: the gradient of what it returned, (T, D).
        out: a table, (S, D), in which the gradients of the touched rows take the place of what
            stood there, its other rows left as they are; or None.

    Returns:
        The touched rows, ascending, (R,), int64; their gradients in the same order, (R, D), in
        the dtype of ``values``, or None with ``out``; the gradients of the weights, (T, n), in
        their dtype.
    """
    form = eager_touched_row_gradients
    if values.dtype == torch.float32 and use_cpu_kernels(values):
        from .cpu_kernels import kernel_touched_row_gradients as form
    return form(values, slots, weights, grad_output, out)
