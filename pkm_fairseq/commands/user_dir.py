"""Prints the folder to give fairseq: ``fairseq-train --user-dir "$(pkm-fairseq user-dir)"``."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def add_arguments(parser):
    pass


def run(args):
    print(PACKAGE)
