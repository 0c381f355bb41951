"""Fits the state dicts of RoBERTa checkpoints, with and without memory, to a model; pure functions.

A state dict maps names such as ``encoder.sentence_encoder.layers.0.fc1.weight`` to tensors.
"""

import re

import torch

from pkm_fairseq.refusals import RefusalError

# What fairseq 0.12.2 adds to every layer for its BetterTransformer path: a second copy of each
# weight that is never trained.
BETTER_TRANSFORMER_COPIES = (
    "in_proj_weight",
    "in_proj_bias",
    "out_proj_weight",
    "out_proj_bias",
    "fc1_weight",
    "fc1_bias",
    "fc2_weight",
    "fc2_bias",
)
LAYER_KEY = re.compile(r"(?P<layers>.*\blayers\.)(?P<layer>\d+)\.(?P<rest>.+)")
HEAD_KEY = re.compile(r"\bclassification_heads\.([^.]+)\.")
# The tensors with a row for each entry of the dictionary.
DICTIONARY_KEYS = ("embed_tokens.weight", "lm_head.weight", "lm_head.bias")
# The options that a tensor's sizes follow from, by the end of its name and the dimension, and how
# much larger than the option the size is. fairseq keeps two positions for itself.
SIZE_OPTIONS = {
    ("embed_positions.weight", 0): ("--max-positions", 2),
    ("embed_tokens.weight", 1): ("--encoder-embed-dim", 0),
    ("fc1.weight", 0): ("--encoder-ffn-embed-dim", 0),
}
# The options that decide whether tensors exist at all, by the name's end.
PRESENCE_OPTIONS = {
    "sentence_encoder.layer_norm.weight": "--encoder-normalize-before",
    "layernorm_embedding.weight": "--layernorm-embedding",
}


def check_state_dict(loaded):
    """Refuses what is no state dict.

    Raises:
        RefusalError: naming what is none.
    """
    if not isinstance(loaded, dict):
        raise RefusalError(f"the checkpoint's model is a {type(loaded).__name__}, not a dict")
    for key, tensor in loaded.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise RefusalError(f"{key!r} is a {type(tensor).__name__} in the checkpoint, no tensor")


def fit_checkpoint(loaded, model, file=None):
    """Makes a checkpoint's state dict fit a model, without changing either.

    A checkpoint without memory gives the model all else; its memory stays as it is in ``model``
    (Kim & Jung 2020: initialisation from a model pretrained without memory). One with a memory must
    have the same. What fairseq 0.12.2 keeps twice, and the feed-forward networks that memories
    replace, are left out. Where the checkpoint lacks the last entry of the dictionary (``<mask>``)
    or parts of the LM head, they come from the model, or from the embeddings they are tied to.

    Args:
        loaded: state dict of the checkpoint, as fairseq names tensors today.
        model: state dict of the model.
        file: what the checkpoint's file holds, where fairseq has renamed, split, left out and
            added tensors since, as the model's own classification heads.

    Returns:
        The state dict to load, with exactly the names and shapes of ``model``, and a list of lines
        that say what was taken, made fresh and dropped; empty where all was taken as it is.

    Raises:
        RefusalError: if the checkpoint cannot fit, naming the shapes and the options to change.
    """
    if not any(key.endswith("sentence_encoder.embed_tokens.weight") for key in loaded):
        raise RefusalError("the checkpoint is no RoBERTa: it lacks sentence_encoder.embed_tokens")
    copies = {key for key in loaded if _is_copy(key, model)}
    replaced = {key for key in loaded.keys() - copies if _is_replaced(key, model)}
    state = {key: loaded[key] for key in loaded if key not in copies | replaced}
    if memory_options(loaded):
        check_same_memory(loaded, model)
        fresh = []
    else:
        fresh = _complete(state, model)
    _check_same_names(state, model)
    _check_same_shapes(state, model)

    file = loaded if file is None else file
    fresh += [f"the classification head {head}" for head in _heads_added(loaded, file)]
    dropped = []
    if copies:
        dropped.append("the copies that fairseq 0.12.2 keeps of each layer")
    if replaced:
        dropped.append(f"the feed-forward networks of layers {_layers(replaced)}")
    notes = []
    if fresh or dropped:
        taken = {_memory_of(loaded[key]) for key in state.keys() & loaded.keys()}
        count = sum(_memory_of(tensor) in taken for tensor in file.values())
        notes.append(f"taken from the checkpoint: {count} of {len(file)} tensors")
    if fresh:
        notes.append(f"made fresh: {', '.join(fresh)}")
    if dropped:
        notes.append(f"dropped: {', '.join(dropped)}")
    return state, notes


