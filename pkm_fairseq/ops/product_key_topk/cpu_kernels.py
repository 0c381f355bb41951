"""The search in one sweep over the scores of both halves, compiled with numba.

T tokens, H heads, N sub-keys per half, K slots to select, G groups of sub-keys.

Scores are compared as integers that lie in the same order, each above its own place: one number
to compare and to move, and an order in which NaN and infinities are as good as any.
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
# The greatest of so many keys is known, so that to take one looks at these and at few others.
GROUP = 8


class KernelTopk(torch.autograd.Function):
    """Same as ``product_key_topk``, for scores of up to 32 bits."""

    @staticmethod
    def forward(ctx, scores1, scores2, k):
        follow_torch_threads()
        *shape, subkeys = scores1.shape
        tokens, heads = math.prod(shape[:-1]), math.prod(shape[-1:])
        halves = (half.float().reshape(tokens, heads, subkeys) for half in (scores1, scores2))
        scores = torch.empty(tokens, heads, k)
        slots = torch.empty(tokens, heads, k, dtype=torch.int64)
        search(*(half.detach().numpy() for half in halves), scores.numpy(), slots.numpy())
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
def key_of(score, place):
    """Returns an integer that compares like the score, above its place."""
    bits = np.float32(score).view(np.int32)
    in_order = np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.int64(in_order) << PLACE_BITS | place


@compiled()
def arrange(scores, keys, greatest):
    """Fills ``keys``, (G * GROUP,), as far as there are scores, and ``greatest``, (G,)."""
    for place in range(len(scores)):
        keys[place] = key_of(scores[place], place)
    for group in range(len(greatest)):
        top = TAKEN
        for place in range(group * GROUP, (group + 1) * GROUP):
            top = max(top, keys[place])
        greatest[group] = top


@compiled()
def take(keys, greatest):
    """Takes the greatest key out and returns its place."""
    top = greatest[0]
    for group in range(1, len(greatest)):
        top = max(top, greatest[group])
    place = top & PLACES
    group = place // GROUP
    rest = TAKEN
    for other in range(group * GROUP, (group + 1) * GROUP):
        rest = max(rest, TAKEN if keys[other] == top else keys[other])
    greatest[group] = rest
    keys[place] = TAKEN
    return place


@compiled()
def pair(half1, half2, keys, greatest, places, taken, pairs, scores, slots):
    """Fills ``scores`` and ``slots``, (K,), with the best pairs, best first.

    With both halves sorted, the pair at ranks (i, j) is beaten or equalled by those at (i - 1, j)
    and (i, j - 1). So the next best pair is always the first that is left of some i, and no i is
    of use before i - 1 has given its first pair. Each half is sorted as far as ranks are of use,
    which is rarely far. ``places`` of the ranks, (2, K), how many pairs each i has ``taken``, (K,),
    and the next of its ``pairs``, (K,), are room to work in.
    """
    k, subkeys = len(slots), len(half1)
    places[0, 0], places[1, 0] = take(keys[0], greatest[0]), take(keys[1], greatest[1])
    pairs[0], taken[0] = key_of(half1[places[0, 0]] + half2[places[1, 0]], 0), 0
    ranks1 = ranks2 = 1  # that are sorted
    for rank in range(k):
        best = pairs[0]
        for other in range(1, ranks1):
            best = max(best, pairs[other])
        i = best & PLACES
        j = taken[i]
        place1, place2 = places[0, i], places[1, j]
        scores[rank] = half1[place1] + half2[place2]
        slots[rank] = place1 * subkeys + place2
        taken[i] = j + 1
        if j + 1 == ranks2 and ranks2 < k:
            places[1, ranks2] = take(keys[1], greatest[1])
            ranks2 += 1
        pairs[i] = TAKEN  # unless i has another
        if j + 1 < k:
            pairs[i] = key_of(half1[place1] + half2[places[1, j + 1]], i)
        if i + 1 == ranks1 and ranks1 < k:
            place1 = take(keys[0], greatest[0])
            places[0, ranks1], taken[ranks1] = place1, 0
            pairs[ranks1] = key_of(half1[place1] + half2[places[1, 0]], ranks1)
            ranks1 += 1


# The signature spares a second compilation for halves that do not lie together in memory.
@compiled("(float32[:,:,:], float32[:,:,:], float32[:,:,::1], int64[:,:,::1])", parallel=True)
def search(halves1, halves2, scores, slots):
    """Fills ``scores`` and ``slots``, (T, H, K), from the scores of both halves, (T, H, N)."""
    tokens, heads, subkeys = halves1.shape
    k = slots.shape[2]
    groups = (subkeys + GROUP - 1) // GROUP
    for t in prange(tokens):
        keys = np.full((2, groups * GROUP), TAKEN)
        greatest = np.empty((2, groups), np.int64)
        places = np.empty((2, k), np.int64)
        taken, pairs = np.empty(k, np.int64), np.empty(k, np.int64)
        for h in range(heads):
            half1, half2 = halves1[t, h], halves2[t, h]
            arrange(half1, keys[0], greatest[0])
            arrange(half2, keys[1], greatest[1])
            pair(half1, half2, keys, greatest, places, taken, pairs, scores[t, h], slots[t, h])


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
