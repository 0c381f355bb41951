import pytest
import torch

from pkm_fairseq.ops import touched_row_gradients, weighted_bag
from pkm_fairseq.ops.weighted_bag.reference import reference_weighted_bag
from tests.tolerances import assert_close

# slots, value-dim, tokens, rows a token
SHAPES = [
    (16, 8, 5, 4),
    (37, 13, 3, 7),
    (1, 3, 4, 2),  # one slot, for everything
    (9, 1, 2, 1),
    (12, 5, 0, 3),  # no tokens
    (2100, 67, 10, 11),  # more slots than one pass of a sort tells apart
    (40, 515, 6, 19),  # rows so wide that a kernel reads them
    (2, 5, 40, 7),  # rows selected so often that they are split
    (5, 2100, 3, 3),  # rows too wide for one program
]
HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *HALVES]
pytestmark = pytest.mark.usefixtures("form")


def draw_bag(slots_total, value_dim, tokens, n, dtype=torch.float64):
    torch.manual_seed(0)
    values = torch.randn(slots_total, value_dim, dtype=dtype, requires_grad=True)
    weights = torch.randn(tokens, n, dtype=dtype, requires_grad=True)
    return values, torch.randint(slots_total, (tokens, n)), weights


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_matches_the_definition_in_output_and_gradients(shape, dtype):
    values, slots, weights = draw_bag(*shape, dtype=dtype)
    upstream = torch.randn(shape[2], shape[1], dtype=dtype)
    results = []
    for bag in (weighted_bag, reference_weighted_bag):
        output = bag(values, slots, weights)
        results.append((output, *torch.autograd.grad(output, (values, weights), upstream)))
    for actual, expected in zip(*results):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_it_accumulates_half_precision_in_float32(dtype):
    values, slots, weights = draw_bag(16, 24, 40, 30, dtype=dtype)
    upstream = torch.randn(40, 24, dtype=dtype)
    output = weighted_bag(values, slots, weights)
    results = (output, *torch.autograd.grad(output, (values, weights), upstream))
    wide = [tensor.detach().float().requires_grad_() for tensor in (values, weights)]
    expected = reference_weighted_bag(wide[0], slots, wide[1])
    expected = (expected, *torch.autograd.grad(expected, wide, upstream.float()))
    for actual, exact in zip(results, expected):
        assert_close(actual, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_may_be_of_another_dtype(dtype):
    values, slots, weights = draw_bag(16, 8, 5, 4, dtype=dtype)
    weights = weights.detach().double().requires_grad_()
    output = weighted_bag(values, slots, weights)
    output.sum().backward()
    assert (output.dtype, values.grad.dtype, weights.grad.dtype) == (dtype, dtype, torch.float64)


@pytest.mark.parametrize("needed", [0, 1])
def test_it_gives_one_gradient_where_only_one_is_needed(needed):
    values, slots, weights = draw_bag(37, 13, 3, 7, dtype=torch.float32)
    inputs = [values, weights]
    expected = torch.autograd.grad(weighted_bag(values, slots, weights).sum(), inputs)
    inputs[1 - needed].requires_grad_(False)
    weighted_bag(values, slots, weights).sum().backward()
    assert inputs[1 - needed].grad is None
    assert_close(inputs[needed].grad, expected[needed])


# Each shape meets half of the dtypes, and each dtype both of indices.
@pytest.mark.parametrize(
    ("shape", "dtype", "index"),
    [
        (shape, dtype, [torch.int64, torch.int32][number // 2 % 2])
        for number, shape in enumerate(SHAPES)
        for dtype in DTYPES[number % 2 :: 2]
    ],
    ids=str,
)
def test_touched_rows_carry_the_whole_gradient(shape, dtype, index):
    values, slots, weights = draw_bag(*shape, dtype=dtype)
    upstream = torch.randn(shape[2], shape[1], dtype=dtype)
    output = weighted_bag(values, slots.to(index), weights)
    grad_values, grad_weights = torch.autograd.grad(output, (values, weights), upstream)
    inputs = (values, slots.to(index), weights, upstream)

    rows, row_grads, weight_grads = touched_row_gradients(*inputs)
    assert torch.equal(rows, slots.unique())
    assert torch.equal(row_grads, grad_values[rows])
    assert torch.equal(weight_grads, grad_weights)

    table = torch.full_like(values, 7.0)
    same_rows, nothing, same_weight_grads = touched_row_gradients(*inputs, out=table)
    assert nothing is None
    assert torch.equal(same_rows, rows)
    assert torch.equal(same_weight_grads, weight_grads)
    untouched = torch.full_like(values, 7.0)
    assert torch.equal(table, untouched.index_copy(0, rows, row_grads))


def test_gradients_do_not_depend_on_the_number_of_threads(with_threads):
    inputs = (*draw_bag(97, 67, 50, 16, dtype=torch.float32), torch.randn(50, 67))
    for one, many in zip(*with_threads(lambda: touched_row_gradients(*inputs))):
        assert torch.equal(one, many)


def test_a_slot_outside_the_table_is_refused(form):
    if torch.zeros(0).is_cuda:
        pytest.skip("after an assertion fails on it, a process cannot use the GPU any more")
    for width in (2, 600):
        inputs = (torch.zeros(4, width), torch.tensor([[1, 4]]), torch.zeros(1, 2))
        with pytest.raises((RuntimeError, IndexError), match="4|not in the table"):
            weighted_bag(*inputs)
    if form == "numba":  # which would write there
        with pytest.raises(IndexError, match="not in the table"):
            touched_row_gradients(*inputs, torch.zeros(1, width))


def test_a_slot_that_stands_twice_counts_twice():
    values = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    output = weighted_bag(values, torch.tensor([[1, 1, 0]]), torch.tensor([[0.5, 0.25, 1.0]]))
    assert_close(output, torch.tensor([[8.5, 17.0]]))


def test_a_table_may_lie_anywhere_in_memory():
    values, slots, weights = draw_bag(16, 8, 5, 4, dtype=torch.float32)
    expected = torch.autograd.grad(weighted_bag(values, slots, weights).sum(), (values, weights))
    turned = values.detach().t().contiguous().t().requires_grad_()
    output = weighted_bag(turned, slots, weights)
    for actual, gradient in zip(torch.autograd.grad(output.sum(), (turned, weights)), expected):
        assert_close(actual, gradient)


def test_it_passes_gradcheck():
    values, slots, weights = draw_bag(6, 4, 3, 5)
    assert torch.autograd.gradcheck(lambda v, w: weighted_bag(v, slots, w), (values, weights))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 5\)"):
        weighted_bag(torch.zeros(6, 2), torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 5))
