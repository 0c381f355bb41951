"""The values of a memory."""

import torch
from torch import nn

from pkm_fairseq.ops import (
    KeptDenseGradient,
    KeptSparseGradient,
    compact_bag,
    quantise_rows,
    weighted_bag,
)
from pkm_fairseq.ops.cpu import with_huge_pages

GRADIENTS = {"dense": KeptDenseGradient, "sparse": KeptSparseGradient}


class ValueTable(nn.Module):
    """One row for each slot; several memories may share a table.

    Args:
        slots: number of rows.
        value_dim: width of a row.
        init: normal (variance 1 / value_dim) or zero.
        grad: dense or sparse, which an optimizer must be able to take, as ``LazyAdam`` is.
        scale: what normal draws are multiplied with.

    Raises:
        ValueError: if ``init`` or ``grad`` is neither.
    """

    def __init__(self, slots, value_dim, init, grad="dense", scale=1.0):
        super().__init__()
        if init not in ("normal", "zero"):
            raise ValueError(f"value_init={init} is not normal or zero: change --pkm-value-init")
        if grad not in GRADIENTS:
            raise ValueError(f"grad={grad} is not dense or sparse: change --pkm-grad")
        self.init = init
        self.grad = grad
        self.scale = scale
        self._make_gradient = GRADIENTS[grad]()
        # A bare Parameter: fairseq's init_bert_params redraws every nn.Embedding.
        self.weight = nn.Parameter(with_huge_pages(torch.empty(slots, value_dim)))
        self.reset_parameters()

    def reset_parameters(self):
        """Draws all rows anew."""
        if self.init == "normal":
            nn.init.normal_(self.weight, std=self.scale * self.weight.shape[1] ** -0.5)
        else:
            nn.init.zeros_(self.weight)

    def forward(self, slots, weights):
        """Reads the rows ``slots``, (T, n), times ``weights``, (T, n): (T, value-dim)."""
        return weighted_bag(self.weight, slots, weights, self._make_gradient)

    def extra_repr(self):
        slots, value_dim = self.weight.shape
        return f"{slots}, {value_dim}, init={self.init}, grad={self.grad}"


class CompactValueTable(nn.Module):
    """The rows of a ``ValueTable`` in fewer bits, which can be read but not trained.

    They keep their bits under any dtype of the model.

    Args:
        table: the ``ValueTable``.
        dtype: bf16, or int8: each row in multiples of a 127th of its largest number.
    """

    def __init__(self, table, dtype):
        super().__init__()
        weight = table.weight.detach()
        if dtype == "int8":
            rounded, scales = quantise_rows(weight)
        else:
            rounded, scales = torch.empty_like(weight, dtype=torch.bfloat16), None
            with_huge_pages(rounded).copy_(weight)
        self.register_buffer("weight", rounded)
        self.register_buffer("scales", scales)

    def forward(self, slots, weights):
        """Reads the rows ``slots``, (T, n), times ``weights``, (T, n): (T, value-dim), float32."""
        return compact_bag(self.weight, slots, weights, self.scales)

    def _apply(self, fn, *args, **kwargs):
        """Moves the table as ``fn`` says, but never converts it."""
        for name, buffer in self.named_buffers():
            setattr(self, name, buffer.to(fn(buffer[:0]).device))
        return self

    def extra_repr(self):
        slots, value_dim = self.weight.shape
        return f"{slots}, {value_dim}, {self.weight.dtype}"
