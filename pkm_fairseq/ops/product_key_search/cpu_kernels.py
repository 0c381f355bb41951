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
    sum_subkeys(
        keys.numpy(),
        slots.numpy(),
        grad_scores.float().contiguous().numpy(),
        places,
        sums,
        counts,
        grad_query.numpy(),
    )
    sum_queries(rows.numpy(), places, sums, counts, grad_subkeys.numpy())
    return grad_query.view(query.shape), grad_subkeys.view(subkeys.shape)


# Both index their tables: to make an array of each row would take as long as to add it.
@compiled(parallel=True, fastmath={"contract"})
def sum_subkeys(subkeys, slots, grad_scores, places, sums, counts, grad_query):
    """Fills ``grad_query``, a row for each query, and which sub-keys it adds up.

    The slots of a token have few distinct sub-keys. Their ``places`` and the ``sums`` of their
    gradients, (T, 2 * H, K) each, are filled as far as ``counts``, (T, 2 * H), says.
    """
    tokens, heads, topk = slots.shape
    subkeys_total, width = subkeys.shape[1:]
    shared = len(grad_query) == tokens
    for token in prange(tokens):
        t = np.int64(token)
        totals = np.zeros((2, subkeys_total), np.float32)
        for part in range(2 * heads):
            half, count = part % 2, 0
            for rank in range(topk):
                slot = slots[t, part // 2, rank]
                place = slot // subkeys_total
                if half == 1:
                    place = slot - place * subkeys_total
                if totals[half, place] == 0:
                    places[t, part, count] = place
                    count += 1
                totals[half, place] += grad_scores[t, part // 2, rank]
            counts[t, part] = count
            row = t if shared else t * 2 * heads + part
            if part == 0 or not shared:
                grad_query[row] = 0
            for i in range(count):
                place = places[t, part, i]
                total = totals[half, place]
                sums[t, part, i] = total
                totals[half, place] = 0
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
