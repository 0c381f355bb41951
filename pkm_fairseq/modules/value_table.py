"""The values of a memory."""

import torch
from torch import nn


class ValueTable(nn.Module):
    """One row for each slot; several memories may share a table.

    Args:
        slots: number of rows.
        value_dim: width of a row.
        init: normal (variance 1 / value_dim) or zero.

    Raises:
        ValueError: if ``init`` is neither.
    """

    def __init__(self, slots, value_dim, init):
        super().__init__()
        if init not in ("normal", "zero"):
            raise ValueError(f"value_init={init} is not normal or zero: change --pkm-value-init")
        self.init = init
        # A bare Parameter: fairseq's init_bert_params redraws every nn.Embedding.
        self.weight = nn.Parameter(torch.empty(slots, value_dim))
        self.reset_parameters()

    def reset_parameters(self):
        """Draws all rows anew."""
        if self.init == "normal":
            nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        else:
            nn.init.zeros_(self.weight)

    def extra_repr(self):
        slots, value_dim = self.weight.shape
        return f"{slots}, {value_dim}, init={self.init}"
