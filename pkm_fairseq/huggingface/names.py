"""What tensors are called in fairseq and in transformers."""

import re

ENCODER = "encoder.sentence_encoder."
HEAD = "classification_heads."
# Parts of names, fairseq's and transformers', longer ones before those they begin with.
LAYER_PARTS = {
    "self_attn.q_proj.": "attention.self.query.",
    "self_attn.k_proj.": "attention.self.key.",
    "self_attn.v_proj.": "attention.self.value.",
    "self_attn.out_proj.": "attention.output.dense.",
    "self_attn_layer_norm.": "attention.output.LayerNorm.",
    "fc1.": "intermediate.dense.",
    "fc2.": "output.dense.",
    "final_layer_norm.": "output.LayerNorm.",
    "pkm.": "output.pkm.",
}
OTHER_PARTS = {
    ENCODER + "embed_tokens.": "roberta.embeddings.word_embeddings.",
    ENCODER + "embed_positions.": "roberta.embeddings.position_embeddings.",
    ENCODER + "layernorm_embedding.": "roberta.embeddings.LayerNorm.",
    "encoder.lm_head.weight": "lm_head.decoder.weight",
    "encoder.lm_head.": "lm_head.",
}


def to_transformers(name, head):
    """Returns transformers' name of a tensor of fairseq, None where it has no place for it.

    Args:
        name: as in a state dict of fairseq.
        head: the classification head that is to be transformers' one.
    """
    parts = {**OTHER_PARTS, f"{HEAD}{head}.": "classifier."}
    return _rename(name, parts, LAYER_PARTS, ENCODER + "layers.", "roberta.encoder.layer.")


def to_fairseq(name, head):
    """Returns fairseq's name of a tensor of transformers; as ``to_transformers``."""
    parts = _turned({**OTHER_PARTS, f"{HEAD}{head}.": "classifier."})
    return _rename(name, parts, _turned(LAYER_PARTS), "roberta.encoder.layer.", ENCODER + "layers.")


def _rename(name, parts, layer_parts, layers, new_layers):
    match = re.match(re.escape(layers) + r"(\d+\.)(.*)", name)
    if match:
        name, parts = match[2], layer_parts
    for old, new in parts.items():
        if name.startswith(old):
            return (new_layers + match[1] if match else "") + new + name[len(old) :]
    return None


def _turned(parts):
    return {new: old for old, new in parts.items()}
