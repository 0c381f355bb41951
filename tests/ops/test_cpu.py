import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pkm_fairseq.ops import product_key_search, product_key_topk, touched_row_gradients
from pkm_fairseq.ops.cpu import (
    HUGE_PAGE,
    compiled,
    numba_imports,
    use_cpu_kernels,
    with_huge_pages,
)

needs_numba = pytest.mark.skipif(not numba_imports(), reason="numba is not installed")


@needs_numba
def test_one_variable_switches_the_kernels_off(monkeypatch):
    tensor = torch.zeros(1)
    monkeypatch.delenv("PKM_KERNELS", raising=False)
    assert use_cpu_kernels(tensor)
    assert not use_cpu_kernels(tensor.to("meta"))
    monkeypatch.setenv("PKM_KERNELS", "0")
    assert not use_cpu_kernels(tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked for huge pages")
def test_huge_pages_are_asked_for_inside_of_large_tensors_alone(monkeypatch):
    asked = []
    libc = SimpleNamespace(madvise=lambda start, size, advice: asked.append((start, size)))
    monkeypatch.setattr("ctypes.CDLL", lambda name: libc)
    small, large = torch.empty(1000), torch.empty(10_000_001)
    assert with_huge_pages(small) is small
    assert with_huge_pages(large) is large
    ((start, size),) = ((start.value, size.value) for start, size in asked)
    assert start % HUGE_PAGE == size % HUGE_PAGE == 0
    assert large.data_ptr() <= start
    assert start + size <= large.data_ptr() + 4 * large.numel()
    assert size >= 4 * large.numel() - 3 * HUGE_PAGE


@needs_numba
def test_a_kernel_is_compiled_where_no_folder_can_keep_it():
    namespace = {}
    exec("def double(x): return 2 * x", namespace)  # belongs to no file
    assert compiled()(namespace["double"])(3) == 6


@needs_numba
@pytest.mark.parametrize("chunks", [1, 3, 16])
@pytest.mark.parametrize(("slots_total", "accesses"), [(1, 5), (7, 0), (40, 9), (2**21, 3000)])
def test_accesses_are_grouped_as_a_stable_sort_does_in_any_number_of_chunks(
    slots_total, accesses, chunks
):
    from pkm_fairseq.ops.weighted_bag.cpu_kernels import group_by_slot

    slots = np.random.default_rng(0).integers(slots_total, size=accesses)
    slots[: accesses // 2] = slots[accesses - accesses // 2 :]  # each twice
    rows, starts, order = group_by_slot(slots, slots_total, chunks)
    expected, counts = np.unique(slots, return_counts=True)
    assert rows.tolist() == expected.tolist()
    assert starts.tolist() == [0, *counts.cumsum()]
    assert order.tolist() == slots.argsort(kind="stable").tolist()


@needs_numba
@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_leave_the_number_of_torch_threads_alone(threads, monkeypatch):
    monkeypatch.delenv("PKM_KERNELS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        product_key_topk(torch.zeros(2, 3), torch.zeros(2, 3), 1)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_ops_work_before_and_after_data_loader_workers_are_forked(form):
    torch.manual_seed(0)
    query = torch.randn(6, 2, 2, 5, requires_grad=True)
    subkeys = torch.randn(2, 2, 3, 5, requires_grad=True)
    values, grad_output = torch.randn(9, 4), torch.randn(6, 4)

    def search_and_read():
        scores, slots = product_key_search(query, subkeys, 3)
        read = touched_row_gradients(values, slots.flatten(1), scores.flatten(1), grad_output)
        return (*read, *torch.autograd.grad(scores.square().sum(), (query, subkeys)))

    before = search_and_read()
    assert len(list(DataLoader(range(4), num_workers=2))) == 4
    for actual, expected in zip(search_and_read(), before):
        assert torch.equal(actual, expected)
