"""The workers of a training, and what each of them holds of a table that they split."""

from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.distributed as dist

from pkm_fairseq.refusals import RefusalError

ROWS_AT_A_TIME = 2**14


def count_workers():
    """Returns how many workers train together, 1 for a process by itself."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def add_up_workers(tensors):
    """Returns the sums over all workers of a dict of tensors, on the CPU."""
    if count_workers() > 1:
        tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        for tensor in tensors.values():
            dist.all_reduce(tensor)
    return {key: tensor.cpu() for key, tensor in tensors.items()}


def gather_counts(count, device, group=None):
    """Returns the number ``count`` of each worker of a group, None for all workers."""
    return torch.cat(_gather(torch.tensor([count], device=device), group)).tolist()


def gather_rows(tensor, counts, group=None):
    """Returns the rows of all workers of a group together, each of which has so many of them."""
    missing = tensor.new_zeros(max(counts) - len(tensor), *tensor.shape[1:])
    parts = _gather(torch.cat([tensor, missing]), group)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])


def _gather(tensor, group):
    """Returns the tensor of each worker, all of one shape."""
    tensors = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(tensors, tensor, group=group)
    return tensors


def shard_of(param):
    """Returns the ``Shard`` that a parameter is, None if it is whole."""
    return getattr(param, "pkm_shard", None)


def is_sparse(values):
    """Returns whether the gradient of a table will be sparse."""
    return getattr(values, "pkm_grad", "dense") == "sparse"


class Shard:
    """What a worker holds of a table whose columns are split, in equal parts, over N workers.

    N neighbours (workers 0 to N - 1, and so on) hold a table together; those of the same place
    among their neighbours hold the same part of it. All workers have to make a shard at once.

    Args:
        count: N.

    Raises:
        RefusalError: if the workers cannot be grouped so.
    """

    def __init__(self, count):
        workers = count_workers()
        if workers % count:
            raise RefusalError(
                f"--pkm-shards {count} does not divide the number of workers, {workers}: change "
                "it or --distributed-world-size"
            )
        self.count = count
        self.index = dist.get_rank() % count
        self._whole = {}

    @property
    def group(self):
        """Those who hold a table together; process groups are not kept, they cannot be copied."""
        return _groups(self.count)[0]

    @property
    def replicas(self):
        """Those who hold the same part of it, each of another copy."""
        return _groups(self.count)[1]

    def columns(self, tensor):
        """Returns this worker's columns of a whole table; what is no table is of all alike."""
        return tensor if tensor.dim() < 2 else tensor.chunk(self.count, dim=1)[self.index]

    def exchange(self, rows, send, receive):
        """Sends rows to each worker of the group, and returns what each of them sends.

        Args:
            rows: those for the first worker, then those for the second, and so on.
            send: how many are for each.
            receive: how many each of them sends.
        """
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), receive, send, group=self.group)
        return received

    def norm(self, norm):
        """Returns the norm of a table from that of this worker's part of it, tensors."""
        square = norm.square()
        dist.all_reduce(square, group=self.group)
        return square.sqrt()

    @contextmanager
    def gathered(self, tensors):
        """Has ``whole`` return these whole on the first worker, the one that saves.

        All workers have to enter it; only those of the first worker's group have work to do.
        """
        if dist.get_rank() < self.count:
            self._whole = {id(tensor): self._gather(tensor) for tensor in tensors}
        try:
            yield
        finally:
            self._whole = {}

    def whole(self, tensor):
        """Returns a tensor whole, in CPU memory, if this worker has gathered it, else None."""
        return self._whole.get(id(tensor))

    def _gather(self, tensor):
        if tensor.dim() < 2:
            return tensor
        # Some rows at a time: no device need have room for the whole.
        saves = dist.get_rank() == 0
        pieces = []
        for rows in tensor.detach().split(ROWS_AT_A_TIME):
            rows = rows.contiguous()
            parts = [torch.empty_like(rows) for _ in range(self.count)] if saves else None
            dist.gather(rows, parts, dst=0, group=self.group)
            if saves:
                pieces.append(torch.cat(parts, dim=1).cpu())
        return torch.cat(pieces) if saves else None


@lru_cache(maxsize=None)
def _groups(shards):
    """Makes the process groups of all workers, and returns this one's."""
    workers = [*range(count_workers())]
    together = [workers[first : first + shards] for first in range(0, len(workers), shards)]
    alike = [workers[place::shards] for place in range(shards)]
    return tuple(dist.new_subgroups_by_enumeration(ranks)[0] for ranks in (together, alike))
