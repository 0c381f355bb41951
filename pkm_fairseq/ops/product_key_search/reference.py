"""The search by its definition: score every slot, keep the best."""

import torch

from ..product_key_topk.reference import reference_product_key_topk


def reference_product_key_search(query, subkeys, k):
    """Same as ``product_key_search``, in time and memory that grow with the slots."""
    scores1, scores2 = torch.einsum("thcq,hcnq->cthn", query, subkeys)  # (T, H, N) each
    return reference_product_key_topk(scores1, scores2, k)
