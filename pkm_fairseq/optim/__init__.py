"""Optimizers for models with a memory."""

from .lazy_adam import LazyAdam
from .pkm_adam import PKMAdam, PKMAdamConfig

__all__ = ["LazyAdam", "PKMAdam", "PKMAdamConfig"]
