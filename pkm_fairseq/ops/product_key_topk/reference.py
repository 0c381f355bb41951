"""The search by its definition: score every slot, keep the best."""


def reference_product_key_topk(scores1, scores2, k):
    """Same as ``product_key_topk``, in time and memory that grow with the slots."""
    scores = (scores1.unsqueeze(-1) + scores2.unsqueeze(-2)).flatten(-2)  # (..., N * N)
    return scores.topk(k)
