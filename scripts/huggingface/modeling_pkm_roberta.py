"""RoBERTa some of whose layers hold a large memory (Kim & Jung 2020, arXiv 2010.03881).

transformers' RoBERTa in all but the memory, for models that pkm_fairseq has trained. It needs torch
and transformers alone. Query batch norm always goes by its running statistics, so that padding and
small batches do not disturb it; the memory itself has no dropout.

T tokens, D model width, H heads, N sub-keys per half, Q half the width of a query, K slots read per
head, V width of a value.
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


class ProductKeyMemory(nn.Module):
    """Reads a large table of values through product keys (Lample et al. 2019, section 3).

    Args:
        config: a ``PKMRobertaConfig``.
        values: another memory's table to share, None for one of its own.
    """

    def __init__(self, config, values=None):
        super().__init__()
        heads, subkeys, key_dim = config.pkm_heads, config.pkm_subkeys, config.pkm_key_dim
        value_dim = config.pkm_value_dim or config.hidden_size
        self.topk = config.pkm_topk
        self.query = nn.Linear(config.hidden_size, heads * key_dim)
        self.query_norm = {
            "batch": lambda: QueryBatchNorm(heads * key_dim),
            "layer": lambda: nn.LayerNorm(key_dim),
            "none": nn.Identity,
        }[config.pkm_query_norm]()
        self.subkeys = nn.Parameter(torch.randn(heads, 2, subkeys, key_dim // 2))  # (H, 2, N, Q)
        if values is None:
            self.values = values = nn.EmbeddingBag(subkeys**2, value_dim, mode="sum")
        # In a tuple, so that a shared table is a part of its first memory alone.
        self.table = (values,)
        self.output = nn.Identity()
        if value_dim != config.hidden_size:
            self.output = nn.Linear(value_dim, config.hidden_size, bias=False)

    def forward(self, x):
        """Reads the memory for every token of ``x``, (..., D); returns the same shape."""
        tokens = x.flatten(0, -2)  # (T, D)
        query = self.query(tokens).unflatten(-1, (len(self.subkeys), -1))  # (T, H, 2Q)
        query = self.query_norm(query).unflatten(-1, (2, -1))  # (T, H, 2, Q)
        scores, slots = self.search(query)  # (T, H, K) each
        (values,) = self.table
        weights = scores.float().softmax(-1).to(values.weight.dtype)
        read = values(slots.flatten(1), per_sample_weights=weights.flatten(1))  # (T, V)
        return self.output(read).view(x.shape)

    def search(self, query):
        """Finds the best slots of all: they are pairs of the best sub-keys of either half.

        Returns:
            Their scores and numbers, (T, H, K) each; slot (i, j) has the number i * N + j.
        """
        halves = torch.einsum("thcq,hcnq->thcn", query, self.subkeys)  # (T, H, 2, N)
        best, indices = halves.topk(self.topk)  # (T, H, 2, K) each
        scores = best[:, :, 0, :, None] + best[:, :, 1, None, :]  # (T, H, K, K)
        slots = indices[:, :, 0, :, None] * halves.shape[-1] + indices[:, :, 1, None, :]
        scores, places = scores.flatten(-2).topk(self.topk)  # (T, H, K) each
        return scores, slots.flatten(-2).gather(-1, places)


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