def memory_options(state):
    """Reads off a state dict the options its memories were built with.

    Args:
        state: a model's state dict.

    Returns:
        A dict from command-line flag to value; empty for a model without memory.
    """
    memories = [key for key in state if _is_memory(key)]
    if not memories:
        return {}
    match = LAYER_KEY.match(memories[0])
    layer = match["layers"] + match["layer"]
    memory = f"{layer}.pkm."
    for needed in ("subkeys", "values.weight"):
        if memory + needed not in state:
            raise RefusalError(f"the checkpoint's memory lacks {memory}{needed}")
    shapes = tuple(state[memory + "subkeys"].shape), tuple(state[memory + "values.weight"].shape)
    try:
        (heads, _, subkeys, half_key_dim), (_, value_dim) = shapes
    except ValueError:
        raise RefusalError(
            f"{memory}subkeys and values.weight are {shapes[0]} and {shapes[1]} in the checkpoint, "
            "which are no memory's shapes"
        ) from None
    if memory + "query_norm.running_mean" in state:
        query_norm = "batch"
    else:
        query_norm = "layer" if memory + "query_norm.weight" in state else "none"
    gate = "none"
    if memory + "gate.projection.weight" in state:
        gate = "sigmoid" if memory + "gate.projection.bias" in state else "silu"
    # Memories of all heads' values side by side have several heads.
    output = state.get(memory + "output.weight", torch.empty(0))
    concat = heads > 1 and tuple(output.shape[1:]) == (heads * value_dim,)
    weights = [name for name in ("relu", "sigmoid") if f"{memory}search.{name}_scale" in state]
    return {
        "--pkm-layers": _layers(memories),
        "--pkm-mode": "residual" if f"{layer}.fc1.weight" in state else "replace",
        "--pkm-subkeys": subkeys,
        "--pkm-heads": heads,
        "--pkm-key-dim": 2 * half_key_dim,
        "--pkm-value-dim": value_dim,
        "--pkm-query-norm": query_norm,
        "--pkm-score": "cosine" if memory + "search.cosine.log_temperature" in state else "dot",
        "--pkm-weights": weights[0] if weights else "softmax",
        "--pkm-heads-merge": "concat" if concat else "sum",
        "--pkm-gate": gate,
        "--pkm-table-dtype": "int8" if memory + "values.scales" in state else "model",
    }


def check_same_memory(loaded, model):
    """Refuses to load one memory into another.

    Args:
        loaded: state dict of a checkpoint with a memory.
        model: state dict of the model that is to take it.

    Raises:
        RefusalError: naming every option that differs, with its value in the checkpoint.
    """
    theirs, ours = memory_options(loaded), memory_options(model)
    if not ours:
        raise RefusalError(
            f"the checkpoint has a memory: add --pkm-layers {theirs['--pkm-layers']}"
        )
    differing = [flag for flag in theirs if theirs[flag] != ours[flag]]
    if differing:
        options = ", ".join(f"{flag} {theirs[flag]} (not {ours[flag]})" for flag in differing)
        raise RefusalError(f"the checkpoint's memory was made with {options}")
    tables = [key for key in model if key.endswith(".pkm.values.weight")]
    if len({model[key].data_ptr() for key in tables}) < len(tables) and not all(
        key in loaded and torch.equal(loaded[key], loaded[tables[0]]) for key in tables
    ):
        raise RefusalError(
            "the checkpoint's memories have values of their own: remove --pkm-share-values"
        )


