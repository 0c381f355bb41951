#!/usr/bin/env python3
"""Writes a checkpoint whose memories read nothing: all their values are zero.

What it scores less than the checkpoint itself is what the model owes to what its memories hold.
Writes DEST whole or not at all, for evaluation.
"""

import argparse
from pathlib import Path

import torch
from fairseq import checkpoint_utils

from pkm_fairseq.checkpoints.models import with_model, write_checkpoint
from pkm_fairseq.commands.arguments import refuse_existing
from pkm_fairseq.commands.cli import run_cli

VALUES = ".pkm.values.weight"


def main():
    run_cli(lambda args: write_checkpoint(empty(args.checkpoint), args.dest), parse_args())


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="one with memory")
    parser.add_argument("--dest", type=Path, required=True, metavar="FILE", help="to write")
    args = parser.parse_args()
    refuse_existing(args.dest, parser)
    return args


def empty(path):
    """Returns the checkpoint of a file with all values zero.

    Raises:
        ValueError: if it cannot be read, or has none.
    """
    checkpoint = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    state = checkpoint["model"]
    zeros = {name: torch.zeros_like(state[name]) for name in state if name.endswith(VALUES)}
    if not zeros:
        raise ValueError(f"{path} has no memory")
    return with_model(checkpoint, {**state, **zeros})


if __name__ == "__main__":
    main()
