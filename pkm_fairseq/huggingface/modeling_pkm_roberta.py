"""RoBERTa some of whose layers hold a large memory (Kim & Jung 2020, arXiv 2010.03881).

transformers' RoBERTa in all but the memory, for models that pkm_fairseq has trained. It needs torch
and transformers alone. Query batch norm always goes by its running statistics, so that padding and
small batches do not disturb it; the memory itself has no dropout.

T tokens, D model width, H heads, N sub-keys per half, Q half the width of a query, K slots read per
head, V width of a value, R width of a read.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification
from transformers.models.roberta.modeling_roberta import RobertaOutput


class PKMRobertaConfig(RobertaConfig):
    """RobertaConfig with the options of pkm_fairseq, ``pkm_layers`` and so on, as attributes."""

    model_type = "pkm_roberta"


class QueryBatchNorm(nn.Module):
    """Normalises each number of all heads' queries by fixed statistics."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, query):
        x = query.flatten(1).to(self.running_mean.dtype)  # (T, H * 2Q)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return x.view_as(query).to(query.dtype)


class CosineScores(nn.Module):
    """Scales queries and sub-keys so that their dot products are cosines times a temperature.

    Each head has its own (Henry et al. 2020, arXiv 2010.04245).
    """

    def __init__(self, heads, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.log_temperature = nn.Parameter(torch.zeros(heads))

    def forward(self, query, subkeys):
        """Returns ``query``, (T, H, 2, Q), and ``subkeys``, (H, 2, N, Q), as scaled."""
        temperature = self.log_temperature.float().exp() * (query.shape[-1] / 3) ** 0.5  # (H,)
        scaled = self._unit(subkeys) * temperature.view(-1, 1, 1, 1)
        return self._unit(query).to(query.dtype), scaled.to(subkeys.dtype)

    def _unit(self, vectors):
        vectors = vectors.float()
        return vectors * (vectors.square().sum(-1, keepdim=True) + self.eps).rsqrt()


class ProductKeySearch(nn.Module):
    """Finds the best slots of all: they are pairs of the best sub-keys of either half."""

    def __init__(self, config):
        super().__init__()
        self.topk = config.pkm_topk
        self.cosine = CosineScores(config.pkm_heads) if config.pkm_score == "cosine" else None
        self.weights = config.pkm_weights
        if self.weights != "softmax":
            self.register_buffer(f"{self.weights}_scale", torch.tensor([1 / self.topk]))

    def forward(self, query, subkeys):
        """Searches for each head and token by itself.

        Args:
            query: (T, H, 2, Q).
            subkeys: (H, 2, N, Q).

        Returns:
            The slots and their weights, (T, H, K) each; slot (i, j) has the number i * N + j.
        """
        if self.cosine is not None:
            query, subkeys = self.cosine(query, subkeys)
        halves = torch.einsum("thcq,hcnq->thcn", query, subkeys)  # (T, H, 2, N)
        best, indices = halves.topk(self.topk)  # (T, H, 2, K) each
        scores = best[:, :, 0, :, None] + best[:, :, 1, None, :]  # (T, H, K, K)
        slots = indices[:, :, 0, :, None] * halves.shape[-1] + indices[:, :, 1, None, :]
        scores, places = scores.flatten(-2).topk(self.topk)  # (T, H, K) each
        return slots.flatten(-2).gather(-1, places), self._weigh(scores.float())

    def _weigh(self, scores):
        """Turns scores to weights; by themselves as in Csordás et al. 2023, arXiv 2310.10837."""
        if self.weights == "softmax":
            return scores.softmax(-1)
        return getattr(scores, self.weights)() * getattr(self, f"{self.weights}_scale")


class Gate(nn.Module):
    """Multiplies what a token read by a function of the token.

    silu: each number by its own (Memory+, Berges et al. 2024, arXiv 2412.09764, section 3).
    sigmoid: all of them by one.
    """

    def __init__(self, kind, width, read_dim):
        super().__init__()
        self.function = {"silu": F.silu, "sigmoid": torch.sigmoid}[kind]
        silu = kind == "silu"
        self.projection = nn.Linear(width, read_dim if silu else 1, bias=not silu)

    def forward(self, read, tokens):
        """Returns ``read``, (T, R), gated by ``tokens``, (T, D)."""
        return read * self.function(self.projection(tokens))


class ProductKeyMemory(nn.Module):
    """Reads a large table of values through product keys (Lample et al. 2019, section 3).

    Args:
        config: a ``PKMRobertaConfig``.
        values: another memory's table to share, None for one of its own.
    """

    def __init__(self, config, values=None):
        super().__init__()
        width, heads, key_dim = config.hidden_size, config.pkm_heads, config.pkm_key_dim
        concat = config.pkm_heads_merge == "concat"
        value_dim = config.pkm_value_dim or (width // heads if concat else width)
        self.read_dim = heads * value_dim if concat else value_dim
        # Of (T, H, K), what makes one sum: a head's slots, or all heads'.
        self.bags = (0, 1) if concat else (1, 2)
        self.query = nn.Linear(width, heads * key_dim)
        self.query_norm = {
            "batch": lambda: QueryBatchNorm(heads * key_dim),
            "layer": lambda: nn.LayerNorm(key_dim),
            "none": nn.Identity,
        }[config.pkm_query_norm]()
        self.subkeys = nn.Parameter(
            torch.randn(heads, 2, config.pkm_subkeys, key_dim // 2)  # (H, 2, N, Q)
        )
        self.search = ProductKeySearch(config)
        if values is None:
            self.values = values = nn.EmbeddingBag(config.pkm_subkeys**2, value_dim, mode="sum")
        # In a tuple, so that a shared table is a part of only its first memory.
        self.table = (values,)
        gate = config.pkm_gate
        self.gate = None if gate == "none" else Gate(gate, width, self.read_dim)
        self.output = nn.Identity()
        if concat or gate == "silu" or value_dim != width:
            self.output = nn.Linear(self.read_dim, width, bias=False)

    def forward(self, x):
        """Reads the memory for every token of ``x``, (..., D); returns the same shape."""
        tokens = x.flatten(0, -2)  # (T, D)
        query = self.query(tokens).unflatten(-1, (len(self.subkeys), -1))  # (T, H, 2Q)
        query = self.query_norm(query).unflatten(-1, (2, -1))  # (T, H, 2, Q)
        slots, weights = self.search(query, self.subkeys)  # (T, H, K) each
        (values,) = self.table
        weights = weights.to(values.weight.dtype).flatten(*self.bags)
        read = values(slots.flatten(*self.bags), per_sample_weights=weights)
        read = read.view(len(tokens), self.read_dim)  # (T, R)
        if self.gate is not None:
            read = self.gate(read, tokens)  # (T, R)
        return self.output(read).view(x.shape)


class PKMRobertaOutput(RobertaOutput):
    """The end of a layer, with a memory that reads what the feed-forward network reads."""

    def __init__(self, config, values=None):
        super().__init__(config)
        self.pkm = ProductKeyMemory(config, values)

    def forward(self, hidden_states, input_tensor):
        # Where the memory replaces the network, both Linears are gone: add_memories.
        read = self.pkm(input_tensor)
        if self.dense is not None:
            read = self.dense(hidden_states) + read
        return self.LayerNorm(self.dropout(read) + input_tensor)


def add_memories(model):
    """Puts memories into the layers of a model that its configuration names."""
    config = model.config
    values = None
    for number in sorted(config.pkm_layers):
        layer = model.roberta.encoder.layer[number]
        layer.output = PKMRobertaOutput(config, values)
        if config.pkm_mode == "replace":
            layer.intermediate, layer.output.dense = nn.Identity(), None
        if config.pkm_share_values:
            (values,) = layer.output.pkm.table


class PKMRobertaForMaskedLM(RobertaForMaskedLM):
    """RobertaForMaskedLM with memories."""

    config_class = PKMRobertaConfig
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config):
        super().__init__(config)
        add_memories(self)


class PKMRobertaForSequenceClassification(RobertaForSequenceClassification):
    """RobertaForSequenceClassification with memories."""

    config_class = PKMRobertaConfig
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config):
        super().__init__(config)
        add_memories(self)
