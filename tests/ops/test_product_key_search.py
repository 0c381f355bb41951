import pytest
import torch

from pkm_fairseq.ops import product_key_search
from pkm_fairseq.ops.product_key_search import autograd
from pkm_fairseq.ops.product_key_search.reference import reference_product_key_search
from tests.tolerances import assert_close

# tokens, heads, sub-keys, half-query width, k
SHAPES = [
    (5, 4, 16, 8, 4),
    (3, 2, 37, 5, 32),  # not a power of two, and an odd width
    (6, 1, 7, 3, 7),  # one head, all sub-keys in play
    (4, 3, 1, 2, 1),  # one sub-key, one slot
    (0, 2, 8, 4, 2),  # no tokens
    (7, 2, 5, 1, 1),
    (3, 2, 301, 37, 32),  # many more sub-keys than k
    (2, 1, 80, 4, 70),  # more slots than a program on a GPU holds
]
HALVES = [torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("form")


def draw_search(tokens, heads, subkeys, width, k, dtype=torch.float64, ties=False):
    """Returns the inputs of a search and what its gradient of the scores is to be."""
    torch.manual_seed(0)
    shapes = (tokens, heads, 2, width), (heads, 2, subkeys, width)
    inputs = [torch.randint(-1, 2, s).double() if ties else torch.randn(s).double() for s in shapes]
    inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    return inputs, torch.randn(tokens, heads, k, dtype=dtype)


def scores_of(slots, query, subkeys):
    """Returns the scores of slots by their definition, (T, H, K)."""
    heads, _, n, _ = subkeys.shape
    scores = 0
    for half, places in enumerate((slots // n, slots % n)):
        selected = subkeys[torch.arange(heads).view(-1, 1), half, places]  # (T, H, K, Q)
        scores = scores + (query[:, :, half].unsqueeze(2) * selected).sum(-1)
    return scores


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_it_matches_the_definition_in_scores_slots_and_gradients(shape, dtype):
    inputs, upstream = draw_search(*shape, dtype=dtype)
    results = []
    for search in (product_key_search, reference_product_key_search):
        scores, slots = search(*inputs, shape[-1])
        results.append((slots, scores, *torch.autograd.grad(scores, inputs, upstream)))
    assert results[0][0].dtype == torch.int64
    assert torch.equal(results[0][0], results[1][0])
    for actual, expected in zip(results[0][1:], results[1][1:]):
        assert_close(actual, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_under_ties_the_slots_earn_their_scores_and_the_gradients_are_theirs(shape, dtype):
    inputs, upstream = draw_search(*shape, dtype=dtype, ties=True)
    scores, slots = product_key_search(*inputs, shape[-1])
    assert torch.equal(scores, reference_product_key_search(*inputs, shape[-1])[0])
    earned = scores_of(slots, *inputs)
    assert torch.equal(scores, earned)
    in_order = slots.sort(-1).values
    assert (in_order[..., 1:] > in_order[..., :-1]).all()
    for actual, expected in zip(
        torch.autograd.grad(scores, inputs, upstream), torch.autograd.grad(earned, inputs, upstream)
    ):
        assert_close(actual, expected)


def check_gradients_in_float32(inputs, scores, slots, upstream, form=None):
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected = torch.autograd.grad(scores_of(slots, *wide), wide, upstream.float())
    for actual, tensor, exact in zip(
        torch.autograd.grad(scores, inputs, upstream), inputs, expected
    ):
        assert actual.dtype == tensor.dtype
        if form == "triton":  # which multiplies in the dtype of the scores
            error = (actual.float() - exact).abs().max() / exact.abs().max()
            assert error < torch.finfo(scores.dtype).eps
        else:
            assert_close(actual, exact.to(tensor.dtype))


def test_gradients_that_reach_a_subkey_may_cancel():
    inputs, _ = draw_search(50, 2, 3, 4, 3, dtype=torch.float32)
    upstream = torch.randint(-1, 2, (50, 2, 3)).float()
    scores, slots = product_key_search(*inputs, 3)
    check_gradients_in_float32(inputs, scores, slots, upstream)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_it_accumulates_the_gradients_of_half_precision_in_float32(dtype, form):
    inputs, upstream = draw_search(40, 2, 12, 9, 11, dtype=dtype)
    scores, slots = product_key_search(*inputs, 11)
    assert scores.dtype == dtype
    check_gradients_in_float32(inputs, scores, slots, upstream, form)


@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_works_under_autocast(query_dtype, form):
    (query, subkeys), upstream = draw_search(5, 4, 16, 8, 4, dtype=torch.float32)
    query = query.detach().to(query_dtype).requires_grad_()
    with torch.autocast(query.device.type, torch.bfloat16):
        scores, slots = product_key_search(query, subkeys, 4)
    assert scores.dtype == torch.bfloat16
    check_gradients_in_float32([query, subkeys], scores, slots, upstream.to(scores.dtype), form)


def test_a_query_may_lie_anywhere_in_memory():
    (query, subkeys), upstream = draw_search(5, 4, 16, 8, 4, dtype=torch.float32)
    inputs = [
        tensor.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
        for tensor in (query, subkeys)
    ]
    expected, slots = product_key_search(query, subkeys, 4)
    scores, same_slots = product_key_search(*inputs, 4)
    assert torch.equal(same_slots, slots)
    assert_close(scores, expected)
    for actual, gradient in zip(
        torch.autograd.grad(scores, inputs, upstream),
        torch.autograd.grad(expected, (query, subkeys), upstream),
    ):
        assert_close(actual, gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_all_heads_and_halves_may_share_a_query(dtype):
    (query, subkeys), upstream = draw_search(7, 3, 9, 4, 5, dtype=dtype)
    inputs = query[:, :1, :1].detach().clone().requires_grad_(), subkeys
    results = []
    for shared in (inputs[0], inputs[0].expand(-1, 3, 2, -1)):
        scores, slots = product_key_search(shared, subkeys, 5)
        results.append((slots, scores, *torch.autograd.grad(scores, inputs, upstream)))
    assert torch.equal(results[0][0], results[1][0])
    for actual, expected in zip(results[0][1:], results[1][1:]):
        assert_close(actual, expected)


def test_tokens_are_searched_in_pieces_and_come_out_whole(monkeypatch):
    inputs, _ = draw_search(7, 2, 9, 4, 3)
    expected = product_key_search(*inputs, 3)
    monkeypatch.setattr(autograd, "PIECE", 2 * (2 * 2 * 9))  # scores of two tokens
    monkeypatch.setattr(autograd, "LEAST_TOKENS", 1)
    scores, slots = product_key_search(*inputs, 3)
    assert_close(scores, expected[0])
    assert torch.equal(slots, expected[1])


def test_it_keeps_no_more_than_its_inputs_and_slots_for_the_backward_pass():
    inputs, _ = draw_search(50, 2, 64, 4, 3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        _, slots = product_key_search(*inputs, 3)
    assert sum(tensor.numel() for tensor in kept) == sum(t.numel() for t in (*inputs, slots))


def test_it_does_not_depend_on_the_number_of_threads(with_threads):
    inputs, upstream = draw_search(50, 4, 64, 13, 8, dtype=torch.float32)

    def run():
        scores, slots = product_key_search(*inputs, 8)
        return (slots, scores, *torch.autograd.grad(scores, inputs, upstream))

    for one, many in zip(*with_threads(run)):
        assert torch.equal(one, many)


@pytest.mark.parametrize("needed", [0, 1])
def test_it_gives_one_gradient_where_only_one_is_needed(needed):
    inputs, upstream = draw_search(5, 4, 16, 8, 4, dtype=torch.float32)
    expected = torch.autograd.grad(product_key_search(*inputs, 4)[0], inputs, upstream)
    inputs[1 - needed].requires_grad_(False)
    product_key_search(*inputs, 4)[0].backward(upstream)
    assert inputs[1 - needed].grad is None
    assert_close(inputs[needed].grad, expected[needed])


def test_it_passes_gradcheck():
    inputs, _ = draw_search(3, 2, 6, 3, 4)
    assert torch.autograd.gradcheck(lambda *inputs: product_key_search(*inputs, 4)[0], inputs)


@pytest.mark.parametrize("k", [0, 6])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k={k}"):
        product_key_search(torch.zeros(2, 3, 2, 4), torch.zeros(3, 2, 5, 4), k)


@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (1, 2, 5, 4), (3, 1, 5, 4), (3, 2, 4)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 4\) and \([13], "):
        product_key_search(torch.zeros(2, 3, 2, 4), torch.zeros(shape), 2)
