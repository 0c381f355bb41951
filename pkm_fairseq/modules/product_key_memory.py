"""The memory layer.

T tokens, D input width, H heads, N sub-keys per half, Q half the width of a query, K slots read
per head, V width of a value.
"""

import torch
from torch import nn

from pkm_fairseq.config import PKMConfig, check_memory
from pkm_fairseq.ops import product_key_search

from .query_norm import build_query_norm
from .value_table import ValueTable


class ProductKeyMemory(nn.Module):
    """Reads a large table of values through product keys (Lample et al. 2019, section 3).

    Args:
        input_dim: width of the tokens that query the memory, and of what it returns.
        subkeys: sub-keys per half; the memory has ``subkeys ** 2`` slots.
        heads: queries per token.
        topk: slots each head reads.
        key_dim: width of a query and of a key, even.
        value_dim: width of a value, None for ``input_dim``; any other adds a projection.
        query_norm: batch, layer or none.
        sync_query_norm: whether batch takes the statistics of all workers' tokens together.
        query_dropout: dropout probability on the normalised queries.
        value_dropout: dropout probability on the weighted sum of values.
        value_init: normal or zero.
        grad: dense or sparse gradient of the values.
        values: a ``ValueTable`` to share, None for one of its own.

    Raises:
        ValueError: if a size or probability cannot be, naming the option to change.
    """

    def __init__(
        self,
        input_dim,
        *,
        subkeys=PKMConfig.pkm_subkeys,
        heads=PKMConfig.pkm_heads,
        topk=PKMConfig.pkm_topk,
        key_dim=PKMConfig.pkm_key_dim,
        value_dim=PKMConfig.pkm_value_dim,
        query_norm=PKMConfig.pkm_query_norm,
        sync_query_norm=PKMConfig.pkm_sync_query_norm,
        query_dropout=PKMConfig.pkm_query_dropout,
        value_dropout=PKMConfig.pkm_value_dropout,
        value_init=PKMConfig.pkm_value_init,
        grad=PKMConfig.pkm_grad,
        values=None,
    ):
        super().__init__()
        check_memory(
            subkeys=subkeys,
            heads=heads,
            topk=topk,
            key_dim=key_dim,
            value_dim=value_dim,
            query_dropout=query_dropout,
            value_dropout=value_dropout,
        )
        value_dim = value_dim or input_dim
        slots_total = subkeys**2
        if values is not None and values.weight.shape != (slots_total, value_dim):
            raise ValueError(
                f"the shared values are {tuple(values.weight.shape)}, "
                f"but this memory needs {(slots_total, value_dim)}"
            )
        self.heads = heads
        self.query = nn.Linear(input_dim, heads * key_dim)
        self.query_norm = build_query_norm(query_norm, heads, key_dim, sync_query_norm)
        self.query_dropout = nn.Dropout(query_dropout)
        self.subkeys = nn.Parameter(torch.empty(heads, 2, subkeys, key_dim // 2))  # (H, 2, N, Q)
        self.search = ProductKeySearch(topk)
        self.values = values or ValueTable(slots_total, value_dim, value_init, grad)
        self.value_dropout = nn.Dropout(value_dropout)
        self.output = (
            nn.Identity() if value_dim == input_dim else nn.Linear(value_dim, input_dim, bias=False)
        )
        self.reset_parameters()

    def reset_parameters(self):
        """Draws all parameters anew: queries and read keep the scale of what they are made of."""
        nn.init.normal_(self.query.weight, std=self.query.in_features**-0.5)
        nn.init.zeros_(self.query.bias)
        if hasattr(self.query_norm, "reset_parameters"):
            self.query_norm.reset_parameters()
        bound = self.subkeys.shape[-1] ** -0.5
        nn.init.uniform_(self.subkeys, -bound, bound)
        self.values.reset_parameters()
        if isinstance(self.output, nn.Linear):
            nn.init.normal_(self.output.weight, std=self.output.in_features**-0.5)

    def forward(self, x, padding_mask=None):
        """Reads the memory for every token that is not padding.

        Args:
            x: the tokens, (..., D).
            padding_mask: True where ``x`` is padding, (...), or None where nothing is. Padding
                never reaches the memory: it enters no statistics and selects no slot.

        Returns:
            What each token read, (..., D), zero for padding.
        """
        tokens = x.reshape(-1, x.shape[-1])
        if padding_mask is None:
            return self._read(tokens).view(x.shape)
        real = (~padding_mask).flatten().nonzero().squeeze(1)  # (T,)
        read = self._read(tokens[real])  # (T, D)
        return read.new_zeros(tokens.shape).index_copy(0, real, read).view(x.shape)

    def _read(self, tokens):
        """Reads the memory for ``tokens``, (T, D)."""
        query = self._query(tokens)  # (T, H, 2, Q)
        slots, weights = self.search(query, self.subkeys)  # (T, H, K) each
        read = self.values(slots.flatten(1), weights.flatten(1))  # (T, V)
        return self.output(self.value_dropout(read))  # (T, D)

    def _query(self, tokens):
        """Makes each head's query and cuts it in its two halves."""
        query = self.query(tokens).unflatten(-1, (self.heads, -1))  # (T, H, 2 * Q)
        query = self.query_dropout(self.query_norm(query))
        return query.unflatten(-1, (2, -1))  # (T, H, 2, Q)

    def extra_repr(self):
        heads, _, subkeys, half_key_dim = self.subkeys.shape
        topk = self.search.topk
        return f"subkeys={subkeys}, heads={heads}, topk={topk}, key_dim={2 * half_key_dim}"


class ProductKeySearch(nn.Module):
    """Finds the slots that queries select; a module, so that forward hooks see what is read.

    Args:
        topk: slots each head selects.
    """

    def __init__(self, topk):
        super().__init__()
        self.topk = topk

    def forward(self, query, subkeys):
        """Searches for each head and token by itself.

        Args:
            query: (T, H, 2, Q).
            subkeys: (H, 2, N, Q).

        Returns:
            The slots, best first, (T, H, K), int64, and their weights, which sum to one for each
            head and token, (T, H, K), in float32 or better.
        """
        weights, slots = product_key_search(query, subkeys, self.topk, softmax=True)
        return slots, weights  # (T, H, K) each
