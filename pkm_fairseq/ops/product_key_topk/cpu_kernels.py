"""The search in one sweep over the scores of both halves, compiled with numba.

T tokens, H heads, N sub-keys per half, K slots to select, L leaves of a tree.

Scores are compared as integers that lie in the same order, each above its own place: one number
to compare and to move, and an order in which NaN and infinities are as good as any.

A tree of such keys, (2 * L,), has leaves from L on, and at node ``n`` the greater of nodes ``2 n``
and ``2 n + 1``: so the greatest of all is at 1, and to change a leaf takes log2(L) steps.
"""

import math

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from ..cpu import compiled, follow_torch_threads

PLACE_BITS = 32
PLACES = 2**PLACE_BITS - 1
TAKEN = np.int64(-(2**63))
# Keys that share a leaf, which holds the greatest of them.
SHARE = 4


class KernelTopk(torch.autograd.Function):
    """Same as ``product_key_topk``, for scores of up to 32 bits."""

    @staticmethod
    def forward(ctx, scores1, scores2, k):
        *shape, subkeys = scores1.shape
        tokens, heads = math.prod(shape[:-1]), math.prod(shape[-1:])
        halves = torch.stack([scores1.detach(), scores2.detach()], -2).float()
        scores = torch.empty(tokens, heads, k)
        slots = torch.empty_like(scores, dtype=torch.int64)
        kernel_topk(halves.view(tokens, heads, 2, subkeys), scores, slots)
        ctx.save_for_backward(slots)
        ctx.halves = scores1.shape, scores1.dtype
        slots = slots.view(*shape, k)
        ctx.mark_non_differentiable(slots)
        return scores.view(*shape, k).to(scores1.dtype), slots

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_scores, _):
        follow_torch_threads()
        (slots,) = ctx.saved_tensors
        shape, dtype = ctx.halves
        grads = torch.empty(2, *slots.shape[:2], shape[-1])  # (2, T, H, N)
        grad_scores = grad_scores.float().reshape(slots.shape).contiguous()
        scatter(grad_scores.numpy(), slots.numpy(), *grads.numpy())
        grad1, grad2 = grads.to(dtype)
        return grad1.view(shape), grad2.view(shape), None


def kernel_topk(halves, scores, slots):
    """Same as ``product_key_topk``, without gradients.

    Args:
        halves: scores of both halves, (T, H, 2, N), float32, contiguous.
        scores, slots: where those of the selected slots go to, (T, H, K) each, contiguous.
    """
    follow_torch_threads()
    search(halves.numpy(), scores.numpy(), slots.numpy())


@compiled()
def key_of(score, place):
    """Returns an integer that compares like the score, above its place."""
    bits = np.float32(score).view(np.int32)
    in_order = np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.int64(in_order) << PLACE_BITS | place


