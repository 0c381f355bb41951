"""The search and its gradients, which cost what the selected slots cost.

T tokens, H heads, N sub-keys per half, Q half the width of a query, K slots to select.
"""

import torch
from torch.autograd.function import once_differentiable

from ..cpu import use_cpu_kernels
from ..product_key_topk import product_key_topk
from .eager import eager_search_gradients

# Tokens are handled in pieces of this many scores, so that not all scores are held at once, and
# on a CPU the memory of one piece serves the next.
PIECE = 2**22


class SlotSearch(torch.autograd.Function):
    """Does what ``product_key_search`` does; its backward pass knows only the selected slots."""

    @staticmethod
    def forward(ctx, query, subkeys, k):
        step = max(1, PIECE // subkeys[..., 0].numel())
        found = []
        for tokens in query.split(step):
            scores1, scores2 = torch.einsum("thcq,hcnq->cthn", tokens, subkeys)  # (T, H, N) each
            found.append(product_key_topk(scores1, scores2, k))
        scores, slots = (torch.cat(pieces) for pieces in zip(*found))  # (T, H, K) each
        ctx.save_for_backward(query, subkeys, slots)
        ctx.mark_non_differentiable(slots)
        return scores, slots

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_scores, _):
        query, subkeys, slots = ctx.saved_tensors
        form = eager_search_gradients
        if query.dtype == subkeys.dtype == torch.float32 and use_cpu_kernels(query):
            from .cpu_kernels import kernel_search_gradients as form
        return (*form(query, subkeys, slots, grad_scores), None)
