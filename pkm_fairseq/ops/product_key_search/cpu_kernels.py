"""The gradients of the search, for the selected slots alone, compiled with numba.

T tokens, H heads, N sub-keys per half, Q half the width of a query, K selected slots. Parts are the
halves of heads, first those of the first; queries have one row for each token and part, or one for
each token.
"""

import numpy as np
import torch
from numba import prange

from ..cpu import compiled, follow_torch_threads


def kernel_search_gradients(query, subkeys, slots, grad_scores):
    """Same as ``eager_search_gradients``, in float32; ``query`` may be (T, 1, 1, Q), too."""
    follow_torch_threads()
    rows = query.detach().flatten(0, 2).contiguous()
    keys = subkeys.detach().flatten(0, 1).contiguous()
    grad_query, grad_subkeys = torch.empty_like(rows), torch.empty_like(keys)
    tokens, heads, topk = slots.shape
    places = np.empty((tokens, 2 * heads, topk), np.int32)
    sums = np.empty((tokens, 2 * heads, topk), np.float32)
    counts = np.empty((tokens, 2 * heads), np.int64)
    grads = grad_scores.float().contiguous().numpy()
    find_subkeys(slots.numpy(), grads, keys.shape[1], places, sums, counts)
    sum_subkeys(keys.numpy(), places, sums, counts, grad_query.numpy())
    sum_queries(rows.numpy(), places, sums, counts, grad_subkeys.numpy())
    return grad_query.view(query.shape), grad_subkeys.view(subkeys.shape)


@compiled(parallel=True)
def find_subkeys(slots, grad_scores, subkeys_total, places, sums, counts):
    """Finds the distinct sub-keys of each token's slots, which are few.

    Their ``places`` and the ``sums`` of their gradients, (T, 2 * H, K) each, are filled as far as
    ``counts``, (T, 2 * H), says.
    """
    tokens, heads, topk = slots.shape
    n = np.uint64(subkeys_total)
    for t in prange(tokens):
        totals = np.zeros((2, subkeys_total), np.float32)
        for head in range(heads):
            part1, part2 = 2 * head, 2 * head + 1
            count1 = count2 = 0
            for rank in range(topk):
                slot = np.uint64(slots[t, head, rank])
                place1 = slot // n
                place2 = slot - place1 * n
                # Written whether new or not, and if not, the next one is written over it: a branch
                # here is one that no processor can foresee. A sub-key whose sum comes back to zero
                # is listed twice, the second time with zero.
                places[t, part1, count1], places[t, part2, count2] = place1, place2
                count1 += totals[0, place1] == 0
                count2 += totals[1, place2] == 0
                totals[0, place1] += grad_scores[t, head, rank]
                totals[1, place2] += grad_scores[t, head, rank]
            counts[t, part1], counts[t, part2] = count1, count2
            for half in range(2):
                part = 2 * head + half
                for i in range(counts[t, part]):
                    place = places[t, part, i]
                    sums[t, part, i] = totals[half, place]
                    totals[half, place] = 0


# Both index their tables: to make an array of each row would take as long as to add it.
@compiled(parallel=True, fastmath={"contract"})
def sum_subkeys(subkeys, places, sums, counts, grad_query):
    """Fills ``grad_query``, a row for each query."""
    tokens, parts = counts.shape
    width = subkeys.shape[2]
    shared = len(grad_query) == tokens
    for token in prange(tokens):
        t = np.int64(token)
        for part in range(parts):
            row = t if shared else t * parts + part
            if part == 0 or not shared:
                grad_query[row] = 0
            for i in range(counts[t, part]):
                place, total = places[t, part, i], sums[t, part, i]
                for q in range(width):
                    grad_query[row, q] += total * subkeys[part, place, q]


@compiled(parallel=True, fastmath={"contract"})
def sum_queries(query, places, sums, counts, grad_subkeys):
    """Fills ``grad_subkeys``, (2 * H, N, Q), each part in one thread, token by token."""
    tokens, parts = counts.shape
    width = query.shape[1]
    shared = len(query) == tokens
    for each in prange(parts):
        part = np.int64(each)
        grad_subkeys[part] = 0
        for t in range(tokens):
            row = t if shared else t * parts + part
            for i in range(counts[t, part]):
                place, total = places[t, part, i], sums[t, part, i]
                for q in range(width):
                    grad_subkeys[part, place, q] += total * query[row, q]
