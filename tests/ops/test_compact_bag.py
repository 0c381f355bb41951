import pytest
import torch

from pkm_fairseq.ops import quantise_rows, quantized_bag
from pkm_fairseq.ops.weighted_bag.reference import reference_weighted_bag
from tests.ops.test_weighted_bag import SHAPES, draw_bag
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("form")


@pytest.mark.parametrize("shape", [*SHAPES, (7, 800, 9, 0)])
@pytest.mark.parametrize(
    ("dtype", "index"),
    [
        (torch.int8, torch.int64),
        (torch.bfloat16, torch.int32),
        (torch.float16, torch.int64),
    ],
    ids=str,
)
def test_it_reads_the_numbers_that_the_table_holds(shape, dtype, index):
    values, slots, weights = draw_bag(*shape, dtype=torch.float32)
    scales = None
    if dtype == torch.int8:
        values, scales = quantise_rows(values)
        assert values.dtype == dtype
        held = values.float() * scales.unsqueeze(1)
    else:
        values = values.detach().to(dtype)
        held = values.float()
    read = quantized_bag(values, slots.to(index), weights, scales)
    assert not read.requires_grad
    assert_close(read, reference_weighted_bag(held, slots, weights).detach())


@pytest.mark.parametrize("size", [1, 1e-30, 1e30])
def test_int8_is_as_near_as_half_a_scale(size):
    values, slots, weights = draw_bag(40, 515, 6, 19, dtype=torch.float32)
    values = size * values.detach()
    values[3] = 0
    rows, scales = quantise_rows(values)
    assert rows.abs().amax(1).tolist() == [127] * 3 + [0] + [127] * 36
    # Rounding in float32 comes on top.
    error = (rows.double() * scales.double().unsqueeze(1) - values.double()).abs()
    assert (error <= 0.50001 * scales.unsqueeze(1)).all()
    read = quantized_bag(rows, slots, weights, scales).double()
    exact = reference_weighted_bag(values.double(), slots, weights.double())
    bound = (0.501 * scales.double()[slots] * weights.double().abs()).sum(1, keepdim=True)
    assert ((read - exact).abs() <= bound).all()
    assert (read - exact).abs().max() > 0.01 * bound.max()


def test_a_row_that_is_not_finite_stays_so():
    values = torch.zeros(2, 3)
    values[1, 2] = float("nan")
    rows, scales = quantise_rows(values)
    read = quantized_bag(rows, torch.tensor([[0], [1]]), torch.ones(2, 1), scales)
    assert read.isnan().any(1).tolist() == [False, True]


def test_a_slot_outside_the_table_is_refused():
    if torch.zeros(0).is_cuda:
        pytest.skip("after an assertion fails on it, a process cannot use the GPU any more")
    for dtype in (torch.int8, torch.bfloat16):
        values = torch.zeros(4, 2, dtype=dtype)
        with pytest.raises((RuntimeError, IndexError), match="4|not in the table"):
            quantized_bag(values, torch.tensor([[1, 4]]), torch.zeros(1, 2))
