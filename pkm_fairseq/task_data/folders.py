"""Makes the folder of a task: sentences, labels, and a description for those who use them."""

import filecmp
import json
import math
import re
import shlex
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict

from pkm_fairseq.files import atomic_folder
from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.text.dictionaries import check_fits

from .binary import write_labels, write_sentences
from .task import (
    DESCRIPTION,
    POSITIVE_METRICS,
    Task,
    describe,
    is_test,
    read_description,
    read_split,
)

BAD_ROWS_SHOWN = 20
# As fairseq finetunes RoBERTa on GLUE's small tasks.
EPOCHS, BATCH_SIZE, WARMUP = 10, 16, 0.06


@dataclass(frozen=True)
class Source:
    """Where the rows of a task come from and go to.

    Args:
        title: what to call it in what is printed.
        task: a ``Task``.
        dest: the folder to make.
        files: by fairseq's name of a split, what to read; train is the first.
        read: turns such a file and its split into a table.
        official: whether the files are GLUE's, of whose test sets every row is needed.
    """

    title: str
    task: Task
    dest: Path
    files: Dict[str, Path]
    read: Callable
    official: bool = False


def make(source, dictionary_file, encoder, encode, skip_bad_rows):
    """Makes the folder of a task unless it is there.

    Args:
        source: a ``Source``.
        dictionary_file: the dict.txt of the pretraining.
        encoder: an ``Encoder``.
        encode: ``map`` or what does the same with more processes.
        skip_bad_rows: whether to leave bad rows out.

    Raises:
        RefusalError: if something cannot be used, naming what to change.
    """
    asked = describe(source.task)
    if source.dest.exists():
        check_made(source, dictionary_file, asked)
        say_how_to_finetune(source)
        return
    task, splits = read_task(source, skip_bad_rows)
    sentences = [row[i] for i in range(len(task.sentences)) for row in splits["train"].rows]
    check_fits(encoder.dictionary, encoder.pieces, sentences)
    with atomic_folder(source.dest) as folder:
        for split, (rows, _, _) in splits.items():
            for i in range(len(task.sentences)):
                write_sentences(
                    f"{source.title} {split}, input{i}",
                    [row[i] for row in rows],
                    folder / f"input{i}" / split,
                    encoder.dictionary,
                    encode,
                )
            if not is_test(split):
                write_labels(task, split, [row[-1] for row in rows], folder / "label")
        for place in folder.glob("input*"):
            shutil.copy(dictionary_file, place / "dict.txt")
        description = {
            **describe(task),
            "asked": asked,
            "rows": {split: len(found.rows) for split, found in splits.items()},
            "left_out": {split: found.left_out for split, found in splits.items()},
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    print(f"made {source.dest}", flush=True)
    say_how_to_finetune(source)


def check_made(source, dictionary_file, asked):
    """Says that a folder is there.

    Raises:
        RefusalError: if it was made with another dictionary, so that the model would read other
            words, or of something else.
    """
    made_with = source.dest / "input0" / "dict.txt"
    if not (made_with.is_file() and filecmp.cmp(dictionary_file, made_with, shallow=False)):
        different = f"of --dict {dictionary_file}"
    elif read_description(source.dest).get("asked", asked) != asked:
        different = "of these columns, classes and metric"
    else:
        print(f"{source.dest} is there already: remove it to make it anew", flush=True)
        return
    raise RefusalError(
        f"{source.dest} is there already, but not {different}: remove it or choose another --dest"
    )


def read_task(source, skip_bad_rows):
    """Reads every split of a task.

    Returns:
        the ``Task``, with the classes or scores of its training set where it named none; and a dict
        from fairseq's name of a split to a ``Split``.

    Raises:
        RefusalError: if a file is missing or rows are bad.
    """
    task, splits = source.task, {}
    advice = f": put the official files of {source.title} there" if source.official else ""
    for split, path in source.files.items():
        try:
            splits[split] = found = read_split(task, source.read(path, split), split)
        except OSError as error:
            raise RefusalError(f"{path} cannot be read{advice or f': {error}'}") from error
        except ValueError as error:
            raise RefusalError(f"{path}: {error}{advice}") from error
        say_bad_rows(path, found.bad)
        if not found.rows:
            raise RefusalError(f"{path} has no good row{advice}")
        if split == "train" and not task.regression and not task.classes:
            task = replace(task, classes=in_order({row[-1] for row in found.rows}))
    check_bad_rows(source, splits, skip_bad_rows)
    labels = {
        split: [row[-1] for row in found.rows]
        for split, found in splits.items()
        if not is_test(split)
    }
    if not task.regression:
        check_classes(task, source.files["train"])
        for split, of_split in labels.items():
            counts = Counter(of_split)
            shares = ", ".join(f"{counts[name]:,} of {name}" for name in task.classes)
            print(f"{source.title} {split}: {shares}", flush=True)
    elif not task.scores:
        task = replace(task, scores=limits_of(labels["train"], source.files["train"]))
    return task, splits


def say_bad_rows(path, bad):
    for line, fault in bad[:BAD_ROWS_SHOWN]:
        print(f"{path}:{line}: {fault}", file=sys.stderr)
    if len(bad) > BAD_ROWS_SHOWN:
        print(f"{path}: and {len(bad) - BAD_ROWS_SHOWN} more", file=sys.stderr)


def check_bad_rows(source, splits, skip_bad_rows):
    """Says which rows are left out, or raises if that was not asked for or cannot be."""
    counts = {
        split: f"{len(found.bad)} in {source.files[split].name}"
        for split, found in splits.items()
        if found.bad
    }
    counted = ", ".join(counts.values())
    if source.official and any(map(is_test, counts)):
        raise RefusalError(
            f"{source.title} has bad rows ({counted}): mend them, a test set needs every row"
        )
    if counts and not skip_bad_rows:
        derived = not source.task.regression and not source.task.classes
        known = "; the classes are those of --train, unless --classes names them" if derived else ""
        raise RefusalError(
            f"{source.title} has bad rows ({counted}): mend them or leave them out: "
            f"--skip-bad-rows{known}"
        )
    if counts:
        print(f"{source.title}: left bad rows out: {counted}", flush=True)


def in_order(classes):
    """Returns classes in the order of their ids: as numbers, if they all are, else as text."""
    try:
        return tuple(sorted(classes, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(classes))


def check_classes(task, path):
    """Refuses what is no choice, and the metric of a class that is not there."""
    if len(task.classes) < 2:
        raise RefusalError(f"{path} has only one class, {task.classes[0]}: take another --label")
    if task.metric in POSITIVE_METRICS and "1" not in task.classes:
        raise RefusalError(
            f"--metric {task.metric} is that of the class 1, but there are "
            f"{', '.join(task.classes)}: call the positive class 1, or take f1_macro"
        )


def limits_of(scores, path):
    """Returns the lowest and the highest score."""
    lowest, highest = min(scores), max(scores)
    if lowest == highest:
        raise RefusalError(f"all scores of {path} are {lowest:g}: take another --label")
    return lowest, highest


def say_how_to_finetune(source):
    """Prints the command that finetunes on a task of one's own."""
    made = read_description(source.dest)
    if source.official or not made:
        return
    updates = EPOCHS * math.ceil(made["rows"]["train"] / BATCH_SIZE)
    options = {
        "task.data": source.dest,
        "task.num_classes": 1 if made["regression"] else len(made["classes"]),
        "criterion.regression_target": str(made["regression"]).lower(),
        "checkpoint.save_dir": f"runs/{source.title}",
        "dataset.valid_subset": ",".join(split for split in made["rows"] if "valid" in split),
        "checkpoint.best_checkpoint_metric": made["metric"],
        "optimization.max_update": updates,
        "lr_scheduler.warmup_updates": math.ceil(WARMUP * updates),
        "checkpoint.finetune_from_model": "PRETRAINED.pt",
    }
    print(
        "finetune on it by: fairseq-hydra-train --config-dir user_dir_examples/own_task",
        "--config-name finetune",
        *(shlex.quote(f"{name}={for_hydra(value)}") for name, value in options.items()),
    )


def for_hydra(value):
    """Returns a value as Hydra's command line takes it, in quotes if it would read more into it."""
    text = str(value)
    if re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return text
    return "'" + text.replace("'", "\\'") + "'"
