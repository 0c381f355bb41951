"""Sparse gradients of several workers."""

import torch
import torch.distributed as dist

from pkm_fairseq.workers import count_workers


def no_rows(values):
    """Returns a sparse gradient of a table of which no row was touched."""
    rows = torch.empty(1, 0, dtype=torch.int64, device=values.device)
    row_grads = values.new_empty(0, values.shape[1])
    return torch.sparse_coo_tensor(rows, row_grads, values.shape, check_invariants=False)


def average_rows(grad):
    """Returns the mean over all workers of a sparse gradient, the same on each of them."""
    workers = count_workers()
    if workers == 1:
        return grad
    counts = _gather(torch.tensor([grad._nnz()], device=grad.device), workers)
    most = int(max(counts))
    rows = _gather(_pad(grad._indices()[0], most), workers)
    row_grads = _gather(_pad(grad._values(), most), workers)
    together = torch.sparse_coo_tensor(
        torch.cat([part[:count] for part, count in zip(rows, counts)]).unsqueeze(0),
        torch.cat([part[:count] for part, count in zip(row_grads, counts)]) / workers,
        grad.shape,
        check_invariants=False,
    )
    return together.coalesce()


def _gather(tensor, workers):
    """Returns the tensor of each worker, all of one shape."""
    tensors = [torch.empty_like(tensor) for _ in range(workers)]
    dist.all_gather(tensors, tensor)
    return tensors


def _pad(tensor, rows):
    """Adds rows at the end."""
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
