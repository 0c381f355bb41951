"""Weighted sums of rows of a table."""

from pkm_fairseq.ops.compiling import not_compiled

from .autograd import (
    KeptDenseGradient,
    KeptMemory,
    KeptSparseGradient,
    WeightedBag,
    dense_gradient,
    gradient_of_rows,
    touched_row_gradients,
)
from .compact import quantise_rows, quantized_bag


@not_compiled
def weighted_bag(values, slots, weights, gradient=dense_gradient, rows=None):
    """Sums, for each token, the rows of ``values`` it selected, each times its weight.

    Args:
        values: the table, (slots, value-dim), floating point.
        slots: the rows each token selected, (tokens, n), int64 or int32; a row may stand there
            twice.
        weights: their weights, (tokens, n), floating point; used in the dtype of ``values``.
        gradient: how the gradient of ``values`` is made: ``dense_gradient``, or one
            ``KeptDenseGradient()`` (dense, in memory that is kept) or ``KeptSparseGradient()``
            (sparse) for as long as the table lives.
        rows: a copy of some rows of ``values``, (R, value-dim), that is to have the gradient in the
            place of ``values``; ``gradient`` is ``gradient_of_rows`` then.

    Returns:
        (tokens, value-dim), in the dtype of ``values``; differentiable, once, in ``values`` and
        ``weights``.

    Raises:
        ValueError: if the shapes do not fit.

    Source: Lample et al. 2019 (arXiv 1907.05242), section 3.1, equation 3.
    """
    if values.dim() != 2 or slots.dim() != 2 or slots.shape != weights.shape:
        raise ValueError(
            "weighted_bag takes values (slots, value-dim), slots (tokens, n) and weights "
            f"(tokens, n), not {tuple(values.shape)}, {tuple(slots.shape)} and "
            f"{tuple(weights.shape)}"
        )
    return WeightedBag.apply(values, slots, weights, gradient, rows)


__all__ = [
    "KeptDenseGradient",
    "KeptMemory",
    "KeptSparseGradient",
    "dense_gradient",
    "gradient_of_rows",
    "quantise_rows",
    "quantized_bag",
    "touched_row_gradients",
    "weighted_bag",
]
