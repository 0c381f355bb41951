"""The nine GLUE tasks as their official files give them: splits, columns and labels."""

from dataclasses import dataclass
from typing import Tuple

from .task import Task

# fairseq's name of a split -> the official file's
SPLITS = {"train": "train", "valid": "dev", "test": "test"}
MNLI_SPLITS = {
    "train": "train",
    "valid": "dev_matched",
    "valid1": "dev_mismatched",
    "test": "test_matched",
    "test1": "test_mismatched",
}


@dataclass(frozen=True)
class GlueTask(Task):
    """A task with official files.

    Args:
        splits: fairseq's name of each split, and the name of its file.
        headerless: the columns of train and dev where those files have no header.
    """

    splits: Tuple[Tuple[str, str], ...] = tuple(SPLITS.items())
    headerless: Tuple[str, ...] = ()


YES_OR_NO = ("0", "1")
ENTAILED_OR_NOT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")

TASKS = {
    "CoLA": GlueTask(
        ("sentence",),
        "label",
        YES_OR_NO,
        metric="mcc",
        headerless=("source", "label", "star", "sentence"),
    ),
    "SST-2": GlueTask(("sentence",), "label", YES_OR_NO),
    "MRPC": GlueTask(("#1 String", "#2 String"), "Quality", YES_OR_NO, metric="acc_and_f1"),
    "STS-B": GlueTask(
        PAIR, "score", regression=True, scores=(0.0, 5.0), metric="pearson_and_spearman"
    ),
    "QQP": GlueTask(("question1", "question2"), "is_duplicate", YES_OR_NO, metric="acc_and_f1"),
    "MNLI": GlueTask(
        PAIR,
        "gold_label",
        ("contradiction", "entailment", "neutral"),
        splits=tuple(MNLI_SPLITS.items()),
    ),
    "QNLI": GlueTask(("question", "sentence"), "label", ENTAILED_OR_NOT),
    "RTE": GlueTask(PAIR, "label", ENTAILED_OR_NOT),
    "WNLI": GlueTask(PAIR, "label", YES_OR_NO),
}


def submission_files(name):
    """Returns the official file to submit for each test split of a task."""
    if name == "MNLI":
        return {"test": "MNLI-m.tsv", "test1": "MNLI-mm.tsv"}
    return {"test": f"{name}.tsv"}
