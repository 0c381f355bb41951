#!/usr/bin/env python3
"""Turns the official files of GLUE tasks into what fairseq's sentence_prediction task reads.

Encodes the sentences as the pretraining text was encoded and writes them with the dictionary of the
pretraining. Makes each folder DEST/TASK-bin whole or not at all, and leaves those that are there
already as they are.
"""

import argparse
import filecmp
import os
import shutil
import sys
import time
from contextlib import ExitStack
from multiprocessing import Pool
from pathlib import Path

import torch
from fairseq.data import Dictionary, indexed_dataset
from glue_tasks import HIGHEST_SCORE, TASKS, is_test, read_split

# Scripts are run by their path, which puts only their own folder on Python's.
sys.path.insert(1, str(Path(__file__).parents[1]))
from encoders import add_encoder_options, existing_file, make_encoder, names_encoder  # noqa: E402

SENTENCES_AT_ONCE = 2000
SECONDS_BETWEEN_LINES = 5
BAD_ROWS_SHOWN = 20
# A dictionary that lacks more than this share of the pieces was made with another encoder.
HIGHEST_UNKNOWN_SHARE = 0.5


def main():
    args = parse_args()
    names = choose_tasks(args.tasks, args.glue)
    try:
        encoder = Encoder(args)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"the dictionary or the encoder cannot be read: {error}")
    with ExitStack() as stack:
        if args.workers > 1:
            # Each process makes its own encoder: they cannot be handed over.
            encode = stack.enter_context(Pool(args.workers, start_worker, (args,))).imap
        else:
            start_worker(args, encoder)
            encode = map
        for name in names:
            make(name, args, encoder.dictionary, encode)


def make(name, args, dictionary, encode):
    """Makes the folder of one task unless it is there."""
    dest = args.dest / f"{name}-bin"
    if dest.exists():
        check_made(dest, args.dict)
        return
    splits = read_task(name, args.glue / name, args.skip_bad_rows)
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, rows in splits.items():
        for i in range(len(TASKS[name].sentences)):
            title = f"{name} {split}, input{i}"
            sentences = [row[i] for row in rows]
            write_sentences(title, sentences, partial / f"input{i}" / split, dictionary, encode)
        if not is_test(split):
            write_labels(TASKS[name], split, rows, partial / "label")
    for folder in partial.glob("input*"):
        shutil.copy(args.dict, folder / "dict.txt")
    partial.rename(dest)
    print(f"made {dest}", flush=True)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--glue", type=Path, required=True, metavar="DIR", help="official files, a folder a task"
    )
    parser.add_argument(
        "--dest", type=Path, required=True, metavar="DIR", help="where to make the TASK-bin folders"
    )
    parser.add_argument(
        "--tasks", default="ALL", help="such as CoLA,RTE (default: ALL that --glue holds)"
    )
    parser.add_argument(
        "--dict",
        type=existing_file,
        required=True,
        metavar="FILE",
        help="the pretraining's dict.txt",
    )
    add_encoder_options(parser)
    parser.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="leave bad rows of train and dev files out (of test files, every row is needed)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    if not names_encoder(args, parser):
        parser.error(
            "give the pretraining's encoder: either --sentencepiece-model, or --tokenizer-json, "
            "or both --gpt2-encoder-json and --gpt2-vocab-bpe"
        )
    return args


def choose_tasks(wanted, glue):
    """Returns the names of the tasks to make, or exits if one is not known or not there."""
    there = [name for name in TASKS if (glue / name).is_dir()]
    names = there if wanted == "ALL" else wanted.split(",")
    for name in names:
        if name not in TASKS:
            sys.exit(f"--tasks {name} is not a GLUE task: choose ALL or among {', '.join(TASKS)}")
        if name not in there:
            sys.exit(f"--glue {glue} has no folder {name}: put the official files of {name} there")
    if not names:
        sys.exit(f"--glue {glue} has no folder of any task ({', '.join(TASKS)})")
    return names


def check_made(dest, dictionary):
    """Exits if ``dest`` was made with another dictionary: the model would read other words."""
    made_with = dest / "input0" / "dict.txt"
    if not (made_with.is_file() and filecmp.cmp(dictionary, made_with, shallow=False)):
        sys.exit(
            f"{dest} is there already, but not of --dict {dictionary}: "
            "remove it or choose another --dest"
        )
    print(f"{dest} is there already: remove it to make it anew", flush=True)


