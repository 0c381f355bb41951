"""Tensor functions of product-key memory; nothing here knows of fairseq."""

from .product_key_search import product_key_search
from .product_key_topk import product_key_topk
from .row_adam import new_row_state, row_adam_
from .weighted_bag import (
    KeptDenseGradient,
    KeptMemory,
    KeptSparseGradient,
    dense_gradient,
    gradient_of_rows,
    quantise_rows,
    quantized_bag,
    touched_row_gradients,
    weighted_bag,
)

__all__ = [
    "KeptDenseGradient",
    "KeptMemory",
    "KeptSparseGradient",
    "dense_gradient",
    "gradient_of_rows",
    "new_row_state",
    "product_key_search",
    "product_key_topk",
    "quantise_rows",
    "quantized_bag",
    "row_adam_",
    "touched_row_gradients",
    "weighted_bag",
]
