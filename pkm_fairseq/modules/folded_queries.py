"""Scores of sub-keys from the tokens themselves, without queries.

T tokens, D width of a token, H heads, N sub-keys per half, Q half the width of a query.

Once the norm's statistics are known, a query is an affine function of its token, and a score is
linear in the query. So to each sub-key belongs another of D + 1 numbers, the last for what does not
depend on the token, which scores tokens as the sub-key scores their queries. Where queries are wide
and tokens are not, to make these takes less time than to make and normalise the queries.
"""

import torch
from torch import nn

from pkm_fairseq.ops.cpu import use_cpu_kernels

from .query_norm import QueryBatchNorm

# How many times fewer products it has to take: it may take some more, as all scores are one product
# and no queries are written, normalised and read.
GAIN = 0.9


def can_fold(memory, tokens):
    """Returns whether a ``ProductKeyMemory`` gets the same scores from ``tokens``, (T, D), sooner.

    Only with float32 on the CPU, where that was measured, and where nothing else is to see or to
    change the queries.
    """
    query, norm = memory.query, memory.query_norm
    return (
        (type(query), type(norm)) == (nn.Linear, QueryBatchNorm)
        and query.bias is not None
        and memory.search.cosine is None
        and not (memory.training and (norm.sync or memory.query_dropout.p))
        and not any(part._forward_hooks or part._forward_pre_hooks for part in (query, norm))
        and {tokens.dtype, query.weight.dtype, memory.subkeys.dtype} == {torch.float32}
        and use_cpu_kernels(tokens)
        and not torch.is_autocast_enabled("cpu")
        and saves_products(tokens.shape, memory.subkeys.shape, memory.training)
    )


def saves_products(tokens_shape, subkeys_shape, training):
    """Returns whether folding takes fewer products, counted for one half of one head."""
    (t, d), (heads, halves, n, q) = tokens_shape, subkeys_shape
    passes = 3 if training else 1  # of all but the scores, whose backward pass knows few sub-keys
    statistics = t * d * d / (heads * halves) if training else 0
    folded = passes * (n * q * d + statistics) + t * n * d
    return GAIN * folded < passes * t * d * q + t * n * q


def fold(memory, tokens):
    """Returns what to search with: tokens, (T, 1, 1, D + 1), and sub-keys, (H, 2, N, D + 1)."""
    heads, _, _, half = memory.subkeys.shape
    weight, bias = memory.query_norm.fold(tokens, memory.query.weight, memory.query.bias)
    keys = memory.subkeys @ weight.view(heads, 2, half, -1)  # (H, 2, N, D)
    constants = memory.subkeys @ bias.view(heads, 2, half, 1)  # (H, 2, N, 1)
    tokens = torch.cat([tokens, tokens.new_ones(len(tokens), 1)], 1)  # (T, D + 1)
    return tokens[:, None, None], torch.cat([keys, constants], -1)
