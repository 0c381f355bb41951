"""Writes a checkpoint, with or without memory, as a model folder of Hugging Face transformers.

AutoModelForMaskedLM, AutoModelForSequenceClassification and AutoTokenizer load it, with
trust_remote_code=True, where neither fairseq nor this project is installed. Makes DEST whole or not
at all. Needs safetensors: pip install "pkm_fairseq[huggingface]".
"""

from pathlib import Path

from pkm_fairseq.files import atomic_folder

from .arguments import (
    add_encoder_options,
    add_user_dir,
    existing_file,
    names_encoder,
    refuse_existing,
)


def add_arguments(parser):
    parser.add_argument("checkpoint", type=existing_file, metavar="CHECKPOINT")
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of binary data, with the dictionary and, unless named below, the encoder",
    )
    add_encoder_options(parser)
    parser.add_argument("--head", help="classification head (needed where there are several)")
    parser.add_argument(
        "--report",
        type=existing_file,
        metavar="FILE",
        help="report.json of pkm-fairseq report, for the model card",
    )
    add_user_dir(parser)


def check_arguments(args, parser):
    names_encoder(args, parser)
    refuse_existing(args.dest, parser)


def run(args):
    from pkm_fairseq.huggingface.to_transformers import export  # needs safetensors, an extra

    with atomic_folder(args.dest) as dest:
        export(args, dest)
    print(f"made {args.dest}")
