"""The weighted sum by its definition."""


def reference_weighted_bag(values, slots, weights):
    """Does what ``weighted_bag`` does, with every selected row written out."""
    rows = values[slots]  # (tokens, n, value-dim)
    return (weights.to(values.dtype).unsqueeze(-1) * rows).sum(1)
