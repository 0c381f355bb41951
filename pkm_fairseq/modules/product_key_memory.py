"""The memory layer.

T tokens, D input width, H heads, N sub-keys per half, M those of them that a training pass keeps, Q
half the width of a query, K slots read per head, V width of a value, R width of a read.
"""

from dataclasses import replace
from itertools import chain

import torch
from torch import nn

from pkm_fairseq.config import MemoryConfig, count_kept, default_key_dim
from pkm_fairseq.ops import product_key_search
from pkm_fairseq.refusals import RefusalError

from .cosine_scores import CosineScores
from .folded_queries import can_fold, fold
from .query_norm import build_query_norm
from .read_gate import build_gate
from .value_table import ValueTable


class ProductKeyMemory(nn.Module):
    """Reads a large table of values through product keys (Lample et al. 2019, section 3).

    Args:
        input_dim: width of the tokens that query the memory, and of what it returns.
        config: a ``MemoryConfig``, which tells what each option means.
        values: a ``ValueTable`` to share, None for one of its own.
        options: options of the config by name, to change or, without a config, to give.

    Raises:
        RefusalError: if a size, probability or choice cannot be, naming the option to change, or if
            the shared values are of other sizes.
    """

    def __init__(self, input_dim, config=None, *, values=None, **options):
        super().__init__()
        config = replace(config or MemoryConfig(), **options)
        config.check()
        heads, subkeys = config.heads, config.subkeys
        key_dim = config.key_dim or default_key_dim(input_dim)
        self.concat = config.heads_merge == "concat"
        if self.concat and config.value_dim is None and input_dim % heads:
            raise RefusalError(
                f"the width {input_dim} cannot be divided among heads={heads}: "
                "give --pkm-value-dim, or change --pkm-heads or --pkm-heads-merge"
            )
        value_dim = config.value_dim or (input_dim // heads if self.concat else input_dim)
        read_dim = heads * value_dim if self.concat else value_dim
        if values is not None and (len(values.weight), values.value_dim) != (subkeys**2, value_dim):
            raise RefusalError(
                f"the shared values are {(len(values.weight), values.value_dim)}, but this memory "
                f"needs {(subkeys**2, value_dim)}"
            )
        self.heads = heads
        self.query = self.build_query(input_dim, heads * key_dim)
        self.query_norm = build_query_norm(
            config.query_norm, heads, key_dim, config.sync_query_norm
        )
        self.query_dropout = nn.Dropout(config.query_dropout)
        self.subkeys = nn.Parameter(torch.empty(heads, 2, subkeys, key_dim // 2))  # (H, 2, N, Q)
        self.search = ProductKeySearch(
            config.topk,
            config.key_dropout,
            config.weights,
            CosineScores(heads) if config.score == "cosine" else None,
        )
        self.values = values or ValueTable(
            subkeys**2, value_dim, config.value_init, config.grad, config.shards
        )
        self.value_dropout = nn.Dropout(config.value_dropout)
        self.gate = build_gate(config.gate, input_dim, read_dim)
        project = self.concat or config.gate == "silu" or value_dim != input_dim
        self.output = nn.Linear(read_dim, input_dim, bias=False) if project else nn.Identity()
        self.reset_parameters()

    def build_query(self, input_dim, query_dim):
        """Builds the network that makes a token's queries, of all heads: for subclasses to change.

        ``reset_parameters`` draws what it has of ``nn.Linear`` anew, and resets what else has a
        ``reset_parameters``, as torch's modules have.
        """
        return nn.Linear(input_dim, query_dim)

    def reset_parameters(self):
        """Draws all parameters but the values anew.

        Queries and read keep the scale of what they are made of. The values their table draws, once
        for all memories that share it.
        """
        _reset_query(self.query)
        for part in (self.query_norm, self.search.cosine, self.gate):
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        bound = self.subkeys.shape[-1] ** -0.5
        nn.init.uniform_(self.subkeys, -bound, bound)
        if isinstance(self.output, nn.Linear):
            nn.init.normal_(self.output.weight, std=self.output.in_features**-0.5)

    def search_parameters(self):
        """Returns the parameters that decide which slots a token reads, and how it weighs them."""
        parts = self.query, self.query_norm, self.search
        return [self.subkeys, *chain.from_iterable(part.parameters() for part in parts)]

    def forward(self, x, padding_mask=None):
        """Reads the memory for every token that is not padding.

        Args:
            x: the tokens, (..., D).
            padding_mask: True where ``x`` is padding, (...), or None where nothing is. Padding
                never reaches the memory: it enters no statistics and selects no slot.

        Returns:
            What each token read, (..., D), zero for padding.

        Raises:
            RefusalError: if ``padding_mask`` is not one number for each token.
        """
        tokens = x.reshape(-1, x.shape[-1])
        if padding_mask is None:
            return self._read(tokens).view(x.shape)
        if padding_mask.shape != x.shape[:-1]:
            raise RefusalError(
                f"padding_mask is {tuple(padding_mask.shape)}, but x has tokens "
                f"{tuple(x.shape[:-1])}: give it the same shape"
            )
        real = (~padding_mask).flatten().nonzero().squeeze(1)  # (T,)
        read = self._read(tokens[real])  # (T, D)
        return read.new_zeros(tokens.shape).index_copy(0, real, read).view(x.shape)

    def _read(self, tokens):
        """Reads the memory for ``tokens``, (T, D)."""
        if can_fold(self, tokens):
            query, subkeys = fold(self, tokens)  # (T, 1, 1, D + 1), (H, 2, N, D + 1)
        else:
            query, subkeys = self._query(tokens), self.subkeys  # (T, H, 2, Q), (H, 2, N, Q)
        slots, weights = self.search(query, subkeys)  # (T, H, K) each
        # Values in fewer bits are summed in float32, whatever the model's dtype.
        read = self._sum_values(slots, weights).to(tokens.dtype)  # (T, R)
        read = self.value_dropout(read)
        if self.gate is not None:
            read = self.gate(read, tokens)  # (T, R)
        return self.output(read)  # (T, D)

    def _sum_values(self, slots, weights):
        """Sums the values of all heads, or of each by itself, side by side: (T, R)."""
        if not self.concat:
            return self.values(slots.flatten(1), weights.flatten(1))
        read = self.values(slots.flatten(0, 1), weights.flatten(0, 1))  # (T * H, V)
        return read.view(len(slots), self.heads * read.shape[1])

    def _query(self, tokens):
        """Makes each head's query and cuts it in its two halves."""
        query = self.query(tokens).unflatten(-1, (self.heads, -1))  # (T, H, 2 * Q)
        query = self.query_dropout(self.query_norm(query))
        return query.unflatten(-1, (2, -1))  # (T, H, 2, Q)

    def extra_repr(self):
        heads, _, subkeys, half_key_dim = self.subkeys.shape
        topk = self.search.topk
        return f"subkeys={subkeys}, heads={heads}, topk={topk}, key_dim={2 * half_key_dim}"


def _reset_query(network):
    """Draws a network that makes queries anew, part by part."""
    if isinstance(network, nn.Linear):
        nn.init.normal_(network.weight, std=network.in_features**-0.5)
        if network.bias is not None:
            nn.init.zeros_(network.bias)
    elif hasattr(network, "reset_parameters"):
        network.reset_parameters()
    else:
        for part in network.children():
            _reset_query(part)


class ProductKeySearch(nn.Module):
    """Finds the slots that queries select; a module, so that forward hooks see what is read.

    In training it may leave out whole sub-keys, and so all slots made of them, which forces other
    slots to be used (structured dropout). Each forward pass draws anew, for each head and half by
    itself and for all its tokens together, a fixed number of sub-keys to keep. Gradients reach only
    these. Nothing is rescaled: the slots found are weighed as ever, so softmax's weights sum to one
    whatever is left out.

    It draws from torch's generator, as dropout does: what recomputes activations recomputes them
    with the same sub-keys, and a resumed run draws what an unbroken one would. Each of several
    workers draws its own; fairseq seeds all alike at each update, so some may coincide.

    Args:
        topk: slots each head selects.
        key_dropout: share of the sub-keys of a half to leave out, 0 for none.
        weights: softmax over the scores of the slots found, or relu or sigmoid of each, which do
            not compete (Csordás et al. 2023, arXiv 2310.10837). These two are divided by ``topk``,
            as K weights of order one would read K times as much as K that sum to one, and values
            would have to be as much smaller, and learn as much slower.
        cosine: a ``CosineScores``, None for dot products.
    """

    def __init__(self, topk, key_dropout=0.0, weights="softmax", cosine=None):
        super().__init__()
        self.topk = topk
        self.key_dropout = key_dropout
        self.weights = weights
        self.cosine = cosine
        if weights != "softmax":
            # In checkpoints, which then say how they weigh, and read the same with another topk.
            self.register_buffer(f"{weights}_scale", torch.tensor([1 / topk]))

    def forward(self, query, subkeys):
        """Searches for each head and token by itself.

        Args:
            query: (T, H, 2, Q).
            subkeys: (H, 2, N, Q).

        Returns:
            The slots, best first, (T, H, K), int64, and their weights, not negative, (T, H, K), in
            float32 or better. Those of softmax sum to one for each head and token.
        """
        if self.cosine is not None:
            query, subkeys = self.cosine(query, subkeys)
        drop = self.training and self.key_dropout
        search = self._search_kept if drop else product_key_search
        softmax = self.weights == "softmax"
        weights, slots = search(query, subkeys, self.topk, softmax)
        if not softmax:
            weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
            weights = getattr(weights, self.weights)() * getattr(self, f"{self.weights}_scale")
        return slots, weights  # (T, H, K) each

    def _search_kept(self, query, subkeys, k, softmax):
        """Same as ``product_key_search``, among sub-keys drawn for this pass."""
        n = subkeys.shape[2]
        m = count_kept(n, self.key_dropout)
        kept = torch.rand(subkeys.shape[:3], device=subkeys.device).topk(m).indices  # (H, 2, M)
        head, half = (torch.arange(size, device=kept.device) for size in kept.shape[:2])
        few = subkeys[head.view(-1, 1, 1), half.view(-1, 1), kept]  # (H, 2, M, Q)
        found, slots = product_key_search(query, few, k, softmax)  # (T, H, K) each
        # From a slot's number among those of the kept to its number among all.
        first, second = kept.expand(len(slots), -1, -1, -1).unbind(2)  # (T, H, M) each
        return found, n * first.gather(2, slots // m) + second.gather(2, slots % m)

    def extra_repr(self):
        return f"topk={self.topk}, key_dropout={self.key_dropout}, weights={self.weights}"
