"""The gradient of a table in memory that is kept is the gradient all the same."""

import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pkm_fairseq.ops import KeptDenseGradient, KeptMemory, KeptSparseGradient, weighted_bag
from pkm_fairseq.ops.weighted_bag.reference import reference_weighted_bag
from tests.tolerances import assert_close

SLOTS, DIM, TOKENS, READ = 30, 6, 4, 3
KINDS = [KeptDenseGradient, KeptSparseGradient]
pytestmark = pytest.mark.usefixtures("form")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kept(request):
    return request.param()


def make_table(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(SLOTS, DIM, dtype=dtype))


def draw_batch(dtype=torch.float32):
    """Slots, weights and the gradient of what is read."""
    slots = torch.randint(SLOTS, (TOKENS, READ))
    return slots, torch.rand(TOKENS, READ, dtype=dtype), torch.randn(TOKENS, DIM, dtype=dtype)


def read_and_go_back(table, batch, gradient):
    slots, weights, upstream = batch
    weighted_bag(table, slots, weights, gradient).backward(upstream)


def expected_gradient(table, *batches):
    wide = torch.promote_types(table.dtype, torch.float32)
    other = table.detach().to(wide, copy=True).requires_grad_()
    for slots, weights, upstream in batches:
        reference_weighted_bag(other, slots, weights.to(wide)).backward(upstream.to(wide))
    return other.grad.to(table.dtype)


def memory_of(grad):
    return (grad._values() if grad.is_sparse else grad).data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_step_has_the_gradient_of_its_own_rows_in_the_same_memory(kept, dtype):
    table = make_table(dtype)
    places = set()
    for _ in range(4):
        batch = draw_batch(dtype)
        table.grad = None
        read_and_go_back(table, batch, kept)
        places.add(memory_of(table.grad))
        assert_close(table.grad.to_dense(), expected_gradient(table, batch))
        table.grad.mul_(0.5)  # as clipping does
    assert len(places) == 1


def test_batches_of_one_update_add_up(kept):
    table = make_table()
    for _ in range(3):
        batches = [draw_batch() for _ in range(3)]
        table.grad = None
        for batch in batches:
            read_and_go_back(table, batch, kept)
        assert_close(table.grad.to_dense(), expected_gradient(table, *batches))
        assert table.grad.is_sparse == isinstance(kept, KeptSparseGradient)


def test_a_gradient_that_is_zeroed_in_place_costs_no_memory_at_each_step():
    table, kept = make_table(), KeptDenseGradient()
    sizes = set()
    for _ in range(4):
        batch = draw_batch()
        if table.grad is not None:
            table.grad.zero_()
        read_and_go_back(table, batch, kept)
        assert_close(table.grad, expected_gradient(table, batch))
        sizes.add(len(pickle.dumps(kept)))
    assert len(sizes) == 1


def test_a_table_read_twice_in_one_graph_has_the_sum(kept):
    table = make_table()
    for _ in range(3):
        batches = [draw_batch(), draw_batch()]
        table.grad = None
        read = [weighted_bag(table, slots, weights, kept) for slots, weights, _ in batches]
        torch.autograd.backward(read, [upstream for *_, upstream in batches])
        assert_close(table.grad.to_dense(), expected_gradient(table, *batches))


def test_a_batch_that_counts_nothing_touches_no_row():
    table, kept = make_table(), KeptSparseGradient()
    slots, weights, upstream = draw_batch()
    weights.requires_grad_()
    read_and_go_back(table, (slots, weights, upstream * 0), kept)
    assert table.grad._nnz() == 0
    assert torch.equal(weights.grad, torch.zeros_like(weights))


def test_a_batch_that_counts_nothing_may_be_the_first_of_an_update(kept):
    table = make_table()
    for _ in range(2):
        slots, weights, upstream = draw_batch()
        others = [draw_batch(), draw_batch()]
        table.grad = None
        read_and_go_back(table, (slots, weights, upstream * 0), kept)
        for batch in others:
            read_and_go_back(table, batch, kept)
        assert_close(table.grad.to_dense(), expected_gradient(table, *others))


