"""Runs a function on two workers of one training, over gloo."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_workers(function, folder, *args, **options):
    """Calls ``function(rank, *args, **options)`` on each worker and returns both results.

    Args:
        function: of a module, so that a new process can import it; returns what torch can save.
        folder: an empty folder.
    """
    mp.spawn(_work, (function, str(folder), args, options), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _work(rank, function, folder, args, options):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.save(function(rank, *args, **options), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
