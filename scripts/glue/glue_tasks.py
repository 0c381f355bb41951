"""The nine GLUE tasks as their official files give them: splits, columns, labels and rows."""

from dataclasses import dataclass
from typing import Tuple

# fairseq's name of a split -> the official file's
SPLITS = {"train": "train", "valid": "dev", "test": "test"}
MNLI_SPLITS = {
    "train": "train",
    "valid": "dev_matched",
    "valid1": "dev_mismatched",
    "test": "test_matched",
    "test1": "test_mismatched",
}
HIGHEST_SCORE = 5.0


@dataclass(frozen=True)
class GlueTask:
    """What the files of one task hold.

    Args:
        sentences: the columns that hold sentences, one or two
        label: the column that holds the class or score; test files lack it
        classes: the classes in the order of their ids; empty where the label is a score
        splits: fairseq's name of each split, and the name of its file
        headerless: the columns of train and dev where those files have no header
    """

    sentences: Tuple[str, ...]
    label: str
    classes: Tuple[str, ...] = ("0", "1")
    splits: Tuple[Tuple[str, str], ...] = tuple(SPLITS.items())
    headerless: Tuple[str, ...] = ()


TASKS = {
    "CoLA": GlueTask(("sentence",), "label", headerless=("source", "label", "star", "sentence")),
    "SST-2": GlueTask(("sentence",), "label"),
    "MRPC": GlueTask(("#1 String", "#2 String"), "Quality"),
    "STS-B": GlueTask(("sentence1", "sentence2"), "score", classes=()),
    "QQP": GlueTask(("question1", "question2"), "is_duplicate"),
    "MNLI": GlueTask(
        ("sentence1", "sentence2"),
        "gold_label",
        classes=("contradiction", "entailment", "neutral"),
        splits=tuple(MNLI_SPLITS.items()),
    ),
    "QNLI": GlueTask(("question", "sentence"), "label", classes=("entailment", "not_entailment")),
    "RTE": GlueTask(("sentence1", "sentence2"), "label", classes=("entailment", "not_entailment")),
    "WNLI": GlueTask(("sentence1", "sentence2"), "label"),
}


def submission_files(name):
    """Returns the official file to submit for each test split of a task."""
    if name == "MNLI":
        return {"test": "MNLI-m.tsv", "test1": "MNLI-mm.tsv"}
    return {"test": f"{name}.tsv"}


def is_test(split):
    """Tells whether a split has no labels and needs a prediction for every row."""
    return split.startswith("test")


def read_split(task, path, split):
    """Reads one official file.

    Args:
        task: a GlueTask
        path: the file
        split: fairseq's name of the split

    Returns:
        the rows, each a tuple of its sentences and then, but for test sets, its label (a class, or
        a score as a float); and the bad rows, each a tuple of its line number and what is wrong.

    Raises:
        ValueError: if the header lacks a column.
    """
    rows, bad = [], []
    # Bytes are split at line feeds alone, text at carriage returns inside sentences too.
    with open(path, "rb") as lines:
        columns = None if is_test(split) else task.headerless
        if not columns:
            columns = _cells(next(lines, b""))
        parse = _row_parser(task, columns, labelled=not is_test(split))
        first = 1 if columns is task.headerless else 2
        for number, line in enumerate(lines, first):
            try:
                rows.append(parse(_cells(line)))
            except ValueError as error:
                bad.append((number, str(error)))
    return rows, bad


def _cells(line):
    """Splits a line at tabs: GLUE's files have no quoting. A byte-order mark is left out."""
    return line.decode("utf-8-sig").rstrip("\r\n").split("\t")


def _row_parser(task, columns, labelled):
    """Makes the function that turns the cells of a row into its sentences and label."""
    wanted = [*task.sentences, task.label] if labelled else task.sentences
    for name in wanted:
        if name not in columns:
            raise ValueError(f"no column {name!r}, only {', '.join(columns)}")
    at = [columns.index(name) for name in wanted]

    def parse(cells):
        if len(cells) != len(columns):
            raise ValueError(f"{len(cells)} columns instead of {len(columns)}")
        values = [cells[i].strip() for i in at]
        for name, sentence in zip(task.sentences, values):
            if not sentence:
                raise ValueError(f"{name} is empty")
        if labelled:
            values[-1] = _parse_label(task, values[-1])
        return tuple(values)

    return parse


def _parse_label(task, text):
    """Returns a class as it stands, or a score as a float."""
    if task.classes:
        if text not in task.classes:
            raise ValueError(f"{task.label} {text!r} is not one of {', '.join(task.classes)}")
        return text
    try:
        score = float(text)
    except ValueError:
        raise ValueError(f"{task.label} {text!r} is not a number") from None
    if not 0 <= score <= HIGHEST_SCORE:
        raise ValueError(f"{task.label} {text} is not between 0 and {HIGHEST_SCORE:g}")
    return score
