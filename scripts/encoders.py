"""What the preparation of pretraining text and of GLUE share: how text is cut into pieces."""

import argparse
from pathlib import Path

from fairseq.data.encoders import build_bpe
from omegaconf import OmegaConf

from pkm_fairseq.models.hub import BPE_FILES


def existing_file(text):
    """Reads the path of a file that must be there from a command line."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return path


def add_encoder_options(parser):
    """Adds the options that name the files of an encoder."""
    options = {
        "--sentencepiece-model": "the pretraining's sentencepiece model",
        "--gpt2-encoder-json": "or GPT-2's encoder.json",
        "--gpt2-vocab-bpe": "and GPT-2's vocab.bpe",
        "--tokenizer-json": "or the tokenizer.json of any fast tokenizer of Hugging Face",
    }
    for flag, text in options.items():
        parser.add_argument(flag, type=existing_file, metavar="FILE", help=text)


def encoder_files(args):
    """Returns the files that ``args`` name, by the name that each has beside a model."""
    return {
        file: getattr(args, option)
        for files in BPE_FILES.values()
        for option, file in files.items()
        if getattr(args, option)
    }


def names_encoder(args, parser):
    """Tells whether ``args`` name an encoder; refuses half of one, and two."""
    given = set(encoder_files(args))
    if given and given not in [set(files.values()) for files in BPE_FILES.values()]:
        parser.error(
            "give one encoder: either --sentencepiece-model, or --tokenizer-json, "
            "or both --gpt2-encoder-json and --gpt2-vocab-bpe"
        )
    return bool(given)


def make_encoder(args):
    """Returns the function that turns a line into its pieces, separated by spaces."""
    given = {
        option: str(getattr(args, option))
        for files in BPE_FILES.values()
        for option in files
        if getattr(args, option)
    }
    (name,) = (name for name, files in BPE_FILES.items() if files.keys() == given.keys())
    return build_bpe(OmegaConf.create({"_name": name, **given})).encode
