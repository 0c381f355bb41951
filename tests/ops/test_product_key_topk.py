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
    ((2, 3), 301, 32),  # many more sub-keys than k
    ((2,), 128, 32),
]
pytestmark = pytest.mark.usefixtures("form")


def draw_scores(shape, subkeys, ties=False, dtype=torch.float64):
    torch.manual_seed(0)
    if ties:
        return torch.randint(0, 3, (2, *shape, subkeys)).to(dtype).unbind(0)
    return torch.randn(2, *shape, subkeys, dtype=dtype).unbind(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("shape", "subkeys", "k"), SHAPES)
def test_it_finds_the_slots_that_scoring_every_slot_finds(shape, subkeys, k, dtype):
    scores1, scores2 = draw_scores(shape, subkeys, dtype=dtype)
    scores, slots = product_key_topk(scores1, scores2, k)
    expected_scores, expected_slots = reference_product_key_topk(scores1, scores2, k)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(slots, expected_slots)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize(("shape", "subkeys", "k"), SHAPES)
def test_the_scores_are_the_best_and_the_slots_distinct_and_earn_them(
    shape, subkeys, k, ties, dtype
):
    scores1, scores2 = draw_scores(shape, subkeys, ties, dtype)
    scores, slots = product_key_topk(scores1, scores2, k)
    expected_scores, _ = reference_product_key_topk(scores1, scores2, k)
    assert torch.equal(scores, expected_scores)
    every_score = (scores1.unsqueeze(-1) + scores2.unsqueeze(-2)).flatten(-2)
    assert torch.equal(every_score.gather(-1, slots), scores)
    in_order = slots.sort(-1).values
    assert (in_order[..., 1:] > in_order[..., :-1]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("shape", "subkeys", "k"), SHAPES)
def test_its_gradients_are_those_of_scoring_every_slot(shape, subkeys, k, dtype):
    halves = [scores.requires_grad_() for scores in draw_scores(shape, subkeys, dtype=dtype)]
    weights = torch.randn(*shape, k, dtype=dtype)
    gradients = [
        torch.autograd.grad((search(*halves, k)[0] * weights).sum(), halves)
        for search in (product_key_topk, reference_product_key_topk)
    ]
    for actual, expected in zip(*gradients):
        assert_close(actual, expected)


def test_halves_may_lie_anywhere_in_memory():
    scores1, scores2 = torch.randn(4, 2, 21, 3).permute(1, 3, 0, 2)[..., ::2]  # (3, 4, 11) each
    scores, slots = product_key_topk(scores1, scores2, 5)
    expected_scores, expected_slots = reference_product_key_topk(scores1, scores2, 5)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(slots, expected_slots)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("share", [0.1, 1])
def test_nan_and_infinity_neither_crash_it_nor_repeat_a_slot(odd, share):
    torch.manual_seed(0)
    scores1, scores2 = torch.randn(2, 5, 3, 64).masked_fill(torch.rand(2, 5, 3, 64) < share, odd)
    scores, slots = product_key_topk(scores1, scores2, 16)
    every_score = (scores1.unsqueeze(-1) + scores2.unsqueeze(-2)).flatten(-2)
    torch.testing.assert_close(every_score.gather(-1, slots), scores, equal_nan=True)
    assert all(len(row.unique()) == 16 for row in slots.flatten(0, 1))


def test_it_does_not_depend_on_the_number_of_threads(with_threads):
    halves = [scores.requires_grad_() for scores in draw_scores((50, 4), 64, dtype=torch.float32)]

    def run():
        scores, slots = product_key_topk(*halves, 8)
        return (slots, scores, *torch.autograd.grad(scores.square().sum(), halves))

    for one, many in zip(*with_threads(run)):
        assert torch.equal(one, many)


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
