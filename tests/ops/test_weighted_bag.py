import pytest
import torch

from pkm_fairseq.ops import weighted_bag
from pkm_fairseq.ops.weighted_bag.reference import reference_weighted_bag
from tests.tolerances import assert_close

# slots, value-dim, tokens, rows a token
SHAPES = [(16, 8, 5, 4), (37, 13, 3, 7), (1, 3, 4, 2), (9, 1, 2, 1), (12, 5, 0, 3)]


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


def test_a_slot_that_stands_twice_counts_twice():
    values = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    output = weighted_bag(values, torch.tensor([[1, 1, 0]]), torch.tensor([[0.5, 0.25, 1.0]]))
    assert_close(output, torch.tensor([[8.5, 17.0]]))


def test_it_passes_gradcheck():
    values, slots, weights = draw_bag(6, 4, 3, 5)
    assert torch.autograd.gradcheck(lambda v, w: weighted_bag(v, slots, w), (values, weights))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 5\)"):
        weighted_bag(torch.zeros(6, 2), torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 5))
