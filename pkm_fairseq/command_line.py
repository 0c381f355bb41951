"""What the commands of the package share."""

import argparse
import logging
import sys

import torch

from pkm_fairseq.refusals import traceback_wanted


def carry_out(work, args):
    """Runs ``work(args)``; what it refuses ends the command in one line, as in fairseq's."""
    # Outside its commands fairseq logs everything.
    logging.getLogger().setLevel(logging.WARNING)
    try:
        work(args)
    except (ValueError, OSError) as error:
        if traceback_wanted():
            raise
        sys.exit(f"error: {error}")


def number_from(least):
    """Returns a type of argument: whole numbers from ``least`` on."""

    def number(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return int(text)

    return number


def device_for(args):
    """Returns the device to work on: a GPU, unless there is none or ``args.cpu`` is set."""
    return "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
