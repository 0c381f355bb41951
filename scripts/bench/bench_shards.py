#!/usr/bin/env python3
"""Measures what each worker needs and exchanges when workers split a table (--pkm-shards).

For each number of shards as many processes of this machine make a table, read it, and move it once
by pkm_adam's step. Memory is what each has resident more than before; bytes are all that went
through the loopback interface meanwhile, of the reads and their gradients: keep the machine quiet.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import Memory, make_parser, write_json

from pkm_fairseq.modules.value_table import ValueTable
from pkm_fairseq.optim.lazy_adam import LazyAdam

NUMBER = 4  # bytes of a number, and of a slot
PASSES = 10


def main():
    args = parse_args()
    results = [measure(args, shards) for shards in args.shards]
    for row in results:
        print(
            f"{row['shards']:3} shards  "
            f"MiB a worker: {row['mib']:.1f}, by formula {row['mib_by_formula']:.1f}  "
            f"bytes a token: {row['bytes']:.0f}, by formula {row['bytes_by_formula']}"
        )
    if args.json:
        write_json(args.json, args, results=results)


def parse_args():
    sizes = {"subkeys": 512, "value-dim": 256, "tokens": 2048, "heads": 4, "topk": 32}
    parser = make_parser(__doc__, {**sizes, "shards": [1, 2, 4]})
    parser.add_argument("--grad", choices=["dense", "sparse"], default="dense")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    return parser.parse_args()


def measure(args, shards):
    """Returns the figures of so many workers, measured and by formula."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (args, shards, folder), nprocs=shards)
        workers = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(shards)]
    table = args.subkeys**2 * args.value_dim * NUMBER / shards
    # Values, two moments, and the gradient: of all rows, or of those that were read.
    touched = 1 if args.grad == "dense" else workers[0]["touched"] / args.subkeys**2
    return {
        "shards": shards,
        "mib": sum(worker["resident"] for worker in workers) / shards / 2**20,
        "mib_by_formula": (3 + touched) * table / 2**20,
        "bytes": workers[0]["sent"] / PASSES / args.tokens / shards,
        "bytes_by_formula": bytes_of_token(shards, args.heads * args.topk, args.value_dim),
    }


def bytes_of_token(shards, reads, value_dim):
    """Returns the bytes sent for a token, forward and backward.

    To each of the other workers the slots and weights of its reads go, and part of the weights'
    gradients comes back from it; so do the columns it holds, and their gradients go to it.
    """
    return round((shards - 1) * NUMBER * (3 * reads + 2 * value_dim / shards))


def work(rank, args, shards, folder):
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=shards)
    Work(2**10, args, shards).update()  # whatever is loaded or compiled once
    memory = Memory()
    before = memory.now()
    work = Work(args.subkeys**2, args, shards)
    work.update()
    resident = memory.now() - before - work.nbytes
    dist.barrier()
    sent = loopback_bytes()
    for _ in range(PASSES):
        work.read()
    dist.barrier()
    result = {"resident": resident, "touched": work.touched, "sent": loopback_bytes() - sent}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class Work:
    """A worker's part of a table, its tokens and its optimizer."""

    def __init__(self, slots, args, shards):
        self.table = ValueTable(slots, args.value_dim, "normal", args.grad, shards=shards)
        self.table.weight.pkm_shard = self.table.shard
        self.optimizer = LazyAdam(self.table.parameters())
        self.slots = torch.randint(slots, (args.tokens, args.heads * args.topk))
        self.weights = torch.rand(self.slots.shape, requires_grad=True)
        self.nbytes = self.slots.nbytes + 2 * self.weights.nbytes  # and their gradient

    def read(self):
        self.table.weight.grad = None
        self.table(self.slots, self.weights).sum().backward()

    def update(self):
        self.read()
        self.optimizer.step()

    @property
    def touched(self):
        """How many rows the gradient has."""
        grad = self.table.weight.grad
        return grad._nnz() if grad.is_sparse else len(grad)


def loopback_bytes():
    """Returns the bytes sent through this machine's loopback interface so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    loopback = next(line for line in lines if line.strip().startswith("lo:"))
    return int(loopback.split(":")[1].split()[8])


if __name__ == "__main__":
    main()
