"""What of RoBERTa's options fails, or cannot work with a memory, and is refused."""

from fairseq.distributed import fsdp_wrap
from fairseq.utils import safe_getattr
from torch import nn

from pkm_fairseq.config import flag
from pkm_fairseq.refusals import RefusalError


def check_unsupported(args, config):
    """Refuses RoBERTa's options that fail, would lose the memory or need the FFN it replaced."""
    if safe_getattr(args, "quant_noise_scalar", 0):
        raise RefusalError(
            "--quant-noise-scalar fails on every RoBERTa: fairseq's scalar noise knows no learned "
            "positions; leave it out or use --quant-noise-pq"
        )
    _check_of_any_roberta(args)
    if not config.pkm_layers:
        return
    if safe_getattr(args, "encoder_layers_to_keep"):
        raise RefusalError(
            "--encoder-layers-to-keep renumbers the layers that --pkm-layers names: "
            "prune the model before giving it a memory, or leave one of the two out"
        )
    if safe_getattr(args, "ffn_blocks_to_remove", -1) != -1:
        raise RefusalError(
            "--ffn-blocks-to-remove rebuilds the feed-forward networks that memories are attached "
            "to: prune the model before giving it a memory, or leave out --pkm-layers"
        )
    probe = nn.Linear(1, 1)
    if fsdp_wrap(probe, min_num_params=0) is not probe:
        raise RefusalError(
            "--ddp-backend fully_sharded flattens parameters, in which a memory is neither found "
            "nor started from a dense checkpoint: choose legacy_ddp or pytorch_ddp"
        )
    waiting = {
        "--pkm-sync-query-norm": config.pkm_sync_query_norm,
        "--pkm-shards": config.pkm_shards > 1,
    }
    for option, waits in waiting.items():
        if waits and safe_getattr(args, "encoder_layerdrop", 0):
            raise RefusalError(
                "--encoder-layerdrop drops other layers on each worker, and they would wait for "
                f"each other in {option}: leave one of the two out"
            )
    if config.pkm_mode == "replace" and safe_getattr(args, "ffn_reg_scale_factor", 0):
        raise RefusalError(
            "--ffn-reg-scale-factor needs a feed-forward network in every layer: "
            "leave it out or choose --pkm-mode residual"
        )


def _check_of_any_roberta(args):
    """Refuses options with which every RoBERTa fails, or which it ignores."""
    if safe_getattr(args, "adaptive_input", False):
        raise RefusalError("adaptive_input changes nothing in a RoBERTa: leave it out")
    if not safe_getattr(args, "quant_noise_pq", 0):
        return
    if safe_getattr(args, "spectral_norm_classification_head", False):
        raise RefusalError(
            "--spectral-norm-classification-head does not go with --quant-noise-pq: leave one out"
        )
    block = args.quant_noise_pq_block_size
    for option in ("encoder_embed_dim", "encoder_ffn_embed_dim"):
        if getattr(args, option) % block:
            raise RefusalError(
                f"--quant-noise-pq-block-size {block} does not divide {flag(option)} "
                f"{getattr(args, option)}: choose one that does"
            )


def check_pruned(model):
    """Refuses to train a whole model that options say is a part: its checkpoint would not open."""
    args = model.args
    layer = model.encoder.sentence_encoder.layers[0]
    heads, blocks = (
        safe_getattr(args, option, -1) for option in ("mha_heads_to_keep", "ffn_blocks_to_remove")
    )
    pruned = {
        "--mha-heads-to-keep": heads == -1
        or layer.self_attn.q_proj.out_features == heads * layer.self_attn.head_dim,
        "--ffn-blocks-to-remove": blocks == -1
        or layer.fc1.out_features == args.encoder_ffn_embed_dim - blocks,
    }
    for option, is_pruned in pruned.items():
        if not is_pruned:
            raise RefusalError(
                f"{option} is for going on from a checkpoint that was pruned so: name it with "
                f"--finetune-from-model, or leave {option} out"
            )
