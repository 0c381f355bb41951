"""The gradients of the search in one pass over the selected slots, compiled with numba.

T tokens, H heads, N sub-keys per half, Q half the width of a query, K selected slots.
"""

import numpy as np
import torch
from numba import prange

from ..cpu import compiled, follow_torch_threads


def kernel_search_gradients(query, subkeys, slots, grad_scores):
    """Same as ``eager_search_gradients``, in float32."""
    follow_torch_threads()
    query, subkeys = query.detach().contiguous(), subkeys.detach().contiguous()
    grad_query, grad_subkeys = torch.empty_like(query), torch.empty_like(subkeys)
    sum_selected(
        query.numpy(),
        subkeys.numpy(),
        slots.numpy(),
        grad_scores.float().contiguous().numpy(),
        grad_query.numpy(),
        grad_subkeys.numpy(),
    )
    return grad_query, grad_subkeys


@compiled(parallel=True)
def sum_selected(query, subkeys, slots, grad_scores, grad_query, grad_subkeys):
    """Fills ``grad_query``, (T, H, 2, Q), and ``grad_subkeys``, (H, 2, N, Q).

    One thread handles one half of one head, whose sub-keys and gradients lie close together, token
    by token.
    """
    tokens, heads, topk = slots.shape
    subkeys_total, width = subkeys.shape[2:]
    for part in prange(2 * heads):
        head, half = part // 2, part % 2
        grad_subkeys[head, half] = 0
        # The slots of a token have few distinct sub-keys: their gradients are summed first.
        sums = np.zeros(subkeys_total, np.float32)
        places = np.empty(topk, np.int64)
        for t in range(tokens):
            for rank in range(topk):
                slot = slots[t, head, rank]
                places[rank] = slot // subkeys_total if half == 0 else slot % subkeys_total
                sums[places[rank]] += grad_scores[t, head, rank]
            half_query, grad_half_query = query[t, head, half], grad_query[t, head, half]
            grad_half_query[:] = 0
            for place in places:
                weight = sums[place]
                if weight != 0:  # else it has been added, or adds nothing
                    sums[place] = 0
                    subkey, grad_subkey = (
                        subkeys[head, half, place],
                        grad_subkeys[head, half, place],
                    )
                    for q in range(width):
                        grad_half_query[q] += weight * subkey[q]
                        grad_subkey[q] += weight * half_query[q]
