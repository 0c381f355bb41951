"""The transformer encoder that decides which layers hold a memory."""

from itertools import count

from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer import TransformerEncoder
from fairseq.modules.checkpoint_activations import checkpoint_wrapper

from pkm_fairseq.refusals import RefusalError

from .encoder_layer import PKMTransformerEncoderLayer, SlowPathTransformerEncoderLayer
from .product_key_memory import ProductKeyMemory


class PKMTransformerEncoder(TransformerEncoder):
    """fairseq's encoder with memories in the layers that ``config`` names.

    Args:
        args: the model's options, as fairseq's encoder takes them.
        dictionary: the source dictionary.
        embed_tokens: the token embedding.
        config: a checked ``PKMConfig``.
        memory_class: ``ProductKeyMemory`` or a subclass.
    """

    def __init__(self, args, dictionary, embed_tokens, config, memory_class=ProductKeyMemory):
        # fairseq builds the layers inside its constructor and does not say which one it asks for.
        self.pkm_config = config
        self._memory_class = memory_class
        self._layer_indices = count()
        self._memories = []
        super().__init__(args, dictionary, embed_tokens)

    def build_encoder_layer(self, cfg):
        if next(self._layer_indices) in self.pkm_config.pkm_layers:
            memory = self._build_memory(cfg.encoder.embed_dim)
            replace = self.pkm_config.pkm_mode == "replace"
            layer = PKMTransformerEncoderLayer(cfg, memory, replace, self.return_fc)
        else:
            layer = SlowPathTransformerEncoderLayer(cfg, self.return_fc)
        # As fairseq's own method wraps the layer, which leaves no hook to change its class.
        if cfg.checkpoint_activations:
            layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
        min_params_to_wrap = 0 if cfg.checkpoint_activations else cfg.min_params_to_wrap
        return fsdp_wrap(layer, min_num_params=min_params_to_wrap)

    def register_backward_hook(self, hook):
        """Registers a full backward hook: torch's other kind stumbles over this module's output.

        fairseq hooks every module to tell where a NaN comes from, and would end in a StopIteration.
        """
        return self.register_full_backward_hook(hook)

    def _build_memory(self, input_dim):
        config = self.pkm_config
        share = config.pkm_share_values and self._memories
        try:
            memory = self._memory_class(
                input_dim, config.memory(), values=self._memories[0].values if share else None
            )
        except RuntimeError as error:  # torch's, for sizes it cannot make
            raise RefusalError(
                f"a memory so large cannot be made ({str(error).splitlines()[0]}): lower "
                "--pkm-subkeys, --pkm-heads, --pkm-key-dim or --pkm-value-dim"
            ) from error
        self._memories.append(memory)
        return memory
