"""The search in two stages, as torch operations.

N sub-keys per half, K slots to select, C candidate pairs.
"""

from functools import lru_cache

import torch


@lru_cache(maxsize=None)
def candidate_pairs(k, device):
    """Returns the ranks ``i`` and ``j`` of every pair that can be among the ``k`` best, (C,) each.

    With both halves sorted, the pair at ranks (i, j) is beaten or equalled by every pair at ranks
    (i' <= i, j' <= j). There are (i + 1)(j + 1) of those, itself included, so a pair with more than
    k of them is never needed: of the 1,024 pairs at k = 32, 119 remain.
    """
    pairs = [(i, j) for i in range(k) for j in range(k // (i + 1))]
    return torch.tensor(pairs, device=device).t().contiguous().unbind()


def eager_product_key_topk(scores1, scores2, k):
    """Same as ``product_key_topk``, from the best ``k`` sub-keys of each half."""
    # The choice of slots has no gradient; their scores are looked up again below, which spares the
    # backward pass all the candidates that were not selected.
    with torch.no_grad():
        best1, rows = scores1.topk(k)  # (..., K)
        best2, columns = scores2.topk(k)  # (..., K)
        i, j = candidate_pairs(k, scores1.device)
        _, pairs = (best1[..., i] + best2[..., j]).topk(k)  # (..., K), each below C
        rows = rows.gather(-1, i[pairs])  # (..., K)
        columns = columns.gather(-1, j[pairs])  # (..., K)
    scores = scores1.gather(-1, rows) + scores2.gather(-1, columns)  # (..., K)
    return scores, rows * scores1.shape[-1] + columns
