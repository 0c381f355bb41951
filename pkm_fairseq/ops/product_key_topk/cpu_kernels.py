"""The search in one sweep over the scores of both halves, compiled with numba.

T tokens, H heads, N sub-keys per half, K slots to select.

Scores are selected as integers that lie in the same order, each above its own place: one number
to compare and to move, and an order in which NaN and infinities are as good as any.
"""

import math

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from ..cpu import compiled, follow_torch_threads

PLACE_BITS = 32


class KernelTopk(torch.autograd.Function):
    """Does what ``product_key_topk`` does, for scores of up to 32 bits."""

    @staticmethod
    def forward(ctx, scores1, scores2, k):
        follow_torch_threads()
        *shape, subkeys = scores1.shape
        tokens, heads = math.prod(shape[:-1]), math.prod(shape[-1:])
        bits1, bits2 = (
            half.float().reshape(tokens, heads, subkeys).view(torch.int32).numpy()
            for half in (scores1, scores2)
        )
        scores = torch.empty(tokens, heads, k)
        slots = torch.empty(tokens, heads, k, dtype=torch.int64)
        search(bits1, bits2, scores.numpy(), slots.numpy())
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


@compiled()
def reverse_negative(bits):
    """Turns a float's bits into an integer that compares like it, and back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@compiled()
def lower_bound(keys, k):
    """Returns a number that at least ``k`` keys reach, and few more where keys are many.

    It is the k-th greatest of the maxima of 2k groups of keys: k groups reach it.
    """
    groups = 2 * k
    bound = np.int32(-(2**31))
    if len(keys) <= groups:
        return bound
    maxima = keys[:groups].copy()
    for start in range(groups, len(keys), groups):
        for group in range(min(groups, len(keys) - start)):
            maxima[group] = max(maxima[group], keys[start + group])
    for maximum in maxima:
        reached = np.int32(0)
        for other in maxima:
            reached = np.int32(reached + np.int32(other >= maximum))
        if reached >= k and maximum > bound:
            bound = maximum
    return bound


@compiled()
def select(bits, keys, candidates, best):
    """Fills ``best``, (K,), with the greatest keys and their places, greatest first.

    ``keys``, (N,), and ``candidates``, (N + 1,), are room to work in.
    """
    for place in range(len(bits)):
        keys[place] = reverse_negative(bits[place])
    bound = lower_bound(keys, len(best))
    count = 0
    for place in range(len(keys)):
        # Written always and kept if it counts: a branch would be mispredicted too often.
        candidates[count] = (np.int64(keys[place]) << PLACE_BITS) | place
        count += keys[place] >= bound

    held = 0
    for candidate in candidates[:count]:
        if held < len(best):
            held += 1
        elif candidate < best[-1]:
            continue
        rank = held - 1
        while rank > 0 and best[rank - 1] < candidate:
            best[rank] = best[rank - 1]
            rank -= 1
        best[rank] = candidate


@compiled()
def pair(best1, best2, subkeys, scores, slots):
    """Fills ``scores`` and ``slots``, (K,), with the best pairs, best first.

    With both halves sorted, the pair at ranks (i, j) is beaten or equalled by those at (i - 1, j)
    and (i, j - 1). So the next best pair is always the first that is left of some i, and no i is
    of use before i - 1 has given its first pair.
    """
    k = len(slots)
    scores1 = reverse_negative((best1 >> PLACE_BITS).astype(np.int32)).view(np.float32)
    scores2 = reverse_negative((best2 >> PLACE_BITS).astype(np.int32)).view(np.float32)
    taken = np.zeros(k, np.int64)  # how many pairs each i has given
    next_scores = np.empty(k, np.float32)  # the score of the next pair of each i
    next_scores[0] = scores1[0] + scores2[0]
    in_use = 1
    place = (1 << PLACE_BITS) - 1
    for rank in range(k):
        i = 0
        for other in range(1, in_use):
            if next_scores[other] > next_scores[i]:
                i = other
        scores[rank] = next_scores[i]
        slots[rank] = (best1[i] & place) * subkeys + (best2[taken[i]] & place)
        taken[i] += 1
        if taken[i] < k:  # else this was the last pair of all
            next_scores[i] = scores1[i] + scores2[taken[i]]
        if i + 1 == in_use and in_use < k:
            next_scores[in_use] = scores1[in_use] + scores2[0]
            in_use += 1


# The signature spares a second compilation for halves that do not lie together in memory.
@compiled("(int32[:,:,:], int32[:,:,:], float32[:,:,::1], int64[:,:,::1])", parallel=True)
def search(bits1, bits2, scores, slots):
    """Fills ``scores`` and ``slots``, (T, H, K), from the bits of both halves' scores."""
    tokens, heads, subkeys = bits1.shape
    k = slots.shape[2]
    for t in prange(tokens):
        keys = np.empty(subkeys, np.int32)
        candidates = np.empty(subkeys + 1, np.int64)
        best1, best2 = np.empty(k, np.int64), np.empty(k, np.int64)
        for h in range(heads):
            select(bits1[t, h], keys, candidates, best1)
            select(bits2[t, h], keys, candidates, best2)
            pair(best1, best2, subkeys, scores[t, h], slots[t, h])


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
