"""The weighted sum and its gradients, which cost what the touched rows cost.

S slots, D value-dim, T tokens, n rows each token selected, R distinct rows among them.
"""

import threading

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ..cpu import use_cpu_kernels, with_huge_pages
from ..gpu import use_gpu_kernels
from .eager import eager_touched_row_gradients, weight_gradients

# From this width on our kernel is faster than torch's, which asks for one row at a time.
WIDE = 512


class WeightedBag(torch.autograd.Function):
    """Same as ``weighted_bag``."""

    @staticmethod
    def forward(ctx, values, slots, weights, gradient, rows=None):
        ctx.save_for_backward(values, slots, weights)
        ctx.gradient = gradient
        if use_gpu_kernels(values):
            from .triton_kernels import kernel_bag

            return kernel_bag(values, slots, weights, values.dtype)
        if values.shape[1] >= WIDE and has_kernels(values):
            from .cpu_kernels import kernel_bag

            return kernel_bag(values, slots, weights)
        weights = weights.to(values.dtype)
        return F.embedding_bag(slots, values, mode="sum", per_sample_weights=weights)  # (T, D)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        values, slots, weights = ctx.saved_tensors
        needs_values, _, _, _, needs_rows = ctx.needs_input_grad
        if not needs_values and not needs_rows:
            grad_weights = weight_gradients(values, slots, grad_output).to(weights.dtype)
            return None, None, grad_weights, None, None
        grad, grad_weights = ctx.gradient(values, slots, weights, grad_output)
        if needs_rows:
            return None, None, grad_weights, None, grad
        return grad, None, grad_weights, None, None


def dense_gradient(values, slots, weights, grad_output):
    """Returns the gradient of the values, a new table, (S, D), and that of the weights, (T, n)."""
    grad_values = torch.zeros_like(values, memory_format=torch.contiguous_format)
    _, _, grad_weights = touched_row_gradients(values, slots, weights, grad_output, out=grad_values)
    return grad_values, grad_weights


class KeptDenseGradient:
    """Same as ``dense_gradient``, in a table that it clears and fills again.

    Making a table at each step costs more than filling it. Only the rows that it wrote are cleared,
    or all of them if torch knows of another change since, so who writes to ``grad.data``, which
    torch does not see, may scale it but not write to other rows, as workers that add up their
    gradients do.
    """

    def __init__(self):
        self._table = KeptMemory()
        self._written = None  # which rows were written when the table was last clear, (S,)
        self._version = None  # torch's count of changes then

    def __call__(self, values, slots, weights, grad_output):
        inputs = (values, slots, weights, grad_output)
        if values.is_leaf and self._table.holds(values.grad):
            # Of an earlier batch of this update: torch adds the rows of a sparse gradient to it.
            return sparse_gradient(*inputs)
        table = self._table.take(values, len(values))
        if table is None:
            return dense_gradient(*inputs)
        is_known = self._written is not None and len(self._written) == len(table)
        # A table that was scaled by what is not finite has no zeros left.
        if not is_known or table._version != self._version or not table[0].isfinite().all():
            table.zero_()
            self._written = None
        rows, _, grad_weights = touched_row_gradients(*inputs, out=table)
        written = torch.zeros(len(table), dtype=torch.bool)
        written[rows] = True
        if self._written is not None:
            clear_rows(table, (self._written & ~written).nonzero().squeeze(1))
        self._written, self._version = written, table._version
        return table, grad_weights


def clear_rows(table, rows):
    """Fills the ``rows``, (R,), of a table with zeros."""
    if has_kernels(table):
        from .cpu_kernels import kernel_clear

        kernel_clear(table, rows)
    else:
        table.index_fill_(0, rows, 0)


def sparse_gradient(values, slots, weights, grad_output, room=None):
    """Returns the gradient of the values, sparse with the touched rows ascending, and the weights'.

    Args:
        values, slots, weights, grad_output, room: as given to ``touched_row_gradients``.
    """
    rows, row_grads, grad_weights = touched_row_gradients(
        values, slots, weights, grad_output, room=room
    )
    if not len(rows):
        # To add to an empty gradient torch enlarges it, which it cannot where numpy has seen it.
        rows, row_grads = rows.new_empty(0), row_grads.new_empty(0, values.shape[1])
    grad_values = torch.sparse_coo_tensor(
        rows.unsqueeze(0), row_grads, values.shape, is_coalesced=True, check_invariants=False
    )
    return grad_values, grad_weights


