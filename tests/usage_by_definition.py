"""Memory usage computed read by read, as its definitions say."""

import math

import numpy as np


def count(slots, weights, slots_total):
    """Counts reads.

    Args:
        slots: (reads, K), best first.
        weights: (reads, K).
        slots_total: slots of the memory.

    Returns:
        For each slot how often it was best, how often selected, and its weight, (3, slots_total).
    """
    counts = np.zeros((3, slots_total))
    for of_read, weights_of_read in zip(slots.tolist(), weights.tolist()):
        counts[0, of_read[0]] += weights_of_read[0] > 0
        for slot, weight in zip(of_read, weights_of_read):
            counts[1, slot] += weight > 0
            counts[2, slot] += weight
    return counts


def kl_from_uniform(counts):
    total = math.fsum(counts)
    shares = [float(c) / total for c in counts if c]
    return math.fsum(share * math.log(share * len(counts)) for share in shares)


def slots_carrying(weight, percent):
    carried = np.cumsum(sorted(weight, reverse=True))
    return next(i for i, sum_ in enumerate(carried, 1) if 100 * sum_ >= percent * carried[-1])


def figures(counts):
    """All figures of ``counts``, by name."""
    top1, selected, weight = counts
    return {
        "top1_usage": np.mean(top1 > 0),
        "topk_usage": np.mean(selected > 0),
        "kl": kl_from_uniform(weight),
        "kl_unweighted": kl_from_uniform(selected),
        **{f"slots{percent}": slots_carrying(weight, percent) for percent in (50, 90, 99)},
    }