def test_tokens_without_a_gradient_touch_no_row():
    table = make_table()
    slots, weights, upstream = draw_batch()
    upstream[1::2] = 0
    weights.requires_grad_()
    read_and_go_back(table, (slots, weights, upstream), KeptSparseGradient())
    assert torch.equal(table.grad._indices()[0], slots[::2].unique())
    (expected,) = torch.autograd.grad(
        reference_weighted_bag(table.detach(), slots, weights), weights, upstream
    )
    assert_close(weights.grad, expected)
    assert_close(table.grad.to_dense(), expected_gradient(table, (slots, weights, upstream)))


def test_a_gradient_that_somebody_keeps_does_not_change(kept):
    table = make_table()
    first, second = draw_batch(), draw_batch()
    read_and_go_back(table, first, kept)
    saved, table.grad = table.grad, None
    read_and_go_back(table, second, kept)
    assert_close(saved.to_dense(), expected_gradient(table, first))
    assert_close(table.grad.to_dense(), expected_gradient(table, second))


def test_gradients_asked_for_by_autograd_do_not_share_memory(kept):
    table = make_table()
    batches = [draw_batch(), draw_batch()]
    grads = []
    for slots, weights, upstream in batches:
        output = weighted_bag(table, slots, weights, kept)
        grads += torch.autograd.grad(output, table, upstream)
    for grad, batch in zip(grads, batches):
        assert_close(grad.to_dense(), expected_gradient(table, batch))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_gradient_that_was_scaled_by_nan_is_gone_at_the_next_step(factor):
    table, kept = make_table(), KeptDenseGradient()
    read_and_go_back(table, draw_batch(), kept)
    table.grad.mul_(factor)
    batch, table.grad = draw_batch(), None
    read_and_go_back(table, batch, kept)
    assert_close(table.grad, expected_gradient(table, batch))


def test_what_somebody_adds_to_a_gradient_is_gone_at_the_next_step():
    table, kept = make_table(), KeptDenseGradient()
    for _ in range(3):
        table.grad, batch = None, draw_batch()
        read_and_go_back(table, batch, kept)
        assert_close(table.grad, expected_gradient(table, batch))
        table.grad.add_(table.detach())  # as weight decay does in some optimizers


def test_the_memory_follows_a_change_of_dtype_and_of_batch_size(kept):
    table = make_table()
    read_and_go_back(table, [part[:1] for part in draw_batch()], kept)
    table = torch.nn.Parameter(table.detach().double())
    batch = draw_batch(torch.float64)
    read_and_go_back(table, batch, kept)
    assert_close(table.grad.to_dense(), expected_gradient(table, batch))
    table.grad, batch = None, [torch.cat([part] * 5) for part in draw_batch(torch.float64)]
    read_and_go_back(table, batch, kept)
    assert_close(table.grad.to_dense(), expected_gradient(table, batch))


def test_a_copy_has_memory_of_its_own(kept):
    table = make_table()
    first, second = draw_batch(), draw_batch()
    read_and_go_back(table, first, kept)
    twin_table, twin = make_table(), copy.deepcopy(kept)
    read_and_go_back(twin_table, second, twin)
    assert_close(table.grad.to_dense(), expected_gradient(table, first))
    assert_close(twin_table.grad.to_dense(), expected_gradient(table, second))


def test_threads_that_ask_at_once_are_not_given_the_same_memory(monkeypatch):
    def slowly(tensor):
        time.sleep(0.1)
        return tensor

    monkeypatch.setitem(KeptMemory.take.__globals__, "with_huge_pages", slowly)
    table, kept = torch.zeros(SLOTS, DIM), KeptMemory()
    with ThreadPoolExecutor(4) as threads:
        given = list(threads.map(lambda _: kept.take(table, SLOTS), range(4)))
    assert sum(memory is not None for memory in given) == (1 if table.is_cpu else 0)
