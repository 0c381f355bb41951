"""Where the CPU kernels run, and how they are compiled.

Importing this file does not import numba; importing a file of kernels does.
"""

import ctypes
import logging
import mmap
import os
import sys
import threading
from functools import lru_cache, wraps

import torch

HUGE_PAGE = 2**21


@lru_cache(maxsize=None)
def numba_imports():
    """Returns whether numba is installed and fits the numpy that is installed; starts it if so."""
    threads = torch.get_num_threads()
    try:
        import numba
    except ImportError:
        return False
    # Starting numba's threads sets OpenMP's number of threads, which is torch's too: start them
    # now, and give torch its number back.
    numba.set_num_threads(numba.get_num_threads())
    torch.set_num_threads(threads)
    return True


def use_cpu_kernels(tensor):
    """Returns whether kernels serve ``tensor``; PKM_KERNELS=0 in the environment says never."""
    return tensor.is_cpu and os.environ.get("PKM_KERNELS") != "0" and numba_imports()


def compiled(*signature, **options):
    """Decorates a kernel: compiled at its first call and kept on disk for the next process.

    With a signature it is compiled at once, only for that signature. A kernel may call only
    functions of its own file: numba looks only at that file to tell whether what it kept is out
    of date. One that runs in parallel is called only from Python, from any thread.
    """
    from numba import njit, threading_layer

    numba_imports()  # starts numba's threads, and with that chooses their layer
    # fairseq leaves the root logger at DEBUG, at which numba logs each step of a compilation.
    logging.getLogger("numba").setLevel(logging.INFO)

    def decorate(kernel):
        try:
            kernel = njit(*signature, cache=True, **options)(kernel)
        except RuntimeError:  # no folder to keep it in can be written
            kernel = njit(*signature, **options)(kernel)
        # Two kernels at once in these threads of numba's, which it has where there is neither
        # OpenMP nor TBB, would abort the process.
        wait = options.get("parallel") and threading_layer() == "workqueue"
        return one_at_a_time(kernel) if wait else kernel

    return decorate


KERNEL_RUNS = threading.Lock()


def one_at_a_time(kernel):
    """Has a kernel wait while another thread runs one."""

    @wraps(kernel)
    def run(*args):
        with KERNEL_RUNS:
            return kernel(*args)

    return run


def follow_torch_threads():
    """Gives the kernels of this thread as many threads as torch uses."""
    import numba

    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def with_huge_pages(tensor):
    """Asks Linux for pages of 2 MiB for a tensor that nobody has written to yet, and returns it.

    Rows of a large table lie on other pages each: to find the pages takes as long as to read them.
    """
    size = tensor.untyped_storage().nbytes()
    if sys.platform == "linux" and tensor.is_cpu and size >= 2**25:
        # What this cannot do for a tensor it leaves undone.
        ends = (tensor.untyped_storage().data_ptr(), tensor.untyped_storage().data_ptr() + size)
        first, last = (-(-end // HUGE_PAGE) * HUGE_PAGE for end in ends)
        madvise = ctypes.CDLL(None).madvise
        madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(last - HUGE_PAGE - first), mmap.MADV_HUGEPAGE
        )
    return tensor
