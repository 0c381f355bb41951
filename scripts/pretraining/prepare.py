#!/usr/bin/env python3
"""Turns raw text into what fairseq's masked_lm task reads.

One sentence or line a line, an empty line between documents; files may be gzipped. Encodes the text
with a sentencepiece model, trained on it unless one is given, with GPT-2's byte-pair encoding or
with the tokenizer.json of any fast tokenizer, and runs fairseq-preprocess.
Makes DEST whole or not at all, and does nothing where DEST is there already.
"""

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import islice
from multiprocessing import Pool
from pathlib import Path

import sentencepiece

# Scripts are run by their path, which puts only their own folder on Python's.
sys.path.insert(1, str(Path(__file__).parents[1]))
from encoders import (  # noqa: E402
    add_encoder_options,
    encoder_files,
    existing_file,
    make_encoder,
    names_encoder,
)

LINES_AT_ONCE = 20_000


def main():
    args = parse_args()
    if args.dest.exists():
        print(f"{args.dest} is there already: remove it to make it anew")
        return
    partial = args.dest.with_name(args.dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    encoded = {}
    with ExitStack() as stack:
        to_pieces = start_encoder(args, partial, stack)
        for split in ("train", "valid"):
            encoded[split] = partial / f"{split}.encoded"
            encode(getattr(args, split), to_pieces, encoded[split])
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
    add_encoder_options(parser)
    parser.add_argument(
        "--dict",
        type=existing_file,
        metavar="FILE",
        help="the dict.txt of the model to go on from (default: made from the training text)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f"--workers {args.workers} is below 1")
    named = names_encoder(args, parser)
    if args.dict and not named:
        parser.error("--dict goes with the encoder it was made with: give that too")
    return args


def open_text(path):
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8")


def start_encoder(args, dest, stack):
    """Makes the function that turns a list of lines into their pieces.

    The encoder's files go into ``dest``, where whoever uses the model will look for them.
    """
    if not encoder_files(args):
        args.sentencepiece_model = dest / "sentencepiece.bpe.model"
        train_sentencepiece(args.train, args.vocab_size, args.sentencepiece_model)
    for name, path in encoder_files(args).items():
        if path != dest / name:
            shutil.copy(path, dest / name)
    try:
        make_encoder(args)
    except Exception as error:  # of whichever library reads it
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.exit(f"error: the encoder's files cannot be read: {reason}")
    # Each process makes its own encoder: they cannot be handed over.
    pool = stack.enter_context(Pool(args.workers, start_worker, (args,)))
    return lambda lines: pool.map(encode_line, lines, chunksize=500)


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


_encode = None


def start_worker(args):
    """Keeps the encoder of this process where ``encode_line`` finds it."""
    global _encode
    _encode = make_encoder(args)


def encode_line(line):
    return _encode(line.strip())


def encode(text, to_pieces, encoded):
    """Writes ``text`` as space-separated pieces, line by line."""
    size = text.stat().st_size
    started = time.monotonic()
    done = 0
    with open_text(text) as lines, open(encoded, "w", encoding="utf-8") as written:
        # Where a gzip file stands is told by the file under it.
        position = lines.buffer.fileobj if text.suffix == ".gz" else lines.buffer
        while batch := list(islice(lines, LINES_AT_ONCE)):
            written.writelines(line + "\n" for line in to_pieces(batch))
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
    for line in done.stdout.splitlines():
        if "replaced" in line:
            print(line.split(" | ")[-1])


if __name__ == "__main__":
    main()