@compiled()
def grow(tree):
    """Fills a tree above its leaves."""
    for node in range(len(tree) // 2 - 1, 0, -1):
        tree[node] = max(tree[2 * node], tree[2 * node + 1])


@compiled()
def change(tree, leaf, key):
    """Gives a leaf another key."""
    node = leaf + np.uint64(len(tree) // 2)
    tree[node] = key
    while node > np.uint64(1):
        key = max(key, tree[node ^ np.uint64(1)])
        node >>= np.uint64(1)
        tree[node] = key


@compiled()
def greatest(keys, leaf, leaves):
    """Returns the greatest of the keys that share a leaf."""
    return max(
        max(keys[leaf], keys[leaf + leaves]),
        max(keys[leaf + 2 * leaves], keys[leaf + 3 * leaves]),
    )


@compiled()
def arrange(scores, keys, tree):
    """Fills ``keys``, (L * SHARE,), as far as there are scores, and their ``tree``."""
    leaves = np.uint64(len(tree) // 2)
    for place in range(len(scores)):
        keys[place] = key_of(scores[place], place)
    for leaf in range(leaves):
        tree[leaves + leaf] = greatest(keys, leaf, leaves)
    grow(tree)


@compiled()
def take(scores, keys, tree, best, places, rank):
    """Takes the greatest key out: its score and place go to ``best`` and ``places``, (K,)."""
    leaves = np.uint64(len(tree) // 2)
    place = np.uint64(tree[1] & PLACES)
    leaf = place & (leaves - np.uint64(1))
    keys[place] = TAKEN
    change(tree, leaf, greatest(keys, leaf, leaves))
    best[rank], places[rank] = scores[place], place


@compiled()
def pair(half1, half2, keys, trees, best, places, rows, given, scores, slots):
    """Fills ``scores`` and ``slots``, (K,), with the best pairs, best first.

    With both halves sorted, the pair at ranks (i, j) is beaten or equalled by those at (i - 1, j)
    and (i, j - 1). So the next best pair is always the first that is left of some i, and no i is
    of use before i - 1 has given its first pair. Each half is sorted as far as ranks are of use,
    which is rarely far. ``rows`` is a tree of the next pair of each i, and ``given``, (K,), counts
    those it has given.
    """
    k, subkeys = len(slots), len(half1)
    # Of use for sure, or nearly; at once, so that both halves' steps overlap in time.
    ranks1 = ranks2 = min(k, int(np.sqrt(k)) + 2)
    for rank in range(ranks1):
        take(half1, keys[0], trees[0], best[0], places[0], rank)
        take(half2, keys[1], trees[1], best[1], places[1], rank)
    leaves = len(rows) // 2
    rows[:] = TAKEN
    given[:] = 0
    for i in range(ranks1):
        rows[leaves + i] = key_of(best[0, i] + best[1, 0], i)
    grow(rows)
    for rank in range(k):
        i = np.uint64(rows[1] & PLACES)
        j = np.uint64(given[i])
        scores[rank] = best[0, i] + best[1, j]
        slots[rank] = places[0, i] * subkeys + places[1, j]
        if i + np.uint64(1) == np.uint64(ranks1) and j == np.uint64(0) and ranks1 < k:
            take(half1, keys[0], trees[0], best[0], places[0], ranks1)
            change(rows, np.uint64(ranks1), key_of(best[0, ranks1] + best[1, 0], ranks1))
            ranks1 += 1
        j += np.uint64(1)
        given[i] = j
        if j == np.uint64(ranks2) and ranks2 < k:
            take(half2, keys[1], trees[1], best[1], places[1], ranks2)
            ranks2 += 1
        following = TAKEN
        if j < np.uint64(k):
            following = key_of(best[0, i] + best[1, j], np.int64(i))
        change(rows, i, following)


@compiled("(float32[:,:,:,::1], float32[:,:,::1], int64[:,:,::1])", parallel=True)
def search(halves, scores, slots):
    """Fills ``scores`` and ``slots``, (T, H, K), from the scores of both halves, (T, H, 2, N)."""
    tokens, heads, _, subkeys = halves.shape
    k = slots.shape[2]
    leaves = rows_total = 1
    while leaves * SHARE < subkeys:
        leaves *= 2
    while rows_total < k:
        rows_total *= 2
    for t in prange(tokens):
        keys = np.full((2, leaves * SHARE), TAKEN)
        trees = np.empty((2, 2 * leaves), np.int64)
        best, places = np.empty((2, k), np.float32), np.empty((2, k), np.int64)
        rows, given = np.empty(2 * rows_total, np.int64), np.empty(k, np.int64)
        for h in range(heads):
            half1, half2 = halves[t, h, 0], halves[t, h, 1]
            arrange(half1, keys[0], trees[0])
            arrange(half2, keys[1], trees[1])
            pair(half1, half2, keys, trees, best, places, rows, given, scores[t, h], slots[t, h])


@compiled(parallel=True)
def scatter(grad_scores, slots, grad1, grad2):
    """Fills ``grad1`` and ``grad2``, (T, H, N), with the sums over the slots of each sub-key."""
    tokens, heads, subkeys = grad1.shape
    for t in prange(tokens):
        grad1[t] = 0
        grad2[t] = 0
        for h in range(heads):
            for rank in range(slots.shape[2]):
                i, j = divmod(slots[t, h, rank], subkeys)
                grad1[t, h, i] += grad_scores[t, h, rank]
                grad2[t, h, j] += grad_scores[t, h, rank]