def _complete(state, model):
    """Adds to ``state`` what a checkpoint without memory lacks, and says what was made fresh."""
    memory = {key: model[key] for key in model if _is_memory(key)}
    state.update(memory)
    fresh = [f"the memory of layers {_layers(memory)}"] if memory else []
    grown = [key for key in state if key in model and _lacks_last_entry(key, state, model)]
    for key in grown:
        state[key] = torch.cat([state[key], model[key][-1:].to(state[key].dtype)])
    fresh += ["the last entry of the dictionary, <mask>"] if grown else []
    for key in model:
        if ".lm_head." not in key or key in state:
            continue
        embeddings = key.replace("lm_head.weight", "sentence_encoder.embed_tokens.weight")
        if embeddings != key and embeddings in state:
            state[key] = state[embeddings]
            fresh.append(f"{key}, as the embeddings")
        else:
            state[key] = model[key]
            fresh.append(key)
    return fresh


def _heads_added(loaded, file):
    """Returns the names of the classification heads in ``loaded`` that are not the file's."""
    read = {_memory_of(tensor) for tensor in file.values()}
    added = (key for key in loaded if _memory_of(loaded[key]) not in read)
    return sorted({match[1] for match in map(HEAD_KEY.search, added) if match})


def _memory_of(tensor):
    """Returns where a tensor's numbers are: those that are split, or tied, are at one place."""
    return tensor.untyped_storage().data_ptr()


def _lacks_last_entry(key, state, model):
    if not key.endswith(DICTIONARY_KEYS):
        return False
    entries, *width = model[key].shape
    return state[key].shape == (entries - 1, *width)


def _check_same_names(state, model):
    missing, unexpected = model.keys() - state.keys(), state.keys() - model.keys()
    if not missing and not unexpected:
        return
    theirs, ours = _count_layers(state), _count_layers(model)
    if theirs != ours:
        raise RefusalError(
            f"the checkpoint has {theirs} encoder layers (not {ours}): change --encoder-layers"
        )
    for names, verb in ((missing, "remove"), (unexpected, "add")):
        for end, flag in PRESENCE_OPTIONS.items():
            if any(name.endswith(end) for name in names):
                raise RefusalError(f"the checkpoint was trained otherwise: {verb} {flag}")
    if missing:
        raise RefusalError(f"the checkpoint lacks {', '.join(sorted(missing))}")
    raise RefusalError(f"the model has no place for {', '.join(sorted(unexpected))}")


def _check_same_shapes(state, model):
    for key, tensor in state.items():
        theirs, ours = tuple(tensor.shape), tuple(model[key].shape)
        if theirs == ours:
            continue
        differs = f"{key} is {theirs} in the checkpoint, {ours} in the model"
        for (end, dim), (flag, extra) in SIZE_OPTIONS.items():
            if key.endswith(end) and len(theirs) == len(ours) and theirs[dim] != ours[dim]:
                raise RefusalError(f"{differs}: use {flag} {theirs[dim] - extra}")
        if key.endswith(DICTIONARY_KEYS):
            raise RefusalError(f"{differs}: use the dict.txt that the checkpoint was trained with")
        raise RefusalError(differs)


def _is_memory(key):
    return ".pkm." in key


def _is_copy(key, model):
    match = LAYER_KEY.match(key)
    return match and match["rest"] in BETTER_TRANSFORMER_COPIES and key not in model


def _is_replaced(key, model):
    """Tells whether a tensor is of a feed-forward network in whose place ``model`` has memory."""
    match = LAYER_KEY.match(key)
    if not match or not match["rest"].startswith("fc") or key in model:
        return False
    return f"{match['layers']}{match['layer']}.pkm.subkeys" in model


def _layers(keys):
    """Writes the layers that ``keys`` belong to as the command line takes them."""
    return ",".join(map(str, sorted({int(LAYER_KEY.match(key)["layer"]) for key in keys})))


def _count_layers(state):
    # A fresh memory says nothing of the checkpoint's layers.
    keys = (key for key in state if not _is_memory(key))
    return len({match["layer"] for match in map(LAYER_KEY.match, keys) if match})
