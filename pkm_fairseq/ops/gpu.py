"""Where the GPU kernels run, and how they are cut.

Importing this file does not import triton; importing a file of kernels does.
"""

import os
from functools import lru_cache

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@lru_cache(maxsize=None)
def triton_imports():
    """Returns whether triton is installed, and new enough for these kernels (3.3)."""
    try:
        from triton import language
    except ImportError:
        return False
    return hasattr(language, "gather")


def is_interpreted():
    """Returns whether triton is to run the kernels on the CPU, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def use_gpu_kernels(tensor):
    """Returns whether kernels serve ``tensor``; PKM_KERNELS=0 in the environment says never."""
    return (
        (tensor.is_cuda or (tensor.is_cpu and is_interpreted()))
        and tensor.dtype in DTYPES
        and os.environ.get("PKM_KERNELS") != "0"
        and triton_imports()
    )


def power_of_two(number, least=1):
    """Returns the smallest power of two that is at least both."""
    return 1 << (max(number, least) - 1).bit_length()
