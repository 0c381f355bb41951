import math

import pytest
import torch

from pkm_fairseq.usage.metrics import (
    WEIGHT_UNITS,
    add_reads,
    count_changes,
    drift,
    join_counts,
    kl_from_uniform,
    make_counts,
    slots_carrying,
    usage,
    usage_figures,
)
from tests import usage_by_definition as definition

HEADS, TOPK, SLOTS = 3, 4, 25


def draw_reads(tokens, seed=0, slots_total=SLOTS, topk=TOPK):
    """Slots and weights as a search returns them: no slot twice for a token and head."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(tokens, HEADS, slots_total, generator=generator)
    best = scores.topk(topk)
    return best.indices, best.values.softmax(-1)


def count(*reads, heads=1, slots_total=SLOTS):
    counts = make_counts(heads, slots_total, "cpu")
    for slots, weights in reads:
        add_reads(counts, slots, weights)
    return counts


def assert_counts(counts, expected):
    """Compares one head's counts; the weights to half a unit for each read."""
    assert counts.dtype == torch.int64
    assert counts[:2].tolist() == expected[:2].tolist()
    off = counts[2].numpy() - expected[2] * WEIGHT_UNITS
    assert (abs(off) <= expected[1] / 2 + 1e-6).all(), off


def test_counts_are_those_of_the_definition_for_each_head():
    slots, weights = draw_reads(40)
    counts = count((slots, weights), heads=HEADS)
    for head in range(HEADS):
        assert_counts(counts[:, head], definition.count(slots[:, head], weights[:, head], SLOTS))


def test_heads_together_are_the_sum_of_the_heads():
    slots, weights = draw_reads(40)
    together = count((slots, weights))
    assert together.shape == (3, 1, SLOTS)
    expected = definition.count(slots.flatten(0, 1), weights.flatten(0, 1), SLOTS)
    assert_counts(together[:, 0], expected)
    assert torch.equal(together, count((slots, weights), heads=HEADS).sum(1, keepdim=True))


def test_counts_do_not_depend_on_how_tokens_fall_into_batches_or_on_their_order():
    slots, weights = draw_reads(50)
    whole = count((slots, weights), heads=HEADS)
    parts = list(zip(slots.split([7, 1, 30, 12]), weights.split([7, 1, 30, 12])))
    assert torch.equal(count(*parts, heads=HEADS), whole)
    assert torch.equal(count(*reversed(parts), heads=HEADS), whole)
    assert torch.equal(sum(count(part, heads=HEADS) for part in parts), whole)


def test_zero_tokens_count_nothing():
    counts = count(draw_reads(0), heads=HEADS)
    assert not counts.any()


def test_reading_leaves_what_was_read_as_it_was():
    slots, weights = draw_reads(5)
    before = slots.clone(), weights.clone()
    count((slots, weights), heads=HEADS)
    assert torch.equal(slots, before[0])
    assert torch.equal(weights, before[1])


def test_weights_that_carry_gradients_are_counted_without_them():
    slots, weights = draw_reads(5)
    counts = count((slots, weights.requires_grad_()))
    assert not counts.requires_grad


