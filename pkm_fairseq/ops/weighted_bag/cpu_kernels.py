"""The weighted sum, and its gradients in one pass over the touched rows, compiled with numba.

S slots, D value-dim, T tokens, n rows each token selected, R distinct rows among them,
A = T * n accesses.
"""

import numpy as np
import torch
from numba import get_num_threads, prange, types
from numba.extending import overload

from ..cpu import compiled, follow_torch_threads

# Bits of a slot by which one pass sorts: two passes do for the paper's 262,144 slots.
RADIX_BITS = 9
ACCESS_BITS = 32


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

    Memory brings several rows at once in the time of one, if it is asked for them together. To
    index the table itself takes half the time of making an array of each row.
    """
    tokens, n = slots.shape
    for token in prange(tokens):
        t = np.int64(token)
        output[t] = 0
        eights = n // 8 * 8
        for i in range(0, eights, 8):
            r0, r1, r2, r3 = slots[t, i], slots[t, i + 1], slots[t, i + 2], slots[t, i + 3]
            r4, r5, r6, r7 = slots[t, i + 4], slots[t, i + 5], slots[t, i + 6], slots[t, i + 7]
            w0, w1, w2, w3 = weights[t, i], weights[t, i + 1], weights[t, i + 2], weights[t, i + 3]
            w4, w5 = weights[t, i + 4], weights[t, i + 5]
            w6, w7 = weights[t, i + 6], weights[t, i + 7]
            for d in range(values.shape[1]):
                first = w0 * number(values[r0, d]) + w1 * number(values[r1, d])
                second = w2 * number(values[r2, d]) + w3 * number(values[r3, d])
                third = w4 * number(values[r4, d]) + w5 * number(values[r5, d])
                fourth = w6 * number(values[r6, d]) + w7 * number(values[r7, d])
                output[t, d] += (first + second) + (third + fourth)
        for i in range(eights, n):
            row, weight = slots[t, i], weights[t, i]
            for d in range(values.shape[1]):
                output[t, d] += weight * number(values[row, d])


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
    rows, starts, accesses = group_by_slot(
        slots.flatten().long().numpy(), len(values), get_num_threads()
    )
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


@compiled(parallel=True)
def group_by_slot(slots, slots_total, chunks):
    """Sorts the accesses by slot: a radix sort, whose time does not depend on ``slots_total``.

    It cuts the accesses in ``chunks``, as many as there are threads, which change no result.

    Returns the distinct slots, (R,), where the accesses of each start, (R + 1,), and the accesses
    in that order, those of one slot in their own order, (A,).
    """
    bounds = np.arange(chunks + 1) * len(slots) // chunks
    # A slot above the number of its access: one number to move.
    keys, next_keys = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
    outside = np.zeros(chunks, np.bool_)
    for c in prange(chunks):
        any_outside = False  # in a register: threads that write side by side wait for each other
        for a in range(bounds[c], bounds[c + 1]):
            any_outside |= slots[a] < 0 or slots[a] >= slots_total
            keys[a] = slots[a] << ACCESS_BITS | a
        outside[c] = any_outside
    if outside.any():
        raise IndexError("a slot is not in the table")
    digits = 1 << RADIX_BITS
    shift = 0
    while (slots_total - 1) >> shift:
        # Where the keys with a digit go to, chunk by chunk.
        ends = np.zeros((chunks, digits), np.int64)
        for c in prange(chunks):
            for a in range(bounds[c], bounds[c + 1]):
                ends[c, keys[a] >> ACCESS_BITS + shift & digits - 1] += 1
        end = 0
        for digit in range(digits):
            for c in range(chunks):
                count = ends[c, digit]
                ends[c, digit] = end
                end += count
        for c in prange(chunks):
            for a in range(bounds[c], bounds[c + 1]):
                digit = keys[a] >> ACCESS_BITS + shift & digits - 1
                next_keys[ends[c, digit]] = keys[a]
                ends[c, digit] += 1
        keys, next_keys = next_keys, keys
        shift += RADIX_BITS

    found = np.zeros(chunks + 1, np.int64)
    for c in prange(chunks):
        distinct = 0
        for a in range(bounds[c], bounds[c + 1]):
            distinct += a == 0 or keys[a] >> ACCESS_BITS != keys[a - 1] >> ACCESS_BITS
        found[c + 1] = distinct
    found = found.cumsum()
    rows, starts = np.empty(found[-1], np.int64), np.empty(found[-1] + 1, np.int64)
    starts[-1] = len(slots)
    accesses = next_keys
    for c in prange(chunks):
        r = found[c]
        for a in range(bounds[c], bounds[c + 1]):
            slot = keys[a] >> ACCESS_BITS
            if a == 0 or slot != keys[a - 1] >> ACCESS_BITS:
                rows[r], starts[r] = slot, a
                r += 1
            accesses[a] = keys[a] & ((1 << ACCESS_BITS) - 1)
    return rows, starts, accesses


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
        row, target = rows[r], targets[r]
        start, end = starts[r], starts[r + 1]
        fours = end - (end - start - 1) // 4 * 4  # where they begin, after one to four others
        for position in range(start, fours):
            access = accesses[position]
            weight, t = weights[access], access // n
            product = np.float32(0)
            if position == start:
                for d in range(dim):
                    gradients[target, d] = weight * grad_output[t, d]
                    product += values[row, d] * grad_output[t, d]
            else:
                for d in range(dim):
                    gradients[target, d] += weight * grad_output[t, d]
                    product += values[row, d] * grad_output[t, d]
            grad_weights[access] = product
        for position in range(fours, end, 4):
            a0, a1 = accesses[position], accesses[position + 1]
            a2, a3 = accesses[position + 2], accesses[position + 3]
            w0, w1, w2, w3 = weights[a0], weights[a1], weights[a2], weights[a3]
            t0, t1, t2, t3 = a0 // n, a1 // n, a2 // n, a3 // n
            p0 = p1 = p2 = p3 = np.float32(0)
            for d in range(dim):
                up0, up1 = grad_output[t0, d], grad_output[t1, d]
                up2, up3 = grad_output[t2, d], grad_output[t3, d]
                value = values[row, d]
                gradients[target, d] += (w0 * up0 + w1 * up1) + (w2 * up2 + w3 * up3)
                p0 += value * up0
                p1 += value * up1
                p2 += value * up2
                p3 += value * up3
            grad_weights[a0], grad_weights[a1] = p0, p1
            grad_weights[a2], grad_weights[a3] = p2, p3
