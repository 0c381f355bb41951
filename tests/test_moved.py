"""How far values have moved since a run began."""

import pytest
import torch

from pkm_fairseq.usage import moved
from pkm_fairseq.usage.moved import Moved
from tests.models.tiny import make_memory_model


def figures_after(model, move, **begin):
    values = Moved()
    values.begin_run(model.memories(), **begin)
    with torch.no_grad():
        move(model.memories())
    values.compare(model.memories())
    return values.figures()


def test_values_that_stand_still_have_not_moved():
    model = make_memory_model()
    figures = figures_after(model, lambda memories: memories[1].subkeys.add_(1))
    assert figures["pkm_moved"] == figures["pkm_moved_slots"] == figures["pkm_l1_moved"] == 0
    assert figures["pkm_value_norm"] == pytest.approx(1, abs=0.1)


def test_what_moves_is_told_in_distance_and_in_slots():
    model = make_memory_model(pkm_layers=[0, 2])

    def move(memories):
        # Of 64 slots of width 16, a quarter: by a distance of 2.
        memories[2].values.weight[16:32] += 0.5

    figures = figures_after(model, move)
    assert figures["pkm_l0_moved"] == figures["pkm_l0_moved_slots"] == 0
    assert figures["pkm_l2_moved"] == pytest.approx(1)
    assert figures["pkm_l2_moved_slots"] == 0.25
    assert figures["pkm_moved"] == pytest.approx(0.5**0.5)
    assert figures["pkm_moved_slots"] == 0.125
    weight = model.memories()[2].values.weight
    assert figures["pkm_l2_value_norm"] == pytest.approx(
        weight.square().sum(1).mean().sqrt().item()
    )


def test_a_step_of_no_note_is_a_distance_but_moves_no_slot():
    figures = figures_after(
        make_memory_model(pkm_value_init="zero"),
        lambda memories: memories[1].values.weight.add_(1e-12),
    )
    assert figures["pkm_moved"] == figures["pkm_value_norm"] == pytest.approx(4e-12)
    assert figures["pkm_moved_slots"] == 0


def test_a_table_that_memories_share_counts_once():
    model = make_memory_model(pkm_layers=[0, 2], pkm_share_values=True)
    figures = figures_after(model, lambda memories: memories[0].values.weight.mul_(3))
    assert figures["pkm_moved"] == figures["pkm_l0_moved"] == figures["pkm_l2_moved"]


def test_of_a_large_table_some_slots_from_all_over_it_are_looked_at(monkeypatch):
    monkeypatch.setattr(moved, "SLOTS", 10)
    figures = figures_after(
        make_memory_model(), lambda memories: memories[1].values.weight[32:].add_(1)
    )
    assert figures["pkm_moved_slots"] == 0.5


def test_a_run_begins_once_unless_it_is_told_to_begin_again():
    model = make_memory_model()
    values = Moved()
    for again, distance in ((False, 4), (False, 8), (True, 0)):
        with torch.no_grad():
            model.memories()[1].values.weight.add_(0 if again else 1)
        values.begin_set()
        if distance == 4:
            values.begin_run(make_memory_model().memories())
        else:
            values.begin_run(model.memories(), again)
        values.compare(model.memories())
        assert values.figures()["pkm_moved"] == pytest.approx(distance)


@pytest.mark.parametrize("form", [{"pkm_table_dtype": "int8"}, {"pkm_table_dtype": "bf16"}])
def test_compact_values_are_looked_at_as_they_are_read(form):
    values = Moved()
    values.begin_run(make_memory_model().memories())
    values.compare(make_memory_model(**form).memories())
    assert 0 < values.figures()["pkm_moved"] < 0.01


def test_without_a_beginning_or_with_other_sizes_there_is_the_length_alone():
    values = Moved()
    assert values.figures() == {}
    values.begin_run(make_memory_model(pkm_subkeys=9).memories())
    values.compare(make_memory_model().memories())
    assert set(values.figures()) == {"pkm_value_norm", "pkm_l1_value_norm"}
