"""The weighted sum and its gradients on a GPU.

S slots, D value-dim, T tokens, n rows each token selected, R distinct rows among them,
A = T * n accesses, P pieces into which the accesses of the rows are cut.
"""

import torch
import triton
import triton.language as tl

from ..gpu import power_of_two

# Numbers of a tile that a program holds: rows in flight times columns.
TILE = 4096
MOST_COLUMNS = 2048
# Accesses of one row that one program sums; a row with more is split across programs.
PIECE = 64


def kernel_bag(values, slots, weights, dtype=torch.float32):
    """Same as ``weighted_bag``, or ``quantized_bag``; returns ``dtype``."""
    check_slots(slots, values)
    values, slots, weights = values.contiguous(), slots.contiguous(), weights.contiguous()
    (tokens, n), dim = slots.shape, values.shape[1]
    output = values.new_empty(tokens, dim, dtype=dtype)
    columns = narrow_columns(dim)
    if output.numel():
        with torch.cuda.device_of(values):
            sum_rows[tokens, triton.cdiv(dim, columns)](
                values,
                slots,
                weights,
                output,
                n,
                dim,
                ROWS=min(TILE // columns, power_of_two(n)),
                COLUMNS=columns,
            )
    return output


def check_slots(slots, values):
    """Refuses slots outside the table, without waiting for the GPU."""
    if slots.numel():
        inside = (slots.amin() >= 0) & (slots.amax() < len(values))
        torch._assert_async(inside, "a slot is not in the table")


def narrow_columns(dim):
    """Returns how many columns a program reads: what leaves the fewest idle, then the most."""
    return min((128, 256, 512, 1024), key=lambda columns: (-dim % columns, -columns))


@triton.jit
def sum_rows(values, slots, weights, output, n, dim, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums some columns of one token's rows, ``ROWS`` of them in flight."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = columns < dim
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, n, ROWS):
        i = first + tl.arange(0, ROWS)
        slot = tl.load(slots + token * n + i, mask=i < n, other=0).to(tl.int64)
        weight = tl.load(weights + token * n + i, mask=i < n, other=0)
        weight = weight.to(output.dtype.element_ty).to(tl.float32)
        rows = tl.load(
            values + slot[:, None] * dim + columns[None, :],
            mask=(i < n)[:, None] & in_row[None, :],
            other=0,
        )
        total += weight[:, None] * rows.to(tl.float32)
    tl.store(output + token * dim + columns, tl.sum(total, 0), mask=in_row)


def kernel_touched_row_gradients(values, slots, weights, grad_output, out=None, room=None):
    """Same as ``touched_row_gradients``, in one sweep over the accesses, sorted by slot.

    A program reads a row of the table once and the upstream gradients of its accesses once. The
    order of all sums is fixed.
    """
    check_slots(slots, values)
    values, weights, grad_output = (x.contiguous() for x in (values, weights, grad_output))
    n, dim = slots.shape[1], values.shape[1]
    # Half the digits are half the time to sort.
    index = torch.int32 if len(values) < 2**31 else torch.int64
    in_order, accesses = slots.flatten().to(index).sort(stable=True)  # (A,) each
    rows, counts = in_order.unique_consecutive(return_counts=True)  # (R,) each
    rows, ends = rows.long(), counts.cumsum(0)
    pieces = (counts + PIECE - 1) // PIECE  # (R,)
    first_pieces = pieces.cumsum(0) - pieces
    # The GPU is asked, and waited for, once.
    pieces_total, split_total = torch.stack((pieces.sum(), (pieces > 1).sum())).tolist()
    row_of_piece = torch.repeat_interleave(pieces, output_size=pieces_total)  # (P,)

    gradients = out
    if out is None:
        room = values.new_empty(len(rows), dim) if room is None else room
        gradients = room[: len(rows)]
    columns = power_of_two(min(dim, MOST_COLUMNS))
    blocks = triton.cdiv(dim, columns)
    products = weights.new_empty(blocks, weights.numel(), dtype=torch.float32)
    # What the pieces of split rows sum; 2 * (pieces - 1) places are enough for each of them.
    places = 2 * (pieces_total - len(rows))
    partial_sums = values.new_empty(places, dim, dtype=torch.float32)
    of_rows = (rows, counts, ends, first_pieces)
    options = {"BY_SLOT": out is not None, "PIECE": PIECE, "COLUMNS": columns}
    if len(rows):
        with torch.cuda.device_of(values):
            sum_and_multiply[pieces_total, blocks](
                values,
                weights,
                grad_output,
                accesses,
                row_of_piece,
                *of_rows,
                gradients,
                partial_sums,
                products,
                weights.numel(),
                n,
                dim,
                ACCESSES=min(PIECE, max(1, TILE // columns)),
                **options,
            )
            if split_total:
                split = (pieces > 1).nonzero().squeeze(1)
                add_pieces[split_total, blocks](
                    split, *of_rows, partial_sums, gradients, dim, **options
                )
    grad_weights = products.sum(0).view(weights.shape).to(weights.dtype)
    return rows, gradients if out is None else None, grad_weights


@triton.jit
def sum_and_multiply(
    values,
    weights,
    grad_output,
    accesses,
    row_of_piece,
    rows,
    counts,
    ends,
    first_pieces,
    gradients,
    partial_sums,
    products,
    accesses_total,
    n,
    dim,
    ACCESSES: tl.constexpr,
    BY_SLOT: tl.constexpr,
    PIECE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums the upstream gradients of a piece of one row's accesses and multiplies them with it."""
    piece = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    in_row = columns < dim
    r = tl.load(row_of_piece + piece)
    slot, count, row_end = tl.load(rows + r), tl.load(counts + r), tl.load(ends + r)
    first_piece = tl.load(first_pieces + r)
    start = row_end - count + (piece - first_piece) * PIECE
    end = tl.minimum(start + PIECE, row_end)

    row = tl.load(values + slot * dim + columns, mask=in_row, other=0).to(tl.float32)
    total = tl.zeros((ACCESSES, COLUMNS), tl.float32)
    for first in range(start, end, ACCESSES):
        position = first + tl.arange(0, ACCESSES)
        is_here = position < end
        access = tl.load(accesses + position, mask=is_here, other=0)
        weight = tl.load(weights + access, mask=is_here, other=0)
        weight = weight.to(values.dtype.element_ty).to(tl.float32)
        upstream = tl.load(
            grad_output + (access // n)[:, None] * dim + columns[None, :],
            mask=is_here[:, None] & in_row[None, :],
            other=0,
        ).to(tl.float32)
        total += weight[:, None] * upstream
        product = tl.sum(row[None, :] * upstream, 1)
        tl.store(products + block * accesses_total + access, product, mask=is_here)
    gradient = tl.sum(total, 0)
    if count > PIECE:
        place = 2 * (first_piece - r) + piece - first_piece
        tl.store(partial_sums + place * dim + columns, gradient, mask=in_row)
    else:
        target = slot if BY_SLOT else r
        tl.store(gradients + target * dim + columns, gradient, mask=in_row)


@triton.jit
def add_pieces(
    split,
    rows,
    counts,
    ends,
    first_pieces,
    partial_sums,
    gradients,
    dim,
    BY_SLOT: tl.constexpr,
    PIECE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Adds up what the pieces of a split row summed, one after the other."""
    r = tl.load(split + tl.program_id(0))
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = columns < dim
    first_place = 2 * (tl.load(first_pieces + r) - r)
    pieces = tl.cdiv(tl.load(counts + r), PIECE)
    total = tl.zeros((COLUMNS,), tl.float32)
    for place in range(first_place, first_place + pieces):
        total += tl.load(partial_sums + place * dim + columns, mask=in_row, other=0)
    target = tl.load(rows + r) if BY_SLOT else r
    tl.store(gradients + target * dim + columns, total, mask=in_row)
