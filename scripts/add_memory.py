#!/usr/bin/env python3
"""Gives a RoBERTa checkpoint without memory fresh ones, as a checkpoint of its own.

For several runs that are to start from the same memories, and for what loads state dicts without
asking the model. Writes DEST whole or not at all, for --finetune-from-model, for --restore-file
with --reset-optimizer --reset-lr-scheduler --reset-dataloader --reset-meters, and for
PKMRobertaModel.from_pretrained.
"""

import argparse
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.utils import gen_parser_from_dataclass
from omegaconf import OmegaConf

from pkm_fairseq.checkpoint import memory_options
from pkm_fairseq.config import PKMConfig
from pkm_fairseq.models import PKMRobertaModel
from pkm_fairseq.models.hub import make_ours


def main():
    args = parse_args()
    # Outside its commands fairseq logs everything.
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("pkm_fairseq").setLevel(logging.INFO)
    torch.manual_seed(args.seed)
    write_checkpoint(lambda: add_memory(args), args.dest)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="one without memory")
    parser.add_argument("--dest", type=Path, required=True, metavar="FILE", help="to write")
    parser.add_argument("--seed", type=int, default=1, help="of the memories (default: 1)")
    group = parser.add_argument_group("the memories")
    gen_parser_from_dataclass(group, PKMConfig(), delete_default=True)
    args = parser.parse_args()
    refuse_existing(args.dest, parser)
    return args


def refuse_existing(dest, parser):
    """Ends a command whose --dest is there already."""
    if dest.exists():
        parser.error(f"--dest {dest} is there already: remove it or choose another")


def write_checkpoint(make, dest):
    """Writes the checkpoint that ``make()`` returns, or ends in one line."""
    try:
        checkpoint = make()
        dest.parent.mkdir(parents=True, exist_ok=True)
        checkpoint_utils.torch_persistent_save(checkpoint, str(dest))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {dest}")


def add_memory(args):
    """Returns the checkpoint with memories in its model, and none of its training's state.

    Raises:
        ValueError: if it cannot be read, has a memory already, or none of these can be made.
    """
    checkpoint = checkpoint_utils.load_checkpoint_to_cpu(str(args.checkpoint))
    state = checkpoint["model"]
    if memory_options(state):
        raise ValueError(f"{args.checkpoint} has a memory already")
    options = {name: value for name, value in vars(args).items() if name.startswith("pkm_")}
    if not options.get("pkm_layers"):
        raise ValueError("--pkm-layers is missing: name the layers that are to hold a memory")
    if options.get("pkm_table_dtype") not in (None, "model"):
        raise ValueError("--pkm-table-dtype is for loading what was trained: remove it")
    trained = checkpoint["cfg"].model
    make_ours(trained, options)
    model = PKMRobertaModel.build_model(trained, stand_in_task(state))
    model.load_state_dict(state)
    return with_model(checkpoint, model.state_dict())


def with_model(checkpoint, state):
    """Returns a checkpoint with another model, as plain types: what its optimizer knew is gone."""
    checkpoint.pop("last_optimizer_state", None)
    cfg = OmegaConf.to_container(checkpoint["cfg"], enum_to_str=True)
    return {**checkpoint, "args": None, "cfg": cfg, "model": state}


def stand_in_task(state):
    """Makes what a model needs of its task without the data: a dictionary of the right length."""
    sizes = [
        len(state[key]) for key in state if key.endswith("sentence_encoder.embed_tokens.weight")
    ]
    dictionary = Dictionary()
    for i in range(max(sizes, default=0) - len(dictionary)):
        dictionary.add_symbol(str(i))
    return SimpleNamespace(source_dictionary=dictionary, max_positions=lambda: None)


if __name__ == "__main__":
    main()
