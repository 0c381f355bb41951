import pytest
import torch

from pkm_fairseq.ops import product_key_topk
from pkm_fairseq.ops.product_key_topk.eager import candidate_pairs
from pkm_fairseq.ops.product_key_topk.reference import reference_product_key_topk
from tests.tolerances import assert_close

# leading shape, sub-keys, k
SHAPES = [
    ((5, 4), 16, 4),
    ((3,), 37, 32),  # not a power of two
    ((2, 3, 2), 7, 7),  # all sub-keys in play
    ((4,), 1, 1),  # one sub-key, one slot
    ((), 9, 3),  # no leading shape
    ((0, 4), 8, 2),  # no tokens
    ((6,), 5, 1),
]


def draw_scores(shape, subkeys, ties=False, dtype=torch.float64):
    torch.manual_seed(0)
    if ties:
        return torch.randint(0, 3, (2, *shape, subkeys)).to(dtype).unbind(0)
    return torch.randn(2, *shape, subkeys, dtype=dtype).unbind(0)


@pytest.mark.parametrize(("shape", "subkeys", "k"), SHAPES)
def test_it_finds_the_slots_that_scoring_every_slot_finds(shape, subkeys, k):
    scores1, scores2 = draw_scores(shape, subkeys)
    scores, slots = product_key_topk(scores1, scores2, k)
    expected_scores, expected_slots = reference_product_key_topk(scores1, scores2, k)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(slots, expected_slots)


@pytest.mark.parametrize(("shape", "subkeys", "k"), SHAPES)
def test_under_ties_the_scores_are_the_best_and_the_slots_distinct_and_earn_them(shape, subkeys, k):
    scores1, scores2 = draw_scores(shape, subkeys, ties=True)
    scores, slots = product_key_topk(scores1, scores2, k)
    expected_scores, _ = reference_product_key_topk(scores1, scores2, k)
    assert torch.equal(scores, expected_scores)
    every_score = (scores1.unsqueeze(-1) + scores2.unsqueeze(-2)).flatten(-2)
    assert torch.equal(every_score.gather(-1, slots), scores)
    in_order = slots.sort(-1).values
    assert (in_order[..., 1:] > in_order[..., :-1]).all()


@pytest.mark.parametrize(("shape", "subkeys", "k"), SHAPES)
def test_its_gradients_are_those_of_scoring_every_slot(shape, subkeys, k):
    halves = [scores.requires_grad_() for scores in draw_scores(shape, subkeys)]
    weights = torch.randn(*shape, k, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((search(*halves, k)[0] * weights).sum(), halves)
        for search in (product_key_topk, reference_product_key_topk)
    ]
    for actual, expected in zip(*gradients):
        assert_close(actual, expected)


def test_it_passes_gradcheck():
    halves = [scores.requires_grad_() for scores in draw_scores((3, 2), 6)]
    assert torch.autograd.gradcheck(lambda *halves: product_key_topk(*halves, 4)[0], halves)


@pytest.mark.parametrize(("k", "candidates"), [(1, 1), (2, 3), (32, 119)])
def test_it_looks_at_no_more_pairs_than_can_win(k, candidates):
    i, j = candidate_pairs(k, torch.device("cpu"))
    assert len(i) == candidates
    assert ((i + 1) * (j + 1) <= k).all()


@pytest.mark.parametrize("k", [0, 6])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k={k}"):
        product_key_topk(torch.zeros(2, 5), torch.zeros(2, 5), k)


def test_halves_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        product_key_topk(torch.zeros(2, 5), torch.zeros(2, 6), 3)
