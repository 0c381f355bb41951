"""Pictures show what was counted where it was counted."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pkm_fairseq.usage.plots import draw_curves, draw_grid, draw_memory

SUBKEYS = 6


def drawn_grid(counts):
    axes = Figure().add_subplot()
    draw_grid(axes, counts, "title")
    (image,) = axes.get_images()
    return axes, image.get_array()


def test_a_slot_stands_at_its_first_subkeys_row_and_its_seconds_column():
    counts = torch.zeros(SUBKEYS**2, dtype=torch.int64)
    counts[2 * SUBKEYS + 5] = 7
    axes, grid = drawn_grid(counts)
    assert grid[2, 5] == 7
    assert np.ma.count(grid) == 1, "slots that were never counted are blank"
    assert axes.get_title() == "title: 2.8% of slots"
    assert axes.get_ylabel() == "first sub-key"


def test_of_more_slots_than_there_is_room_for_no_used_one_is_lost():
    counts = torch.zeros(1030**2, dtype=torch.int64)
    counts[7 * 1030 + 1029] = 9
    axes, grid = drawn_grid(counts)
    assert grid.shape == (344, 344)
    assert grid[2, 343] == 9
    assert np.ma.count(grid) == 1
    assert axes.get_xlim() == (-0.5, 1029.5)


def test_the_curve_falls_from_the_most_used_slot_and_holds_all_of_the_weight():
    weights = torch.tensor([1, 5, 0, 4])
    axes = Figure().add_subplot()
    draw_curves(axes, [("name", weights)])
    curve, alike = axes.get_lines()
    assert curve.get_xdata().tolist() == [1, 2, 3, 4]
    assert curve.get_ydata().tolist() == pytest.approx([0.5, 0.4, 0.1, 0])
    assert set(alike.get_ydata()) == {0.25}


def test_a_memory_that_read_nothing_is_drawn():
    figure = Figure()
    draw_curves(figure.add_subplot(), [("name", torch.zeros(9, dtype=torch.int64))])
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("heads", [1, 3])
def test_a_memory_has_a_row_of_pictures_for_each_head(heads):
    counts = torch.randint(5, (3, heads, SUBKEYS**2))
    axes = draw_memory(counts).axes
    assert len([one for one in axes if one.get_images()]) == 2 * heads
    assert len([one for one in axes if one.get_title() == "sorted usage"]) == heads
