"""The weighted sum of rows of a table whose columns are split over workers.

Of this worker: T tokens, n rows each of them selected. Of all N workers that hold the table
together: G tokens. D value-dim.
"""

import torch
from torch.autograd.function import once_differentiable

from pkm_fairseq.distributed import gather_counts, gather_rows


def sharded_bag(bag, slots, weights, shard):
    """Same as ``weighted_bag``, with each worker's columns for the tokens of all.

    Slots and weights go to all workers of the group, and columns of the sums come back; in the
    backward pass, columns of the gradient go out, and parts of the weights' gradients come back.
    So a worker receives, for each of its own tokens and in the forward pass, (N - 1) n slots of 4
    bytes and as many weights, and sends and receives (N - 1) D / N numbers; in the backward pass
    the same without the slots. All workers of the group have to run each pass.

    Args:
        bag: reads this worker's columns: slots (G, n) and weights (G, n) -> (G, D / N).
        slots, weights: as given to ``weighted_bag``, (T, n) each.
        shard: a ``Shard``.

    Returns:
        (T, D), differentiable, once, in ``weights`` and in what ``bag`` reads.
    """
    counts = gather_counts(len(slots), slots.device, shard.group)
    slots = gather_rows(slots.int(), counts, shard.group)  # (G, n)
    weights = GatherWeights.apply(weights, counts, shard)  # (G, n)
    return JoinColumns.apply(bag(slots, weights), counts, shard)


class GatherWeights(torch.autograd.Function):
    """Gathers the weights of all workers' tokens."""

    @staticmethod
    def forward(ctx, weights, counts, shard):
        ctx.counts, ctx.shard = counts, shard
        return gather_rows(weights, counts, shard.group)  # (G, n)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        own = ctx.counts[ctx.shard.index]
        parts = ctx.shard.exchange(grad, ctx.counts, [own] * ctx.shard.count)  # (N * T, n)
        return parts.unflatten(0, (ctx.shard.count, own)).sum(0), None, None


class JoinColumns(torch.autograd.Function):
    """Gives each worker all columns of its own tokens' sums."""

    @staticmethod
    def forward(ctx, columns, counts, shard):
        ctx.counts, ctx.shard = counts, shard
        own = counts[shard.index]
        parts = shard.exchange(columns, counts, [own] * shard.count)  # (N * T, D / N)
        return parts.unflatten(0, (shard.count, own)).transpose(0, 1).flatten(1)  # (T, D)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        own = ctx.counts[ctx.shard.index]
        parts = grad.unflatten(1, (ctx.shard.count, -1)).transpose(0, 1).flatten(0, 1)
        return ctx.shard.exchange(parts, [own] * ctx.shard.count, ctx.counts), None, None
