"""The gradients of a weighted sum in one pass over the touched rows, compiled with numba.

S slots, D value-dim, T tokens, n rows each token selected, R distinct rows among them,
A = T * n accesses.
"""

import numpy as np
import torch
from numba import prange

from ..cpu import compiled, follow_torch_threads

# Bits of a slot by which one pass sorts: two passes do for tables of up to 4 million slots.
RADIX_BITS = 11


def kernel_touched_row_gradients(values, slots, weights, grad_output, out=None, room=None):
    """Does what ``touched_row_gradients`` does, for float32 tables."""
    follow_torch_threads()
    rows, starts, accesses = group_by_slot(slots.flatten().long().numpy(), len(values))
    gradients, targets = out, rows
    if out is None:
        room = values.new_empty(len(rows), values.shape[1]) if room is None else room
        gradients, targets = room[: len(rows)], np.arange(len(rows))
    grad_weights = torch.empty(weights.shape)
    sum_and_multiply(
        values.detach().numpy(),
        weights.detach().flatten().float().numpy(),
        grad_output.detach().contiguous().numpy(),
        rows,
        starts,
        accesses,
        targets,
        gradients.numpy(),
        grad_weights.view(-1).numpy(),
    )
    row_grads = gradients if out is None else None
    return torch.from_numpy(rows), row_grads, grad_weights.to(weights.dtype)


@compiled()
def group_by_slot(slots, slots_total):
    """Sorts the accesses by slot: a radix sort, whose time does not depend on ``slots_total``.

    Returns the distinct slots, (R,), where the accesses of each start, (R + 1,), and the accesses
    in that order, those of one slot in their own order, (A,).
    """
    accesses = np.arange(len(slots))
    sorted_slots = slots.copy()
    next_accesses, next_slots = np.empty_like(accesses), np.empty_like(sorted_slots)
    for slot in slots:
        if slot < 0 or slot >= slots_total:
            raise IndexError("a slot is not in the table")
    mask = (1 << RADIX_BITS) - 1
    shift = 0
    while (slots_total - 1) >> shift:
        ends = np.zeros(mask + 2, np.int64)
        for slot in sorted_slots:
            ends[((slot >> shift) & mask) + 1] += 1
        ends = ends.cumsum()
        for a in range(len(slots)):
            digit = (sorted_slots[a] >> shift) & mask
            next_slots[ends[digit]] = sorted_slots[a]
            next_accesses[ends[digit]] = accesses[a]
            ends[digit] += 1
        sorted_slots, next_slots = next_slots, sorted_slots
        accesses, next_accesses = next_accesses, accesses
        shift += RADIX_BITS

    rows, starts = next_slots, np.empty(len(slots) + 1, np.int64)
    found = 0
    for a in range(len(slots)):
        if a == 0 or sorted_slots[a] != sorted_slots[a - 1]:
            rows[found] = sorted_slots[a]
            starts[found] = a
            found += 1
    starts[found] = len(slots)
    return rows[:found].copy(), starts[: found + 1], accesses


# The order of the sum over D is free, so that it runs in vectors; it is the same in every thread.
@compiled(parallel=True, fastmath={"reassoc", "contract", "nsz"})
def sum_and_multiply(
    values, weights, grad_output, rows, starts, accesses, targets, gradients, grad_weights
):
    """Sums each touched row's gradient and multiplies the row with what it sums.

    A row belongs to one thread, which reads it and writes its gradient once. ``targets`` says
    where in ``gradients``, (R,).
    """
    if len(grad_output) == 0:
        return
    n = len(weights) // len(grad_output)
    dim = values.shape[1]
    for r in prange(len(rows)):
        row, gradient = values[rows[r]], gradients[targets[r]]
        for position in range(starts[r], starts[r + 1]):
            access = accesses[position]
            weight, upstream = weights[access], grad_output[access // n]
            product = np.float32(0)
            if position == starts[r]:
                for d in range(dim):
                    gradient[d] = weight * upstream[d]
                    product += row[d] * upstream[d]
            else:
                for d in range(dim):
                    gradient[d] += weight * upstream[d]
                    product += row[d] * upstream[d]
            grad_weights[access] = product
