"""How much of a memory is used: counts of what it reads, and their figures; pure functions.

T tokens, H heads, K slots read per head, S slots. ``counts``, (3, ..., S), int64, holds for each
slot how often it was the best of a head, how often it was selected, and the sum of its weights. All
three are integers, weights in units of 2**-24: such sums are exact in any order, so that several
workers, other batches or a GPU give what one CPU gives, and no slot's overflows before its weights
add up to 2**39. A slot whose weight is zero was neither the best nor selected: nothing was read.
"""

import math

import numpy as np
import torch

WEIGHT_UNITS = 2**24
MOST_WEIGHT = 2**15  # of a read; what relu gives a model that diverges could overflow
WEIGHT_SHARES = (50, 90, 99)


def make_counts(heads, slots_total, device):
    """Returns the counts of a memory that has read nothing, (3, heads, slots_total)."""
    return torch.zeros(3, heads, slots_total, dtype=torch.int64, device=device)


def add_reads(counts, slots, weights):
    """Adds reads to ``counts`` in place, without waiting for the device.

    Args:
        counts: (3, H, S), or (3, 1, S) for all heads together.
        slots: the slots selected, best first, (T, H, K), int64.
        weights: their weights, (T, H, K), not negative.
    """
    top1, selected, weight = counts.flatten(1)  # (H * S,) each
    heads, slots_total = counts.shape[1:]
    if heads > 1:
        slots = slots + slots_total * torch.arange(heads, device=slots.device).unsqueeze(1)
    read = weights.ne(0).to(counts.dtype)
    top1.index_add_(0, slots[..., 0].flatten(), read[..., 0].flatten())
    selected.index_add_(0, slots.flatten(), read.flatten())
    # Half precision cannot hold so many units.
    weights = weights.detach().float().clamp(max=MOST_WEIGHT)
    units = (weights * WEIGHT_UNITS).round().to(counts.dtype)
    weight.index_add_(0, slots.flatten(), units.flatten())


def usage_figures(counts):
    """Computes every figure of a memory's usage.

    Args:
        counts: (3, S), on the CPU.

    Returns:
        A dict from name to number: ``top1_usage``, ``topk_usage``, ``kl`` (of the weights),
        ``kl_unweighted`` (of the selections), ``slots50``, ``slots90`` and ``slots99``.
    """
    top1, selected, weight = counts
    return {
        "top1_usage": usage(top1),
        "topk_usage": usage(selected),
        "kl": kl_from_uniform(weight),
        "kl_unweighted": kl_from_uniform(selected),
        **{f"slots{percent}": slots for percent, slots in slots_carrying(weight).items()},
    }


def usage(counts):
    """Returns the share of slots, 0 to 1, whose count, (S,), is not zero.

    Of times best: the top-1 memory usage that Kim & Jung 2020 define. Of times selected: the memory
    usage of Lample et al. 2019, section 4.2, "Evaluation metrics".
    """
    return (counts > 0).double().mean().item()


def kl_from_uniform(counts):
    """Returns KL(z || uniform) in nats, z being ``counts``, (S,), normalised.

    From 0, all slots alike, to log(S), one slot only; NaN if nothing was counted. Lample et al.
    2019, section 4.2, "Evaluation metrics", take the weights; unweighted are the selections.
    """
    z = counts.double() / counts.double().sum()
    return math.log(len(z)) + torch.special.xlogy(z, z).sum().item()


def slots_carrying(weight, percents=WEIGHT_SHARES):
    """Returns for each of ``percents`` the least number of slots that together carry so many
    percent of the weight, (S,), on the CPU.
    """
    # numpy sorts without torch's indices, which take most of its time and memory.
    carried = np.sort(weight.numpy())[::-1].cumsum(dtype=np.float64)
    total = carried[-1]
    return {
        percent: int(np.searchsorted(carried, total * percent / 100)) + bool(total)
        for percent in percents
    }


def count_changes(before, after):
    """Counts for each head the tokens whose best slot has changed.

    Args:
        before: best slot of each token and head, (T, H).
        after: the same for the same tokens later.

    Returns:
        Tokens changed and tokens compared, (H, 2), int64; such counts can be added.
    """
    changed = (before != after).sum(0)  # (H,)
    return torch.stack([changed, torch.full_like(changed, len(before))], 1)


def drift(changes):
    """Returns the share, 0 to 1, of (token, head) pairs that changed; NaN of none.

    Kim & Jung 2020's "catastrophic drift" as a number.

    Args:
        changes: as ``count_changes`` counts, (H, 2).
    """
    changed, compared = changes.sum(0).tolist()
    return changed / compared if compared else math.nan


def read_ratio(squares):
    """Returns the norm of what was read over that of what it was added to, NaN of nothing.

    Args:
        squares: the sums of their squares, (2,).
    """
    read, base = squares.tolist()
    return math.sqrt(read / base) if base else math.nan


def join_counts(counts, tables):
    """Joins the counts of several memories to those of all the rows of values they read.

    Args:
        counts: a list of counts, (3, S) each.
        tables: for each memory what names its table; memories with one table share its rows.

    Returns:
        (3, S * number of tables).
    """
    rows = {}
    for table, of_memory in zip(tables, counts):
        rows[table] = rows[table] + of_memory if table in rows else of_memory
    return torch.cat(list(rows.values()), 1)