def test_a_slot_chosen_twice_counts_twice():
    slots = torch.tensor([[[3, 3, 1]]])
    counts = count((slots, torch.tensor([[[0.5, 0.25, 0.25]]])), slots_total=4)
    assert counts[:, 0].tolist() == [
        [0, 0, 0, 1],
        [0, 1, 0, 2],
        [0, WEIGHT_UNITS // 4, 0, 3 * WEIGHT_UNITS // 4],
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_every_precision_are_counted_as_exactly_as_they_are_given(dtype):
    slots, weights = draw_reads(60)
    weights = weights.to(dtype)
    counts = count((slots, weights))
    plain = definition.count(slots.flatten(0, 1), weights.flatten(0, 1), SLOTS)
    assert_counts(counts[:, 0], plain)


def test_a_weight_of_one_is_exactly_one_unit_in_every_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        one = torch.ones(1, 1, 1, dtype=dtype)
        counts = count((torch.zeros(1, 1, 1, dtype=torch.int64), one), slots_total=1)
        assert counts.flatten().tolist() == [1, 1, WEIGHT_UNITS], dtype


def test_weights_that_sum_to_anything_and_slots_of_weight_zero_count_as_defined():
    # As relu gives them: large, small, and none for slots that were found but not read.
    slots, scores = draw_reads(60)
    weights = ((20 * scores - 4).relu() * torch.rand(60, HEADS, 1)).sort(descending=True).values
    weights[:9] = 0
    assert weights.max() > 5
    counts = count((slots, weights), heads=HEADS)
    for head in range(HEADS):
        expected = definition.count(slots[:, head], weights[:, head], SLOTS)
        assert expected[0].sum() < 60
        assert expected[1].sum() < 60 * TOPK
        assert_counts(counts[:, head], expected)
        figures = definition.figures(counts[:, head].numpy())
        assert usage_figures(counts[:, head]) == pytest.approx(figures)


def test_reads_of_nothing_but_weight_zero_are_no_reads():
    slots, weights = draw_reads(8)
    assert not count((slots, torch.zeros_like(weights))).any()


def test_a_weight_beyond_all_sense_does_not_overflow():
    slots, weights = draw_reads(50)
    counts = count((slots, weights * math.inf), (slots, weights * 1e30), heads=HEADS)
    assert (counts >= 0).all()
    assert math.isfinite(usage_figures(counts[:, 0])["kl"])


def test_figures_are_those_of_the_definitions():
    slots, weights = draw_reads(4, topk=2)
    counts = count((slots, weights))[:, 0]
    figures = usage_figures(counts)
    expected = definition.figures(counts.numpy())
    assert figures.keys() == expected.keys()
    for name, figure in figures.items():
        assert figure == pytest.approx(expected[name], rel=1e-12), name
    assert 0 < figures["top1_usage"] < figures["topk_usage"] < 1
    assert {type(figure) for figure in figures.values()} == {float, int}


def test_nothing_read_has_no_kl_and_no_slots():
    figures = usage_figures(make_counts(1, SLOTS, "cpu")[:, 0])
    assert math.isnan(figures.pop("kl"))
    assert math.isnan(figures.pop("kl_unweighted"))
    assert set(figures.values()) == {0}


@pytest.mark.parametrize("count_of_each", [1, 3, 2**40])
def test_slots_all_alike_have_kl_zero(count_of_each):
    counts = torch.full((36,), count_of_each)
    assert kl_from_uniform(counts) == pytest.approx(0, abs=1e-12)
    assert slots_carrying(counts)[50] == 18
    assert usage(counts) == 1


def test_one_slot_only_has_the_largest_kl():
    counts = torch.zeros(49, dtype=torch.int64)
    counts[5] = 3
    assert kl_from_uniform(counts) == pytest.approx(math.log(49), rel=1e-12)
    assert usage(counts) == pytest.approx(1 / 49)
    assert slots_carrying(counts) == {50: 1, 90: 1, 99: 1}


def test_a_memory_of_one_slot_is_used_evenly():
    slots = torch.zeros(6, HEADS, 1, dtype=torch.int64)
    figures = usage_figures(count((slots, torch.ones(6, HEADS, 1)), slots_total=1)[:, 0])
    assert figures == {
        "top1_usage": 1,
        "topk_usage": 1,
        "kl": 0,
        "kl_unweighted": 0,
        "slots50": 1,
        "slots90": 1,
        "slots99": 1,
    }


def test_the_slots_that_carry_a_share_are_the_least_that_reach_it():
    counts = torch.tensor([0, 40, 9, 50, 1])
    percents = (50, 51, 90, 91, 99, 100)
    assert slots_carrying(counts, percents) == dict(zip(percents, (1, 2, 2, 3, 3, 4)))


def test_counts_neither_overflow_nor_lose_a_read_near_their_limit():
    # All weight in one slot but for one read of another: the worst case before 2**39 reads.
    reads = 2**39 - 2
    counts = make_counts(1, 16, "cpu")
    counts[:, 0, 7] = torch.tensor([reads, reads, reads * WEIGHT_UNITS])
    add_reads(counts, torch.tensor([[[2]]]), torch.ones(1, 1, 1))
    assert counts[:, 0, 2].tolist() == [1, 1, WEIGHT_UNITS]
    assert counts[:, 0, 7].tolist() == [reads, reads, reads * WEIGHT_UNITS]
    assert counts.sum(-1).flatten().tolist() == [2**39 - 1] * 2 + [(2**39 - 1) * WEIGHT_UNITS]
    figures = usage_figures(counts[:, 0])
    assert figures["top1_usage"] == 2 / 16
    expected = definition.kl_from_uniform(counts[2, 0].tolist())
    assert figures["kl"] == pytest.approx(expected, rel=1e-9)
    assert figures["kl"] == pytest.approx(math.log(16), rel=1e-9)
    assert figures["slots99"] == 1


def test_even_counts_near_their_limit_have_kl_zero():
    counts = torch.full((1024,), 2**29 * WEIGHT_UNITS - 1)
    assert kl_from_uniform(counts) == pytest.approx(0, abs=1e-12)
    assert slots_carrying(counts)[50] == 512


def test_memories_with_tables_of_their_own_are_joined_side_by_side():
    first, second = count(draw_reads(9, seed=1))[:, 0], count(draw_reads(9, seed=2))[:, 0]
    joined = join_counts([first, second], ["a", "b"])
    assert torch.equal(joined, torch.cat([first, second], 1))


def test_memories_that_share_a_table_are_added_up_and_stay_as_they_were():
    first, second, third = (count(draw_reads(9, seed=seed))[:, 0] for seed in (1, 2, 3))
    before = first.clone()
    joined = join_counts([first, second, third], ["a", "b", "a"])
    assert torch.equal(joined, torch.cat([first + third, second], 1))
    assert torch.equal(first, before)


def test_drift_is_the_share_of_pairs_that_changed_and_adds_up_over_batches():
    before = torch.tensor([[0, 1], [2, 3], [4, 5]])
    after = torch.tensor([[0, 9], [2, 3], [9, 9]])
    assert count_changes(before, after).tolist() == [[1, 3], [2, 3]]
    assert drift(count_changes(before, after)) == 0.5
    parts = [count_changes(before[i : i + 1], after[i : i + 1]) for i in range(3)]
    assert torch.equal(sum(parts), count_changes(before, after))
    assert drift(count_changes(before, before)) == 0
    assert math.isnan(drift(count_changes(before[:0], after[:0])))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_on_a_gpu_counting_waits_for_nothing_and_counts_the_same():
    reads = draw_reads(50)
    counts = make_counts(HEADS, SLOTS, "cuda")
    on_gpu = [part.cuda() for part in reads]
    torch.cuda.set_sync_debug_mode("error")
    try:
        add_reads(counts, *on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(counts.cpu(), count(reads, heads=HEADS))


def test_figures_of_counts_whose_sum_overflows_are_right():
    counts = torch.full((3, 4096), 2**62)
    counts[:, 1024:] = 0
    figures = usage_figures(counts)
    assert figures["top1_usage"] == 0.25
    assert figures["kl"] == figures["kl_unweighted"] == pytest.approx(math.log(4))
    assert figures["slots50"] == 512
