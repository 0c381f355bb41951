"""The weighted sum, and its gradients in one pass over the touched rows, compiled with numba.

S slots, D value-dim, T tokens, n rows each token selected, R distinct rows among them,
A = T * n accesses.
"""

import numpy as np
import torch
from numba import prange, types
from numba.extending import overload

from ..cpu import compiled, follow_torch_threads

# Bits of a slot by which one pass sorts: two passes do for tables of up to 4 million slots.
RADIX_BITS = 11


def kernel_bag(values, slots, weights):
    """Same as ``weighted_bag`` for float32 tables, fast where rows are wide.

    It does what ``quantized_bag`` does for tables of int8 and bfloat16.
    """
    follow_torch_threads()
    slots = slots.long()
    if slots.numel() and not 0 <= slots.amin() <= slots.amax() < len(values):
        raise IndexError("a slot is not in the table")
    if values.dtype == torch.bfloat16:
        values = values.view(torch.int16)
    output = values.new_empty(len(slots), values.shape[1], dtype=torch.float32)
    sum_rows(
        values.detach().numpy(),
        slots.contiguous().numpy(),
        weights.detach().float().contiguous().numpy(),
        output.numpy(),
    )
    return output


def number(entry):
    """Reads an entry of a table: int16 stands for bfloat16, which numba does not know."""


@overload(number)
def compiled_number(entry):
    # A bfloat16 is the upper half of a float32.
    if entry == types.int16:
        return lambda entry: np.uint32(np.uint32(entry) << 16).view(np.float32)
    return lambda entry: entry


@compiled(parallel=True, fastmath={"contract"})
def sum_rows(values, slots, weights, output):
    """Fills ``output``, (T, D), for each token eight rows at a time.

    Memory brings several rows at once in the time of one, if it is asked for them together.
    """
    tokens, n = slots.shape
    for t in prange(tokens):
        total = output[t]
        total[:] = 0
        eights = n // 8 * 8
        for i in range(0, eights, 8):
            row0, row1 = values[slots[t, i]], values[slots[t, i + 1]]
            row2, row3 = values[slots[t, i + 2]], values[slots[t, i + 3]]
            row4, row5 = values[slots[t, i + 4]], values[slots[t, i + 5]]
            row6, row7 = values[slots[t, i + 6]], values[slots[t, i + 7]]
            w0, w1, w2, w3, w4, w5, w6, w7 = [weights[t, i + j] for j in range(8)]
            for d in range(len(total)):
                first = w0 * number(row0[d]) + w1 * number(row1[d])
                second = w2 * number(row2[d]) + w3 * number(row3[d])
                third = w4 * number(row4[d]) + w5 * number(row5[d])
                fourth = w6 * number(row6[d]) + w7 * number(row7[d])
                total[d] += (first + second) + (third + fourth)
        for i in range(eights, n):
            row, weight = values[slots[t, i]], weights[t, i]
            for d in range(len(total)):
                total[d] += weight * number(row[d])


def kernel_clear(table, rows):
    """Fills the ``rows`` of a float32 table with zeros."""
    follow_torch_threads()
    clear(table.numpy(), rows.numpy())


@compiled(parallel=True)
def clear(table, rows):
    """Clears each row in one thread."""
    for r in prange(len(rows)):
        table[rows[r]] = 0


def kernel_touched_row_gradients(values, slots, weights, grad_output, out=None, room=None):
    """Same as ``touched_row_gradients``, for float32 tables."""
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
    where in ``gradients``, (R,). Four accesses at a time: as in ``sum_rows``, and the gradient is
    read and written once for them.
    """
    if len(grad_output) == 0:
        return
    n = len(weights) // len(grad_output)
    dim = values.shape[1]
    for r in prange(len(rows)):
        row, gradient = values[rows[r]], gradients[targets[r]]
        start, end = starts[r], starts[r + 1]
        fours = end - (end - start - 1) // 4 * 4  # where they begin, after one to four others
        for position in range(start, fours):
            access = accesses[position]
            weight, upstream = weights[access], grad_output[access // n]
            product = np.float32(0)
            if position == start:
                for d in range(dim):
                    gradient[d] = weight * upstream[d]
                    product += row[d] * upstream[d]
            else:
                for d in range(dim):
                    gradient[d] += weight * upstream[d]
                    product += row[d] * upstream[d]
            grad_weights[access] = product
        for position in range(fours, end, 4):
            a0, a1 = accesses[position], accesses[position + 1]
            a2, a3 = accesses[position + 2], accesses[position + 3]
            w0, w1, w2, w3 = weights[a0], weights[a1], weights[a2], weights[a3]
            up0, up1 = grad_output[a0 // n], grad_output[a1 // n]
            up2, up3 = grad_output[a2 // n], grad_output[a3 // n]
            p0 = p1 = p2 = p3 = np.float32(0)
            for d in range(dim):
                gradient[d] += (w0 * up0[d] + w1 * up1[d]) + (w2 * up2[d] + w3 * up3[d])
                p0 += row[d] * up0[d]
                p1 += row[d] * up1[d]
                p2 += row[d] * up2[d]
                p3 += row[d] * up3[d]
            grad_weights[a0], grad_weights[a1] = p0, p1
            grad_weights[a2], grad_weights[a3] = p2, p3
