"""A finetuning task, and what its rows hold, whichever file they come from."""

import json
import math
import re
from dataclasses import dataclass, fields
from typing import NamedTuple, Optional, Tuple

from pkm_fairseq.refusals import RefusalError

DESCRIPTION = "task.json"
POSITIVE_METRICS = "f1", "acc_and_f1"  # of the class 1
CLASS_METRICS = "accuracy", "mcc", "f1_macro", *POSITIVE_METRICS
SCORE_METRICS = "pearson", "spearman", "pearson_and_spearman"
# Names in a dictionary that fairseq keeps for itself.
RESERVED = re.compile(r"<s>|<pad>|</s>|<unk>|<mask>|madeupword\d.*")


@dataclass(frozen=True)
class Task:
    """Says what the columns of a task are.

    Args:
        sentences: the columns that hold sentences, one or two.
        label: the column that holds the class or score; test sets need none.
        classes: in the order of their ids; empty where they are those of the training set.
        regression: whether the label is a score.
        scores: the lowest and the highest score there can be; None where any number can be.
        metric: by which the best checkpoint is chosen.
    """

    sentences: Tuple[str, ...]
    label: str
    classes: Tuple[str, ...] = ()
    regression: bool = False
    scores: Optional[Tuple[float, float]] = None
    metric: str = "accuracy"


def describe(task):
    """Returns what is written of a task, as it is when it is read again."""
    return json.loads(json.dumps({field.name: getattr(task, field.name) for field in fields(Task)}))


def read_description(folder):
    """Returns what was written of the task in a folder, nothing for a folder made otherwise."""
    path = folder / DESCRIPTION
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class Split(NamedTuple):
    """The rows of a file.

    Args:
        rows: tuples of sentences and then, but for test sets, the label: a class, or a float.
        bad: for each bad row its line and what is wrong.
        left_out: the places of the bad rows among all, from 0 on.
    """

    rows: list
    bad: list
    left_out: list


def is_test(split):
    """Tells whether a split has no labels and needs a prediction for every row."""
    return split.startswith("test")


def columns_of(task, split):
    """Returns the columns that are read of a split."""
    return task.sentences if is_test(split) else (*task.sentences, task.label)


def read_split(task, table, split):
    """Reads a table.

    Args:
        task: a ``Task``.
        table: pairs of line number and cells, a dict by column or, of a bad row, what is wrong.
        split: fairseq's name of it.

    Returns:
        a ``Split``.
    """
    found = Split([], [], [])
    for place, (line, cells) in enumerate(table):
        try:
            found.rows.append(_parse(task, cells, split))
        except ValueError as error:
            found.bad.append((line, str(error)))
            found.left_out.append(place)
    return found


def _parse(task, cells, split):
    if isinstance(cells, str):
        raise RefusalError(cells)
    values = [cells[name].strip() for name in columns_of(task, split)]
    for name, value in zip(columns_of(task, split), values):
        if re.search("[\ud800-\udfff]", value):  # as JSON may have, and no file of text
            raise RefusalError(f"{name} has half of a character in it")
    for name, sentence in zip(task.sentences, values):
        if not sentence:
            raise RefusalError(f"{name} is empty")
    if not is_test(split):
        parse_label = _parse_score if task.regression else _parse_class
        values[-1] = parse_label(task, values[-1])
    return tuple(values)


def _parse_class(task, text):
    if task.classes and text not in task.classes:
        raise RefusalError(f"{task.label} {text!r} is not one of {', '.join(task.classes)}")
    check_class(task.label, text)
    return text


def check_class(title, text):
    """Refuses what cannot be the name of a class."""
    if not text:
        raise RefusalError(f"{title} is empty")
    if re.search(r"[\r\n]", text):
        raise RefusalError(f"{title} {text!r} has a line break in it")
    if RESERVED.fullmatch(text):
        raise RefusalError(f"{title} {text!r} is a name that fairseq keeps for itself")


def _parse_score(task, text):
    try:
        score = float(text)
    except ValueError:
        raise RefusalError(f"{task.label} {text!r} is not a number") from None
    lowest, highest = task.scores or (-math.inf, math.inf)
    if not lowest <= score <= highest or math.isinf(score):
        limits = f"between {lowest:g} and {highest:g}" if task.scores else "a finite number"
        raise RefusalError(f"{task.label} {text} is not {limits}")
    return score
