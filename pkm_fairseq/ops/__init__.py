"""Tensor functions of product-key memory; nothing here knows of fairseq."""

from .product_key_search import product_key_search
from .product_key_topk import product_key_topk
from .weighted_bag import touched_row_gradients, weighted_bag

__all__ = ["product_key_search", "product_key_topk", "touched_row_gradients", "weighted_bag"]
