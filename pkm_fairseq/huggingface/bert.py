"""Turns the weights of a BERT of transformers into those of a RoBERTa that computes the same."""

import torch

PREFIX = "roberta."
EMBEDDINGS = "roberta.embeddings.word_embeddings.weight"
POSITIONS = "roberta.embeddings.position_embeddings.weight"
HEAD_PARTS = {
    "cls.predictions.transform.dense.": "lm_head.dense.",
    "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
    "cls.predictions.decoder.": "lm_head.decoder.",
    "cls.predictions.bias": "lm_head.bias",
    # BERT's pooler and classifier are together what RoBERTa has as one head.
    "bert.pooler.dense.": "classifier.dense.",
    "classifier.": "classifier.out_proj.",
    "bert.": PREFIX,
}
# What the first checkpoints of BERT call the parts of a layer norm.
NORM_PARTS = {".gamma": ".weight", ".beta": ".bias"}
PADDING_ROWS = 2  # RoBERTa's positions count from the padding index, 1, plus 1


def as_roberta(weights, say):
    """Returns ``weights`` as a RoBERTa of transformers names them, positions moved up.

    Args:
        weights: a dict of tensors, as a BERT names them, with a head or without.
        say: prints what was lost or made.

    Raises:
        KeyError: if the embeddings are missing.
    """
    if not any(name.startswith("bert.") for name in weights):  # saved without a head
        weights = {f"bert.{name}": tensor for name, tensor in weights.items()}
    classifies = "classifier.weight" in weights
    renamed = {}
    for name, tensor in weights.items():
        # Whether one sentence follows another is not among RoBERTa's tasks.
        if name.startswith("cls.seq_relationship.") or name.endswith("position_ids"):
            continue
        if name.startswith("bert.pooler.") and not classifies:
            continue
        renamed[_rename(name)] = tensor
    positions = renamed[POSITIONS]
    padding = positions.new_zeros(PADDING_ROWS, positions.shape[1])
    renamed[POSITIONS] = torch.cat([padding, positions])
    say(
        "token type 0 is added to the positions; the other types are lost: RoBERTa reads both "
        "sentences of a pair as of one type"
    )
    if "lm_head.dense.weight" not in renamed:
        renamed.update(start_head(renamed[EMBEDDINGS]))
        say(
            "the folder has no LM head: one is made, tied to the embeddings; it passes on what the "
            "last layer says, scaled so that a word's logits begin with a spread of 1"
        )
    return renamed


def start_head(embeddings):
    """Makes an LM head that has learned nothing and begins near all words alike.

    Its dense layer is the identity; the gain of its layer norm gives the logits over the
    vocabulary, W h + b with the embeddings W and normalised h, a standard deviation of 1.

    Args:
        embeddings: (vocabulary, width).

    Returns:
        A dict of its tensors, as a RoBERTa of transformers names them.
    """
    entries, width = embeddings.shape
    gain = embeddings.float().var(0).sum().clamp(min=1e-12).rsqrt()
    return {
        "lm_head.dense.weight": torch.eye(width, dtype=embeddings.dtype),
        "lm_head.dense.bias": embeddings.new_zeros(width),
        "lm_head.layer_norm.weight": embeddings.new_ones(width) * gain.to(embeddings.dtype),
        "lm_head.layer_norm.bias": embeddings.new_zeros(width),
        "lm_head.bias": embeddings.new_zeros(entries),
    }


def _rename(name):
    for old, new in HEAD_PARTS.items():
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    for old, new in NORM_PARTS.items():
        if name.endswith(old):
            name = name[: -len(old)] + new
    return name
