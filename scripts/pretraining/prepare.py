#!/usr/bin/env python3
"""Turns raw text into what fairseq's masked_lm task reads.

One sentence or line a line, an empty line between documents; files may be gzipped. Trains a
sentencepiece model unless one is given, encodes the text with it, and runs fairseq-preprocess.
Makes DEST whole or not at all, and does nothing where DEST is there already.
"""

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import sentencepiece

LINES_AT_ONCE = 20_000


def main():
    args = parse_args()
    if args.dest.exists():
        print(f"{args.dest} is there already: remove it to make it anew")
        return
    partial = args.dest.with_name(args.dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    model = partial / "sentencepiece.bpe.model"
    if args.sentencepiece_model:
        shutil.copy(args.sentencepiece_model, model)
    else:
        train_sentencepiece(args.train, args.vocab_size, model)
    encoded = {}
    for split in ("train", "valid"):
        encoded[split] = partial / f"{split}.encoded"
        encode(getattr(args, split), model, encoded[split], args.workers)
    binarize(encoded, args.dict, partial, args.workers)
    for path in encoded.values():
        path.unlink()
    partial.rename(args.dest)
    print(f"made {args.dest}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=existing_file, required=True, metavar="FILE")
    parser.add_argument("--valid", type=existing_file, required=True, metavar="FILE")
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--vocab-size", type=int, default=32000, help="pieces of a newly trained model"
    )
    parser.add_argument(
        "--sentencepiece-model",
        type=existing_file,
        metavar="FILE",
        help="encode with this model instead of training one",
    )
    parser.add_argument(
        "--dict",
        type=existing_file,
        metavar="FILE",
        help="the dict.txt of the model to go on from (default: made from the training text)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads and processes")
    return parser.parse_args()


def existing_file(text):
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return path


def open_text(path):
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8")


def train_sentencepiece(text, vocab_size, model):
    """Trains a byte-pair model; <s>, </s> and <pad> are left to fairseq's dictionary."""
    print(f"training {vocab_size} sentencepieces on {text}")
    with open_text(text) as lines, open(model, "wb") as written:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=written,
                model_type="bpe",
                vocab_size=vocab_size,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                input_sentence_size=1_000_000,
                shuffle_input_sentence=True,
                minloglevel=2,
            )
        except RuntimeError as error:
            sys.exit(f"--vocab-size {vocab_size} does not suit {text}: {error}")


def encode(text, model, encoded, workers):
    """Writes ``text`` as space-separated pieces, line by line."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    size = text.stat().st_size
    started = time.monotonic()
    done = 0
    with open_text(text) as lines, open(encoded, "w", encoding="utf-8") as written:
        # Where a gzip file stands is told by the file under it.
        position = lines.buffer.fileobj if text.suffix == ".gz" else lines.buffer
        while batch := list(islice(lines, LINES_AT_ONCE)):
            pieces = processor.encode(batch, out_type=str, num_threads=workers)
            written.writelines(" ".join(line) + "\n" for line in pieces)
            done += len(batch)
            share = min(1.0, position.tell() / size)
            left = (time.monotonic() - started) * (1 - share) / share
            print(f"encoded {done:,} lines of {text}: {share:.0%}, {left:.0f} s left", flush=True)


def binarize(encoded, dictionary, dest, workers):
    """Runs fairseq-preprocess, of the same environment as this script."""
    command = [
        Path(sys.executable).with_name("fairseq-preprocess"),
        "--only-source",
        *("--trainpref", encoded["train"], "--validpref", encoded["valid"]),
        *("--destdir", dest, "--workers", str(workers)),
    ]
    if dictionary:
        command += ["--srcdict", dictionary]
    print("running fairseq-preprocess", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\nfairseq-preprocess failed")


if __name__ == "__main__":
    main()
