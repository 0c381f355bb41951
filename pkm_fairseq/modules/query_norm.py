"""Normalisation of the queries.

T tokens, H heads, Q width of a query.
"""

from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from pkm_fairseq.distributed import count_workers
from pkm_fairseq.refusals import RefusalError


class QueryBatchNorm(nn.Module):
    """Normalises each number of a query over a batch (Lample et al. 2019, section 3.1).

    It differs from ``torch.nn.BatchNorm1d`` in what a memory inside fairseq needs: statistics of
    float32 or better under any dtype of the model, no integer buffer (fairseq's EMA cannot average
    one), batches of no or one token, and forward passes without gradients in training, which leave
    the running statistics alone: activation checkpointing makes one such pass before the real one.

    Args:
        heads: queries per token.
        query_dim: numbers per query.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics.
        sync: whether all workers normalise by the statistics of their batches together. They all
            have to run each forward and backward pass then.
    """

    def __init__(self, heads, query_dim, *, eps=1e-5, momentum=0.1, sync=False):
        super().__init__()
        self.sync = sync
        self.update_stats = True  # False while a batch runs that is to enter no statistics
        self.frozen = False
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(heads * query_dim))
        self.bias = nn.Parameter(torch.zeros(heads * query_dim))
        self.register_buffer("running_mean", torch.zeros(heads * query_dim))
        self.register_buffer("running_var", torch.ones(heads * query_dim))

    def reset_parameters(self):
        """Makes the norm as it was when new."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def freeze(self):
        """From now on does in training, too, what it does in evaluation."""
        self.frozen = True
        self.eval()

    @property
    def wanders(self):
        """Whether the running statistics change in training."""
        return not self.frozen

    @contextmanager
    def by_own_batch(self):
        """Has evaluation normalise each batch by its own statistics inside the block."""
        before = self.training, self.sync, self.update_stats
        self.training, self.sync, self.update_stats = True, False, False
        try:
            yield
        finally:
            self.training, self.sync, self.update_stats = before

    def train(self, mode=True):
        return super().train(mode and not self.frozen)

    def forward(self, query):
        """Normalises ``query``, (T, H, Q), and returns it in its own dtype.

        In evaluation, and for a batch of fewer than two tokens, which has no variance, with the
        running statistics; else with those of the batch.
        """
        x = query.flatten(1)  # (T, H * Q)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.sync and self.training and count_workers() > 1:
            return self._normalise_together(x).view_as(query).to(query.dtype)
        use_batch = self._uses_batch(x)
        use_running = not use_batch or self._counts()
        x = F.batch_norm(
            x,
            self.running_mean.to(x.dtype) if use_running else None,
            self.running_var.to(x.dtype) if use_running else None,
            self.weight.to(x.dtype),
            self.bias.to(x.dtype),
            training=use_batch,
            momentum=self.momentum,
            eps=self.eps,
        )
        return x.view_as(query).to(query.dtype)

    def _uses_batch(self, tokens):
        return self.training and len(tokens) > 1

    def _counts(self):
        """Returns whether a batch enters the running statistics."""
        return torch.is_grad_enabled() and self.update_stats

    def fold(self, tokens, weight, bias):
        """Returns the weight and bias of a linear layer that does what another and this norm do.

        The queries' statistics follow from the mean and the covariance of the tokens.

        Args:
            tokens: what the layers get, (T, D), float32 or better.
            weight, bias: of the other layer, (H * Q, D) and (H * Q,).
        """
        mean, var = self.running_mean, self.running_var
        if self._uses_batch(tokens):
            centre = tokens.mean(0)  # (D,)
            centred = tokens - centre
            covariance = centred.t() @ centred / len(tokens)  # (D, D)
            mean = weight @ centre + bias  # (H * Q,)
            # Where it is zero, rounding may leave less.
            var = (weight @ covariance * weight).sum(1).clamp(min=0)  # (H * Q,)
            if self._counts():
                self._update(mean.detach(), var.detach(), len(tokens))
        scale = self.weight * (var + self.eps).rsqrt()
        return scale.unsqueeze(1) * weight, self.bias + scale * (bias - mean)

    def _update(self, mean, var, tokens):
        """Takes the statistics of a batch over into the running ones."""
        unbiased = var * tokens / (tokens - 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)

    def _normalise_together(self, x):
        """Normalises ``x``, (T, H * Q), by the statistics of all workers' tokens."""
        own = x if self.update_stats else x[:0]
        sums = SumOverWorkers.apply(torch.cat([own.sum(0), x.new_tensor([len(own)])]))
        tokens = sums[-1].detach()
        mean = sums[:-1] / tokens.clamp(min=1)  # (H * Q,)
        var = SumOverWorkers.apply((own - mean).square().sum(0)) / tokens.clamp(min=1)  # (H * Q,)
        if tokens < 2:
            mean, var = self.running_mean.to(x.dtype), self.running_var.to(x.dtype)
        elif torch.is_grad_enabled():
            self._update(mean.detach(), var.detach(), tokens)
        x = (x - mean) * (var + self.eps).rsqrt()
        return x * self.weight.to(x.dtype) + self.bias.to(x.dtype)

    @torch.no_grad()
    def average_over_workers(self):
        """Makes the running statistics the mean of all workers', who all have to call this."""
        if not self.sync and not self.frozen and count_workers() > 1:
            for statistic in (self.running_mean, self.running_var):
                dist.all_reduce(statistic)
                statistic /= count_workers()

    def _apply(self, fn, *args, **kwargs):
        """Moves the module as ``fn`` says, but never rounds the statistics below float32."""
        exact = dict(self.named_buffers())
        super()._apply(fn, *args, **kwargs)
        for name, buffer in self.named_buffers():
            dtype = torch.promote_types(buffer.dtype, torch.float32)
            setattr(self, name, exact[name].to(buffer.device, dtype))
        return self


class SumOverWorkers(torch.autograd.Function):
    """Adds up a tensor over all workers, each of which gets the sum; backward likewise."""

    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return SumOverWorkers.forward(ctx, grad)


def build_query_norm(kind, heads, query_dim, sync):
    """Builds the query norm of ``kind`` batch, layer or none, for queries (T, H, Q).

    Layer normalises each head's query by itself. ``sync`` is only for batch.
    """
    if kind == "batch":
        return QueryBatchNorm(heads, query_dim, sync=sync)
    if kind == "layer":
        return nn.LayerNorm(query_dim)
    if kind == "none":
        return nn.Identity()
    raise RefusalError(f"query_norm={kind} is not batch, layer or none: change --pkm-query-norm")
