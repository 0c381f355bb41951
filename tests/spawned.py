"""Runs a function on several workers of one training, over gloo."""

import gc

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.commands import forked  # noqa: F401 - has the server of forks import what takes long


def on_workers(workers, function, folder, *args, **options):
    """Calls ``function(rank, *args, **options)`` on each worker and returns all results.

    Args:
        workers: how many.
        function: of a module, so that a new process can import it; returns what torch can save.
        folder: an empty folder.
    """
    given = workers, function, str(folder), args, options
    mp.start_processes(_work, given, nprocs=workers, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(workers)]


def _work(rank, workers, function, folder, args, options):
    gc.freeze()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers
    )
    torch.save(function(rank, *args, **options), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
