"""The transformer encoder layers of a model with memory."""

from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import nn

from pkm_fairseq.checkpoint import BETTER_TRANSFORMER_COPIES
from pkm_fairseq.compiling import not_compiled


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

    The forward pass stays fairseq's own: the memory reads the input of ``fc1`` and joins the
    output of ``fc2``, inside the same dropout, residual connection and LayerNorm, before or after.

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
        self._memory_input = self._padding_mask = None
        if replace:
            for part in ("fc1", "activation_fn", "activation_dropout_module", "fc2"):
                setattr(self, part, nn.Identity())
        self.fc1.register_forward_pre_hook(self._keep_memory_input)
        self.fc2.register_forward_hook(self._add_memory)

    # torch.compile takes modules that differ in their hooks for the same, and would run this layer
    # as it compiled another. It runs as it is in compiled models.
    @not_compiled
    def forward(self, x, encoder_padding_mask, attn_mask=None):
        """Does what fairseq's layer does; shapes as there: ``x`` is (seq_len, batch, embed_dim)."""
        # (batch, seq_len) -> (seq_len, batch)
        self._padding_mask = None if encoder_padding_mask is None else encoder_padding_mask.t()
        try:
            return super().forward(x, encoder_padding_mask, attn_mask)
        finally:
            self._memory_input = self._padding_mask = None

    def _keep_memory_input(self, fc1, inputs):
        (self._memory_input,) = inputs

    def _add_memory(self, fc2, inputs, output):
        read = self.pkm(self._memory_input, self._padding_mask)
        return read if self.replace else output + read
