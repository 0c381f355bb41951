"""The transformer encoder layers of a model with memory."""

from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import nn

from pkm_fairseq.checkpoints.conversion import BETTER_TRANSFORMER_COPIES
from pkm_fairseq.ops.compiling import not_compiled


class SlowPathTransformerEncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer without BetterTransformer's evaluation path.

    That path would pass a memory by; without its copies a layer trains, saves and loads alike under
    every fairseq.

    Args:
        cfg: fairseq's TransformerConfig.
        return_fc: as in fairseq.
    """

    def __init__(self, cfg, return_fc=False):
        super().__init__(cfg, return_fc=return_fc)
        self.can_use_fastpath = False
        for name in BETTER_TRANSFORMER_COPIES:
            self._parameters.pop(name, None)

    # 0.12.2 fills its copies here.
    _load_from_state_dict = nn.Module._load_from_state_dict


class PKMTransformerEncoderLayer(SlowPathTransformerEncoderLayer):
    """fairseq's encoder layer with a memory beside its feed-forward network or in its place.

    The forward pass stays fairseq's own: the memory reads what ``fc1`` reads and joins what ``fc2``
    returns, inside the same dropout, residual connection and LayerNorm, before or after.

    Args:
        cfg: fairseq's TransformerConfig.
        memory: a ``ProductKeyMemory``.
        replace: whether the memory takes the place of the feed-forward network, which then has no
            weights, instead of being added to it (Kim & Jung 2020: "residual memory", ResM).
        return_fc: as in fairseq.
    """

    def __init__(self, cfg, memory, replace=False, return_fc=False):
        super().__init__(cfg, return_fc=return_fc)
        self.pkm = memory
        self.replace = replace
        if replace:
            self.fc1 = self.fc2 = None

    # How many tokens a memory reads depends on the data, at which torch.compile stumbles.
    @not_compiled
    def forward(self, x, encoder_padding_mask, attn_mask=None):
        """Same as in fairseq's layer; shapes as there: ``x`` is (seq_len, batch, embed_dim)."""
        # (batch, seq_len) -> (seq_len, batch)
        padding_mask = None if encoder_padding_mask is None else encoder_padding_mask.t()
        layer = WithFeedForward(self, lambda tokens: self.feed_forward(tokens, padding_mask))
        return TransformerEncoderLayerBase.forward(layer, x, encoder_padding_mask, attn_mask)

    def feed_forward(self, x, padding_mask):
        """Computes FFN(x) + PKM(x), or only PKM(x); ``padding_mask`` is (seq_len, batch)."""
        if self.replace:
            return self.pkm(x, padding_mask)
        return self.ffn(x) + self.pkm(x, padding_mask)

    def ffn(self, x):
        """The feed-forward network of fairseq's layer."""
        return self.fc2(self.activation_dropout_module(self.activation_fn(self.fc1(x))))


class WithFeedForward:
    """A layer as fairseq's forward pass takes it, but with another feed-forward network.

    Made for one pass: what a pass needs stands here and not in the layer, which threads may share.

    Args:
        layer: a fairseq encoder layer.
        feed_forward: takes the place of ``fc1``, ``fc2`` and what is between.
    """

    def __init__(self, layer, feed_forward):
        self._layer = layer
        self.fc1 = self.activation_fn = self.activation_dropout_module = _unchanged
        self.fc2 = feed_forward

    def __getattr__(self, name):
        return getattr(self._layer, name)


def _unchanged(x):
    return x
