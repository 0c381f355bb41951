"""The search and its gradients, which cost what the selected slots cost.

T tokens, H heads, N sub-keys per half, Q half the width of a query, K slots to select.
"""

from functools import partial

import torch
from torch.autograd.function import once_differentiable

from ..cpu import use_cpu_kernels
from ..gpu import use_gpu_kernels
from ..product_key_topk import product_key_topk
from .eager import eager_search_gradients

# Tokens are handled in pieces of about this many scores, so that not all scores are held at once,
# and on a CPU the memory of one piece serves the next; but a product of few tokens takes longer.
PIECE = 2**20
LEAST_TOKENS = 256
# The candidates for more slots do not fit into the registers of a GPU's program.
MOST_GPU_SLOTS = 48


class SlotSearch(torch.autograd.Function):
    """Same as ``product_key_search``; its backward pass knows only the selected slots."""

    @staticmethod
    def forward(ctx, query, subkeys, k, softmax):
        form = kernel_search if kernels_serve(query, subkeys) else search_in_pieces
        ctx.gpu_dtype = None
        if use_gpu_kernels(query) and use_gpu_kernels(subkeys) and k <= MOST_GPU_SLOTS:
            from .triton_kernels import dtype_of_product
            from .triton_kernels import kernel_search as form

            ctx.gpu_dtype = dtype_of_product(query, subkeys)
        found, slots = form(query, subkeys, k, softmax)  # (T, H, K) each
        ctx.save_for_backward(query, subkeys, slots, found if softmax else None)
        ctx.mark_non_differentiable(slots)
        return found, slots

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_found, _):
        query, subkeys, slots, weights = ctx.saved_tensors
        if weights is not None:
            grad_found = weights * (grad_found - (weights * grad_found).sum(-1, keepdim=True))
        form = eager_search_gradients
        if ctx.gpu_dtype is not None:
            from .triton_kernels import kernel_search_gradients

            form = partial(kernel_search_gradients, dtype=ctx.gpu_dtype)
        elif query.dtype == subkeys.dtype == torch.float32 and use_cpu_kernels(query):
            from .cpu_kernels import kernel_search_gradients as form
        return (*form(query, subkeys, slots, grad_found), None, None)


def kernels_serve(query, subkeys):
    """Returns whether the CPU kernels search, for which all parts of a token may share a query."""
    return (
        query.dtype == subkeys.dtype == torch.float32
        and use_cpu_kernels(query)
        and not use_gpu_kernels(query)
        and not torch.is_autocast_enabled("cpu")
    )


def count_tokens(subkeys):
    """Returns how many tokens a piece has."""
    return max(LEAST_TOKENS, PIECE // subkeys[..., 0].numel())


def search_in_pieces(query, subkeys, k, softmax):
    """Same as ``product_key_search``, a piece of the tokens after the other."""
    keys = subkeys.flatten(0, 1).transpose(1, 2)  # (H * 2, Q, N)
    found = []
    for tokens in query.flatten(1, 2).transpose(0, 1).split(count_tokens(subkeys), 1):
        # torch.einsum would copy the sub-keys.
        scores = torch.bmm(tokens, keys).unflatten(0, (-1, 2))  # (H, 2, T, N)
        found.append(product_key_topk(*scores.permute(1, 2, 0, 3), k))
    scores, slots = (torch.cat(pieces) for pieces in zip(*found))  # (T, H, K) each
    return weighed(scores, softmax), slots


def kernel_search(query, subkeys, k, softmax):
    """Same as ``search_in_pieces``; ``query`` may be (T, 1, 1, Q), too."""
    from ..product_key_topk.cpu_kernels import kernel_topk

    heads, _, n, _ = subkeys.shape
    keys = subkeys.flatten(0, 1).transpose(1, 2)  # (H * 2, Q, N)
    found = query.new_empty(len(query), heads, k)
    slots = torch.empty_like(found, dtype=torch.int64)
    pieces = (x.split(count_tokens(subkeys)) for x in (query.flatten(1, 2), found, slots))
    for tokens, *out in zip(*pieces):  # (T, H * 2 or 1, Q)
        if tokens.shape[1] == 1:
            scores = tokens[:, 0] @ subkeys.flatten(0, 2).t()
        else:
            scores = tokens.new_empty(len(tokens), 2 * heads, n)
            torch.bmm(tokens.transpose(0, 1), keys, out=scores.transpose(0, 1))
        kernel_topk(scores.view(len(tokens), heads, 2, n), *out)
    return weighed(found, softmax), slots


def weighed(scores, softmax):
    """Returns the scores of slots, (T, H, K), or their softmax."""
    if not softmax:
        return scores
    # Over few, close scores: float32 or better under any dtype of the model.
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
