"""Turns a model folder of Hugging Face transformers into a checkpoint of fairseq.

Takes a BERT, RoBERTa, XLM-R or CamemBERT, or what pkm-fairseq export wrote, with its tokenizer.
Makes DEST, whole or not at all: model.pt for --pkm-init-from, or, where it has a memory already,
for --finetune-from-model; dict.txt; and the encoder's files, sentencepiece.bpe.model, encoder.json
and vocab.bpe, or tokenizer.json. Downloads nothing. Needs: pip install "pkm_fairseq[huggingface]".
"""

from pathlib import Path

from pkm_fairseq.files import atomic_folder
from pkm_fairseq.refusals import RefusalError

from .arguments import refuse_existing


def add_arguments(parser):
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of transformers")
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR", help="folder to make")


def check_arguments(args, parser):
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is no folder: download the model first")
    refuse_existing(args.dest, parser)


def run(args):
    from safetensors import SafetensorError  # an extra: whoever asks for help may lack it

    from pkm_fairseq.huggingface.from_transformers import convert

    try:
        with atomic_folder(args.dest) as dest:
            convert(args.folder, dest)
    except KeyError as error:
        raise RefusalError(
            f"{args.folder}: {error} is missing in config.json or in the weights"
        ) from error
    except (ValueError, OSError, SafetensorError) as error:
        raise RefusalError(f"{args.folder}: {error}") from error
    print(f"made {args.dest}")
