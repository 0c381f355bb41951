"""Reads checkpoints so that one from a stranger runs no code, and says why one cannot be read.

torch is asked for its safe loading wherever fairseq opens a checkpoint or sends one to another
worker, those fairseqs too that leave it off. What a program loads by itself is its own affair.
"""

import argparse
import os
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from omegaconf import AnyNode, DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata

from pkm_fairseq.refusals import RefusalError

# As transformers call the embeddings of every model, under the name of its kind.
TRANSFORMERS_KEY = "embeddings.word_embeddings.weight"


def install():
    """Has fairseq read checkpoints as the functions below do."""
    torch.serialization.add_safe_globals(_plain_data())
    checkpoint_utils.torch = _Torch(read_training)
    distributed_utils.torch = _Torch(load_safely)


def check_file(option, path):
    """Refuses a path at which there is no checkpoint of fairseq.

    Args:
        option: that names it, as the user writes it.
        path: where it is to be.

    Raises:
        RefusalError: saying what is there.
    """
    if not PathManager.exists(path):
        raise RefusalError(f"{option} {path} does not exist")
    if Path(path).suffix == ".safetensors" or Path(path, "config.json").exists():
        raise RefusalError(f"{option} {_of_transformers(path)}")
    if not PathManager.isfile(path):
        raise RefusalError(f"{option} {path} is a folder: name the checkpoint in it")


def read_checkpoint(file, **options):
    """Reads a checkpoint of fairseq, as it was saved, into the CPU's memory.

    Args:
        file: its path, or opened.
        options: as ``torch.load`` takes them; those that matter here are given already.

    Raises:
        RefusalError: if it is none, or cannot be read.
    """
    path = getattr(file, "name", file)
    try:
        state = load_safely(file, **{**options, "map_location": "cpu"})
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a file that is no checkpoint makes torch raise
        # torch's explanation of what it found comes after pages on what to do.
        found = str(error).split("WeightsUnpickler error:")[-1].strip()
        cause = f"{type(error).__name__}: {found}".splitlines()[0]
        if Path(path).is_file() and is_cut_off(path):
            cause = "it is cut off"
        raise RefusalError(f"checkpoint {path} cannot be read: {cause}") from error
    if not isinstance(state, dict):
        raise RefusalError(f"checkpoint {path} is none: it holds a {type(state).__name__}")
    if any(str(key).endswith(TRANSFORMERS_KEY) for key in state):
        raise RefusalError(f"checkpoint {_of_transformers(path)}")
    if "model" not in state or (state.get("args") is None and state.get("cfg") is None):
        raise RefusalError(f"checkpoint {path} is none of fairseq: no model in it, or no options")
    return state


def read_training(file, **options):
    """Same as ``read_checkpoint``, for fairseq, which goes by the state of the training.

    Raises:
        RefusalError: as there, or if it has none.
    """
    state = read_checkpoint(file, **options)
    if not {"best_loss", "optimizer_history"} & state.keys():
        raise RefusalError(
            f"checkpoint {getattr(file, 'name', file)} holds a model without the state of its "
            "training: start from it with --pkm-init-from"
        )
    return state


def load_safely(file, **options):
    """Loads what torch saved, but no code, unless torch's own variable says otherwise."""
    if "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ:
        options["weights_only"] = True
    return torch.load(file, **options)


def is_cut_off(file):
    """Tells whether a checkpoint is the first part of a file only: its directory comes last."""
    with open(file, "rb") as opened:
        begins_as_whole = b"PK".startswith(opened.read(2))
    return begins_as_whole and not zipfile.is_zipfile(file)


class _Torch:
    """torch as a module of fairseq sees it, with a ``load`` of its own."""

    def __init__(self, load):
        self.load = load

    def __getattr__(self, name):
        return getattr(torch, name)


def _of_transformers(path):
    folder = path if Path(path).is_dir() else Path(path).parent
    return (
        f"{path} is of transformers: make it a checkpoint of fairseq with "
        f"pkm-fairseq import {folder} --dest DEST"
    )


def _plain_data():
    """Returns what fairseq stores, and sends to other workers, besides tensors."""
    options = [argparse.Namespace, AnyNode, DictConfig, ListConfig, ContainerMetadata, Metadata]
    sent = [distributed_utils._TensorPlaceholder, defaultdict, dict, list, int]
    # Has a name from Python 3.10 on; before, only runs of one worker can load a checkpoint.
    sent += [Any] if hasattr(Any, "__qualname__") else []
    numbers = {type(np.dtype(kind)) for kind in "?bhilqBHILQefdg"}
    # numpy 1 and 2 call it differently.
    scalars = [_scalar(f"numpy.{core}.multiarray") for core in ("core", "_core")]
    return [*options, *sent, np.dtype, *numbers, *scalars]


def _scalar(module):
    """Returns what a number of numpy is saved as a call of, by the name it has in a module."""

    def scalar(dtype, value):
        return np.frombuffer(value, dtype, count=1)[0]

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar
