"""Gradients of values that workers share by themselves: sparse ones, and those of shards."""

import torch
import torch.distributed as dist

from pkm_fairseq.distributed import count_workers, gather_counts, gather_rows, is_sparse


def no_gradient(values):
    """Returns a gradient of a table of which no row was touched, of the table's kind."""
    if not is_sparse(values):
        return torch.zeros_like(values)
    rows = torch.empty(1, 0, dtype=torch.int64, device=values.device)
    row_grads = values.new_empty(0, values.shape[1])
    return torch.sparse_coo_tensor(rows, row_grads, values.shape, check_invariants=False)


def average_gradient(grad, shard):
    """Returns the mean over all workers of a gradient, the same on each that holds these columns.

    Args:
        grad: dense or sparse; of a shard it is the sum over the workers that hold a table together.
        shard: its ``Shard``, None for a whole table.
    """
    group = shard.replicas if shard else None
    if count_workers() == 1:
        return grad
    if not grad.is_sparse:
        dist.all_reduce(grad, group=group)
        return grad.div_(count_workers())
    counts = gather_counts(grad._nnz(), grad.device, group)
    together = torch.sparse_coo_tensor(
        gather_rows(grad._indices()[0], counts, group).unsqueeze(0),
        gather_rows(grad._values(), counts, group) / count_workers(),
        grad.shape,
        check_invariants=False,
    )
    return together.coalesce()
