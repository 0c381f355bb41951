"""Arguments that several commands take."""

from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import torch
from fairseq.utils import import_user_module

from pkm_fairseq.text.encoders import BPE_FILES, encoder_files


def number_from(least):
    """Returns a type of argument: whole numbers from ``least`` on."""

    def number(text):
        if int(text) < least:
            raise ArgumentTypeError(f"{text} is below {least}")
        return int(text)

    return number


def existing_file(text):
    """Is a type of argument: the path of a file that is there."""
    path = Path(text)
    if not path.is_file():
        raise ArgumentTypeError(f"{text} is not a file")
    return path


def user_dir(text):
    """Is a type of argument: a folder whose models and tasks are registered at once."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text} is not a folder")
    import_user_module(Namespace(user_dir=text))
    return Path(text)


def add_user_dir(parser):
    """Adds ``--user-dir``, for checkpoints of models that build on this plugin's."""
    parser.add_argument(
        "--user-dir",
        type=user_dir,
        metavar="DIR",
        help="a user dir on top of this one, whose model the checkpoint is of",
    )


def add_device(parser):
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")


def device_for(args):
    """Returns the device to work on: a GPU, unless there is none or ``args.cpu`` is set."""
    return "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"


def refuse_existing(dest, parser):
    """Ends a command whose --dest is there already."""
    if dest.exists():
        parser.error(f"--dest {dest} is there already: remove it or choose another")


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


def names_encoder(args, parser):
    """Tells whether ``args`` name an encoder; refuses half of one, and two."""
    given = set(encoder_files(args))
    if given and given not in [set(files.values()) for files in BPE_FILES.values()]:
        parser.error(
            "give one encoder: either --sentencepiece-model, or --tokenizer-json, "
            "or both --gpt2-encoder-json and --gpt2-vocab-bpe"
        )
    return bool(given)
