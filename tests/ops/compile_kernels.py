"""Compiles the GPU kernels as the operations launch them, for a GPU that need not be there.

Prints the shared memory of each, in bytes. Its arguments are the compute capability, 80 or 90, and
the dtypes of a compact table and of all else.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from pkm_fairseq.ops import new_row_state
from pkm_fairseq.ops.product_key_search.triton_kernels import (
    kernel_search,
    kernel_search_gradients,
)
from pkm_fairseq.ops.row_adam.triton_kernels import kernel_row_adam_
from pkm_fairseq.ops.weighted_bag.triton_kernels import kernel_bag, kernel_touched_row_gradients

ADAM = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0, "scale": 1.0}


class AbsentGPU:
    """Says to triton what it asks about a GPU before it compiles."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(kernel, grid):
    """Takes the place of a launch."""

    def launch(*args, **options):
        compiled = kernel.run(*args, grid=grid, warmup=True, **options)
        print(compiled.metadata.name, compiled.metadata.shared)

    return launch


def main():
    capability, compact, dtype = sys.argv[1:]
    compact, dtype = getattr(torch, compact), getattr(torch, dtype)
    driver.set_active(AbsentGPU(int(capability)))
    JITFunction.__getitem__ = compile_only
    slots, weights = torch.zeros(2, 128, dtype=torch.int64), torch.zeros(2, 128)
    kernel_bag(torch.zeros(4, 768, dtype=compact), slots, weights)
    values = torch.zeros(4, 768, dtype=dtype)
    upstream = torch.zeros(2, 768, dtype=dtype)
    kernel_bag(values, slots, weights, dtype)
    rows, row_grads, _ = kernel_touched_row_gradients(values, slots, weights, upstream)
    kernel_row_adam_(values, rows, row_grads, new_row_state(values), step=1, **ADAM)

    query, subkeys = torch.zeros(2, 4, 2, 128), torch.zeros(4, 2, 512, 128)
    query, subkeys = query.to(dtype), subkeys.to(dtype)
    _, found = kernel_search(query, subkeys, 32, softmax=True)
    kernel_search_gradients(query, subkeys, found % 512**2, torch.zeros(2, 4, 32), dtype)


if __name__ == "__main__":
    main()
