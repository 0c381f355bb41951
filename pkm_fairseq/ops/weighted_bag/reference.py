"""The weighted sum by its definition."""


def reference_weighted_bag(values, slots, weights):
    """Same as ``weighted_bag``, with every selected row written out."""
    rows = values[slots]  # (tokens, n, value-dim)
    return (weights.to(values.dtype).unsqueeze(-1) * rows).sum(1)
