"""What a model's state dict says of its memory; no model and no file is needed here."""

import re

import torch

MEMORY_KEY = re.compile(r"(?P<layers>.*layers\.)(?P<layer>\d+)\.pkm\.")


def memory_options(state):
    """Reads off a state dict the options its memories were built with.

    Args:
        state: a model's state dict.

    Returns:
        A dict from command-line flag to value; empty for a model without memory.
    """
    found = [match for match in map(MEMORY_KEY.match, state) if match]
    if not found:
        return {}
    layer = found[0]["layers"] + found[0]["layer"]
    memory = f"{layer}.pkm."
    heads, _, subkeys, half_key_dim = state[memory + "subkeys"].shape
    if memory + "query_norm.running_mean" in state:
        query_norm = "batch"
    else:
        query_norm = "layer" if memory + "query_norm.weight" in state else "none"
    return {
        "--pkm-layers": ",".join(map(str, sorted({int(match["layer"]) for match in found}))),
        "--pkm-mode": "residual" if f"{layer}.fc1.weight" in state else "replace",
        "--pkm-subkeys": subkeys,
        "--pkm-heads": heads,
        "--pkm-key-dim": 2 * half_key_dim,
        "--pkm-value-dim": state[memory + "values.weight"].shape[1],
        "--pkm-query-norm": query_norm,
    }


def check_same_memory(loaded, model):
    """Refuses to load one memory into another.

    Args:
        loaded: the state dict of a checkpoint.
        model: the state dict of the model that is to take it.

    Raises:
        ValueError: naming every option that differs, with its value in the checkpoint.
    """
    theirs, ours = memory_options(loaded), memory_options(model)
    if not theirs:
        return
    if not ours:
        raise ValueError(f"the checkpoint has a memory: add --pkm-layers {theirs['--pkm-layers']}")
    differing = [flag for flag in theirs if theirs[flag] != ours[flag]]
    if differing:
        options = ", ".join(f"{flag} {theirs[flag]} (not {ours[flag]})" for flag in differing)
        raise ValueError(f"the checkpoint's memory was made with {options}")
    tables = [key for key in model if key.endswith(".pkm.values.weight")]
    if len({model[key].data_ptr() for key in tables}) < len(tables) and not all(
        torch.equal(loaded[key], loaded[tables[0]]) for key in tables
    ):
        raise ValueError(
            "the checkpoint's memories have values of their own: remove --pkm-share-values"
        )
