"""The ops on shapes and numbers that nobody chose."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkm_fairseq.ops import product_key_topk, weighted_bag
from pkm_fairseq.ops.product_key_topk.reference import reference_product_key_topk
from pkm_fairseq.ops.weighted_bag.reference import reference_weighted_bag
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("form")
# The fixture says which form runs and may well be the same for all cases.
for_each_form = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = st.integers(0, 5)
SEEDS = st.integers(0, 2**31)


@for_each_form
@given(
    shape=st.lists(SIZES, max_size=3),
    subkeys=st.integers(1, 150),
    share=st.floats(0, 1),
    kinds=st.integers(1, 1000),
    seed=SEEDS,
)
def test_the_search_finds_the_best_scores_and_slots_that_earn_them(
    shape, subkeys, share, kinds, seed
):
    k = max(1, round(share * min(subkeys, 40)))
    torch.manual_seed(seed)
    halves = torch.randint(kinds, (2, *shape, subkeys)).float().requires_grad_()
    scores, slots = product_key_topk(*halves, k)
    assert torch.equal(scores, reference_product_key_topk(*halves, k)[0])
    every_score = (halves[0].unsqueeze(-1) + halves[1].unsqueeze(-2)).flatten(-2)
    assert torch.equal(every_score.gather(-1, slots), scores)
    assert all(len(row.unique()) == k for row in slots.view(-1, k))
    upstream = torch.randn_like(scores)
    (actual,) = torch.autograd.grad(scores, halves, upstream)
    (expected,) = torch.autograd.grad(every_score.gather(-1, slots), halves, upstream)
    assert_close(actual, expected)


@for_each_form
@given(
    slots_total=st.integers(1, 5000),
    value_dim=st.integers(1, 70),
    tokens=SIZES,
    n=st.integers(1, 5),
    seed=SEEDS,
)
def test_the_bag_is_what_its_definition_says(slots_total, value_dim, tokens, n, seed):
    torch.manual_seed(seed)
    values = torch.randn(slots_total, value_dim, requires_grad=True)
    weights = torch.randn(tokens, n, requires_grad=True)
    slots = torch.randint(slots_total, (tokens, n))
    upstream = torch.randn(tokens, value_dim)
    results = []
    for bag in (weighted_bag, reference_weighted_bag):
        read = bag(values, slots, weights)
        results.append((read, *torch.autograd.grad(read, (values, weights), upstream)))
    for actual, expected in zip(*results):
        assert_close(actual, expected)
