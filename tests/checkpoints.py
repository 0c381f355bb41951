"""The layouts in which people have RoBERTa checkpoints."""

import torch

from pkm_fairseq.checkpoints.conversion import BETTER_TRANSFORMER_COPIES


def without_copies(state):
    return {
        key: tensor
        for key, tensor in state.items()
        if key.split(".")[-1] not in BETTER_TRANSFORMER_COPIES
    }


def as_fairseq_0_12_2(state, layers=3):
    """Adds the copies that 0.12.2 keeps of each layer."""
    state = dict(state)
    for layer in range(layers):
        prefix = f"encoder.sentence_encoder.layers.{layer}."
        for name in BETTER_TRANSFORMER_COPIES:
            state[prefix + name] = torch.zeros(3)
    return state


def as_published(state, layers=3):
    """The names of roberta.base and XLM-R: decoder, emb_layer_norm, fused in_proj, no version."""
    fused = {}
    for key, tensor in without_copies(state).items():
        if key.endswith(".version"):
            continue
        new = key.replace("encoder.", "decoder.", 1)
        new = new.replace("layernorm_embedding", "emb_layer_norm")
        fused[new] = tensor
    for layer in range(layers):
        attention = f"decoder.sentence_encoder.layers.{layer}.self_attn."
        for part in ("weight", "bias"):
            projections = [fused.pop(f"{attention}{name}_proj.{part}") for name in "qkv"]
            fused[f"{attention}in_proj_{part}"] = torch.cat(projections)
    return fused
