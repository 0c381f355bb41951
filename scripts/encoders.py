"""What the preparation of pretraining text and of GLUE share: how text is cut into pieces."""

import argparse
from pathlib import Path

import sentencepiece
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig


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
    }
    for flag, text in options.items():
        parser.add_argument(flag, type=existing_file, metavar="FILE", help=text)


def names_encoder(args, parser):
    """Tells whether ``args`` name an encoder; refuses half of one, and two."""
    gpt2 = (args.gpt2_encoder_json, args.gpt2_vocab_bpe)
    if any(gpt2) and (args.sentencepiece_model or not all(gpt2)):
        parser.error(
            "give one encoder: either --sentencepiece-model, "
            "or both --gpt2-encoder-json and --gpt2-vocab-bpe"
        )
    return bool(args.sentencepiece_model or all(gpt2))


def make_encoder(args):
    """Returns the function that turns a line into its pieces, separated by spaces."""
    if args.gpt2_encoder_json:
        paths = {
            "gpt2_encoder_json": str(args.gpt2_encoder_json),
            "gpt2_vocab_bpe": str(args.gpt2_vocab_bpe),
        }
        return GPT2BPE(GPT2BPEConfig(**paths)).encode
    model = sentencepiece.SentencePieceProcessor(model_file=str(args.sentencepiece_model))
    return lambda line: " ".join(model.encode(line, out_type=str))