def gradient_of_rows(values, slots, weights, grad_output, *, places, rows, sparse, room):
    """Returns the gradient of some rows of a table only, (rows, D), and that of the weights.

    Args:
        values, slots, weights, grad_output: as given to ``touched_row_gradients``.
        places: for each row of the table its place among them, ascending, -1 if it is none, (S,).
        rows: how many they are.
        sparse: whether the gradient is sparse, with the touched ones ascending.
        room: a ``KeptMemory`` for the gradients of all rows touched.
    """
    shape = rows, values.shape[1]

    def gradient(values, slots, *inputs):
        touched, row_grads, grad_weights = touched_row_gradients(
            values, slots, *inputs, room=room.take(values, min(slots.numel(), len(values)))
        )
        at = places[touched]
        listed = at >= 0
        at, row_grads = at[listed], row_grads[listed]
        if sparse:
            grad = torch.sparse_coo_tensor(
                at.unsqueeze(0), row_grads, shape, is_coalesced=True, check_invariants=False
            )
        else:
            grad = row_grads.new_zeros(shape).index_copy_(0, at, row_grads)
        return grad, grad_weights

    inputs = (values, slots, weights, grad_output)
    return of_used_tokens(gradient, *inputs) if sparse else gradient(*inputs)


def of_used_tokens(gradient, values, slots, weights, grad_output):
    """Returns what ``gradient`` makes of the tokens whose gradient is not zero.

    Others, as those of a batch that fairseq makes up where a worker has none left, are to touch no
    row: an optimizer would move the rows along their momentum.
    """
    used = grad_output.any(dim=1)  # (T,)
    if used.all():
        return gradient(values, slots, weights, grad_output)
    grad, grad_weights = gradient(values, slots[used], weights[used], grad_output[used])
    return grad, torch.zeros_like(weights).index_put_((used,), grad_weights)


class KeptSparseGradient:
    """Same as ``sparse_gradient``, in memory that it fills again at the next step.

    See ``of_used_tokens`` for the tokens that touch no row.
    """

    def __init__(self):
        self._room = KeptMemory()

    def __call__(self, values, slots, weights, grad_output):
        return of_used_tokens(self._of_all, values, slots, weights, grad_output)

    def _of_all(self, values, slots, weights, grad_output):
        # Memory that is asked for and never written to costs nothing.
        room = self._room.take(values, min(slots.numel(), len(values)))
        return sparse_gradient(values, slots, weights, grad_output, room)


class KeptMemory:
    """Memory that is handed out again once nobody else holds a tensor in it.

    Only on the CPU: elsewhere torch keeps freed memory at hand itself. Models are copied without
    it.
    """

    def __init__(self):
        self._asked = threading.Lock()
        self._kept = None
        self._uses_if_free = None

    def take(self, like, rows):
        """Returns a tensor of ``rows`` rows as wide as ``like``, or None while it is in use."""
        if not like.is_cpu or not hasattr(torch._C, "_storage_Use_Count"):
            return None
        with self._asked:
            kept = self._kept
            if (
                kept is None
                or kept.dtype != like.dtype
                or kept.shape[1] != like.shape[1]
                or len(kept) < rows
            ):
                self._kept = with_huge_pages(like.new_empty(rows, like.shape[1]))
                self._uses_if_free = self._count_uses()
            elif self._count_uses() > self._uses_if_free:
                return None
            return self._kept[:rows]

    def holds(self, tensor):
        """Returns whether ``tensor`` begins where this memory does."""
        return (
            tensor is not None
            and self._kept is not None
            and not tensor.is_sparse
            and tensor.data_ptr() == self._kept.data_ptr()
        )

    def _count_uses(self):
        return torch._C._storage_Use_Count(self._kept.untyped_storage()._cdata)

    def __reduce__(self):
        return type(self), ()


def touched_row_gradients(values, slots, weights, grad_output, out=None, room=None):
    """Returns the gradients of a bag for the rows it touched and for its weights.

    The cost follows the rows touched, not the size of the table. The order in which the accesses
    of a row are summed is fixed, so the result does not depend on the number of threads.

    Args:
        values, slots, weights: as given to ``weighted_bag``.
        grad_output: the gradient of what it returned, (T, D).
        out: a table, (S, D), in which the gradients of the touched rows take the place of what
            stood there, its other rows left as they are; or None.
        room: without ``out``, a tensor of at least R rows, (..., D), whose first rows are to hold
            the gradients; or None for a new one.

    Returns:
        The touched rows, ascending, (R,), int64; their gradients in the same order, (R, D), in
        the dtype of ``values``, or None with ``out``; the gradients of the weights, (T, n), in
        their dtype.
    """
    form = eager_touched_row_gradients
    written = room if out is None else out
    if use_gpu_kernels(values) and (written is None or written.is_contiguous()):
        from .triton_kernels import kernel_touched_row_gradients as form
    elif has_kernels(values):
        from .cpu_kernels import kernel_touched_row_gradients as form
    return form(values, slots, weights, grad_output, out, room)


def has_kernels(table):
    """Returns whether the CPU kernels serve a table."""
    return table.dtype == torch.float32 and use_cpu_kernels(table)