def read_task(name, folder, skip_bad_rows):
    """Reads every split of a task, or exits if a file is missing or rows are bad.

    Returns:
        a dict from fairseq's name of the split to its rows
    """
    splits, counts = {}, {}
    for split, stem in TASKS[name].splits:
        path = folder / f"{stem}.tsv"
        try:
            splits[split], bad = read_split(TASKS[name], path, split)
        except OSError:
            sys.exit(f"{path} cannot be read: put the official files of {name} there")
        except ValueError as error:
            sys.exit(f"{path}: {error}: take the file of the official GLUE download")
        for number, fault in bad[:BAD_ROWS_SHOWN]:
            print(f"{path}:{number}: {fault}", file=sys.stderr)
        if len(bad) > BAD_ROWS_SHOWN:
            print(f"{path}: and {len(bad) - BAD_ROWS_SHOWN} more", file=sys.stderr)
        if bad:
            counts[split] = f"{len(bad)} in {path.name}"
        if not splits[split]:
            sys.exit(f"{path} has no good row: take the file of the official GLUE download")
    counted = ", ".join(counts.values())
    if any(map(is_test, counts)):
        sys.exit(f"{name} has bad rows ({counted}): mend them, a test set needs every row")
    if counts and not skip_bad_rows:
        sys.exit(f"{name} has bad rows ({counted}): mend them or leave them out: --skip-bad-rows")
    if counts:
        print(f"{name}: left bad rows out: {counted}", flush=True)
    return splits


class Encoder:
    """Turns sentences into the numbers of the pretraining's dictionary.

    Args:
        args: the command line, with ``dict`` and the paths of either encoder
    """

    def __init__(self, args):
        self.dictionary = Dictionary.load(str(args.dict))
        self.pieces = make_encoder(args)

    def encode(self, sentence):
        """Returns the numbers of a sentence's pieces, the end of sentence last."""
        return self.dictionary.encode_line(self.pieces(sentence), add_if_not_exist=False).numpy()


_encoder = None


def start_worker(args, encoder=None):
    """Keeps the encoder of this process where ``encode_batch`` finds it."""
    global _encoder
    _encoder = encoder or Encoder(args)


def encode_batch(sentences):
    return [_encoder.encode(sentence) for sentence in sentences]


def write_sentences(title, sentences, prefix, dictionary, encode):
    """Writes encoded sentences, or exits if the dictionary hardly knows their pieces.

    Args:
        title: what to call them in what is printed
        sentences: a list of text
        prefix: path of the binary file without its ending
        dictionary: the pretraining's
        encode: ``map`` or what does the same with more processes
    """
    batches = (
        sentences[start : start + SENTENCES_AT_ONCE]
        for start in range(0, len(sentences), SENTENCES_AT_ONCE)
    )
    written = BinaryFile(prefix, len(dictionary))
    said = time.monotonic()
    done = pieces = unknown = 0
    for batch in encode(encode_batch, batches):
        for numbers in batch:
            written.add(numbers)
            # The end of sentence is no piece.
            pieces += len(numbers) - 1
            unknown += int((numbers == dictionary.unk()).sum())
        done += len(batch)
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"{title}: {done:,} of {len(sentences):,} rows", flush=True)
    written.close()
    share = unknown / max(pieces, 1)
    print(f"{title}: {done:,} rows, {pieces:,} pieces, {share:.2%} unknown", flush=True)
    if share > HIGHEST_UNKNOWN_SHARE:
        sys.exit(
            f"{share:.0%} of the pieces of {title} are not in --dict: "
            "give the dictionary and the encoder of the same pretraining"
        )


def write_labels(task, split, rows, dest):
    """Writes classes as fairseq's binary files, and scores as the text it reads for regression."""
    dest.mkdir(parents=True, exist_ok=True)
    if not task.classes:
        # RoBERTa's regression is trained on scores between 0 and 1.
        scores = (f"{row[-1] / HIGHEST_SCORE}\n" for row in rows)
        (dest / f"{split}.label").write_text("".join(scores))
        return
    # fairseq's own way would number the classes by how frequent they are.
    dictionary = Dictionary()
    for label in task.classes:
        dictionary.add_symbol(label)
    dictionary.save(str(dest / "dict.txt"))
    written = BinaryFile(dest / split, len(dictionary))
    for row in rows:
        written.add(dictionary.encode_line(row[-1], add_if_not_exist=False).numpy())
    written.close()


class BinaryFile:
    """One of fairseq's pairs of .bin and .idx, in the format that fairseq-preprocess writes.

    Args:
        prefix: the path of both without its ending
        vocab_size: how many numbers there are
    """

    def __init__(self, prefix, vocab_size):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self.index = indexed_dataset.index_file_path(str(prefix))
        path = indexed_dataset.data_file_path(str(prefix))
        self.builder = indexed_dataset.make_builder(path, impl="mmap", vocab_size=vocab_size)

    def add(self, numbers):
        self.builder.add_item(torch.from_numpy(numbers))

    def close(self):
        self.builder.finalize(self.index)


if __name__ == "__main__":
    main()
