"""Pictures of how a memory is used.

H heads (1 where all are counted together), N sub-keys per half, S slots.
"""

import logging
import math
from pathlib import Path

import numpy as np

# Outside its commands fairseq lets every library log what only its makers care for.
logging.getLogger("matplotlib").setLevel(logging.WARNING)

# ruff: noqa: E402 - after the above
import torch.nn.functional as F
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from pkm_fairseq.usage.metrics import slots_carrying, usage

MOST_CELLS = 512
CURVE_POINTS = 2000


def draw_memory(counts):
    """Draws where a memory is used, and how evenly.

    Args:
        counts: of one memory, (3, H, S), as ``pkm_fairseq.usage.metrics`` counts.

    Returns:
        A matplotlib Figure with a row for each head: the grid of slots, sub-keys of the first half
        down and of the second across, coloured by how often each was the best and how often it was
        selected, so that a sub-key nobody selects is a blank row or column; and the sorted usage
        curve.
    """
    heads, slots_total = counts.shape[1:]
    dpi = min(max(90, math.isqrt(slots_total) // 3), MOST_CELLS // 3)  # a pixel for each slot
    height = 4 * heads  # inches
    figure = Figure(figsize=(13, height), dpi=dpi)
    # A layout that matplotlib finds takes longer than all the rest, at each validation.
    places = {"left": 0.05, "right": 0.99, "bottom": 0.5 / height, "top": 1 - 0.35 / height}
    grid = figure.subplots(heads, 3, squeeze=False, gridspec_kw={**places, "hspace": 0.3})
    for head, axes in enumerate(grid):
        top1, selected, weight = counts[:, head]
        of_head = f", head {head}" if heads > 1 else ""
        draw_grid(axes[0], top1, f"times best{of_head}")
        draw_grid(axes[1], selected, f"times selected{of_head}")
        draw_curves(axes[2], [("", weight)])
        for percent, slots in slots_carrying(weight).items():
            axes[2].axvline(max(slots, 1), color="grey", linestyle=":")
            axes[2].annotate(
                f"{percent} %",
                (max(slots, 1), 1),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                va="top",
            )
    return figure


def draw_grid(axes, counts, title):
    """Draws the N x N grid of slots, coloured by the logarithm of their ``counts``, (S,)."""
    subkeys = math.isqrt(len(counts))
    # Of more slots than a picture has room for, the most used of some neighbours is shown.
    cell = -(-subkeys // MOST_CELLS)
    grid = F.max_pool2d(counts.double().view(1, subkeys, subkeys), cell, ceil_mode=True)[0]
    image = axes.imshow(
        grid.where(grid > 0, math.nan),
        norm=LogNorm(1, max(2, grid.max().item())),
        interpolation="nearest",
        extent=(-0.5, subkeys - 0.5, subkeys - 0.5, -0.5),
    )
    axes.set(
        title=f"{title}: {usage(counts):.1%} of slots",
        xlabel="second sub-key",
        ylabel="first sub-key",
    )
    axes.figure.colorbar(image, ax=axes).minorticks_off()  # they take longer than all the rest


def draw_curves(axes, weights):
    """Draws sorted usage curves: slots, most used first, and the share of the weight each carries.

    Args:
        axes: where to draw.
        weights: a list of a label and the weights of a memory's slots, (S,), for each.
    """
    for label, weight in weights:
        # Where nothing was read, relu's weights being all zero, the shares are zero.
        share = np.sort(weight.numpy())[::-1] / max(1, weight.double().sum().item())
        ranks = np.unique(np.geomspace(1, len(share), CURVE_POINTS).round().astype(int))
        axes.plot(ranks, share[ranks - 1], label=label)
    for slots_total in {len(weight) for _, weight in weights}:
        label = f"all {slots_total:,} slots alike"
        axes.axhline(1 / slots_total, color="black", linestyle="--", linewidth=1, label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="slots, most used first",
        ylabel="share of the weight",
        title="sorted usage",
    )
    axes.minorticks_off()
    axes.legend(loc="lower left")  # to find the best place takes longer than to draw


class UsageWriter:
    """Writes the pictures of validation sets for TensorBoard.

    Args:
        folder: fairseq's --tensorboard-logdir.
    """

    def __init__(self, folder):
        self._folder = Path(folder)
        self._writers = {}

    def write(self, subset, counts, step):
        """Draws the usage of each memory.

        Args:
            subset: name of the validation set.
            counts: counts by layer, (3, H, S).
            step: updates so far.
        """
        if subset not in self._writers:
            # Not into fairseq's own folder: TensorBoard goes on from one file to the next and never
            # back, so that two writers in a folder hide each other's later entries.
            self._writers[subset] = SummaryWriter(self._folder / subset / "memory")
        for layer, of_layer in counts.items():
            self._writers[subset].add_figure(f"pkm_l{layer}", draw_memory(of_layer), step)
        self._writers[subset].flush()
