"""Labels that go with their sentences and with the task's options, or are refused."""

import logging
import math
from collections import Counter
from pathlib import Path

import torch
from fairseq.data.indexed_dataset import infer_dataset_impl, make_dataset

from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.text.dictionaries import class_names

NAMES_SHOWN = 10
LARGEST = torch.finfo(torch.float32).max  # targets have 32 bits

logger = logging.getLogger(__name__)


def check_kind(cfg):
    """Refuses options of a classification for data of a regression.

    Args:
        cfg: the task's options.

    Raises:
        RefusalError: naming what to change.
    """
    folder = Path(cfg.data, "label")
    scores = sorted(folder.glob("*.label"))
    if not cfg.regression_target and scores and not (folder / "dict.txt").is_file():
        raise RefusalError(
            f"{folder} holds scores ({scores[0].name}) and no classes (dict.txt): give "
            "--regression-target and --num-classes 1"
        )


def check_labels(cfg, split, dictionary, label_dictionary, needed):
    """Checks the labels of a split against its rows and against the task's options.

    Args:
        cfg: the task's options.
        split: its name.
        dictionary: that of the sentences.
        label_dictionary: that of the classes; not used for scores.
        needed: whether there have to be labels.

    Raises:
        RefusalError: naming file, line and counts, and what to change.
    """
    folder = Path(cfg.data)
    inputs = _load(folder / "input0" / split, dictionary)
    if inputs is None:
        return  # fairseq says that it is not there
    second = _load(folder / "input1" / split, dictionary)
    if second is not None and len(second) != len(inputs):
        raise RefusalError(
            f"{folder / 'input1' / split} has {len(second):,} rows for the {len(inputs):,} of "
            f"{folder / 'input0' / split}: prepare them again, from files of as many lines"
        )
    label = folder / "label" / split
    if cfg.regression_target:
        count = _check_scores(label.with_name(f"{split}.label"), cfg, needed)
    else:
        count = _check_classes(label, cfg, label_dictionary, needed)
    if count is not None and count != len(inputs):
        raise RefusalError(
            f"{label} has {count:,} labels for the {len(inputs):,} rows of "
            f"{folder / 'input0' / split}: prepare them again, from files of as many lines"
        )


def _load(prefix, dictionary):
    """Returns the rows of a binary file of any of fairseq's kinds, None if it is not there."""
    kind = infer_dataset_impl(str(prefix))
    return make_dataset(str(prefix), kind, fix_lua_indexing=True, dictionary=dictionary)


def _check_scores(path, cfg, needed):
    """Returns how many scores there are, None if there is no file of them."""
    if not path.is_file():
        if needed and (path.parent / "dict.txt").is_file():
            raise RefusalError(
                f"{path.parent} holds classes (dict.txt) and no scores ({path.name}): remove "
                "--regression-target, and give --num-classes as many as there are"
            )
        if needed:
            raise RefusalError(f"there are no scores: {path} is missing")
        return None
    if cfg.num_classes != 1:
        raise RefusalError(
            f"--num-classes {cfg.num_classes} does not fit --regression-target, which takes one "
            f"score a row, as in {path}: give --num-classes 1"
        )
    bad = []
    number = 0
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                score = float(line)
            except ValueError:
                score = math.nan
            if not abs(score) <= LARGEST:  # nan is not, either
                bad.append((number, f"{line.strip()!r} is not a finite number"))
    _refuse(path, bad, "put a number there, or leave the row out")
    return number


def _check_classes(prefix, cfg, dictionary, needed):
    """Returns how many labels there are, None if there is no file of them."""
    names = class_names(dictionary)
    if len(names) != cfg.num_classes:
        shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
        raise RefusalError(
            f"--num-classes {cfg.num_classes} does not fit the {len(names)} classes of "
            f"{prefix.parent / 'dict.txt'} ({shown}): give --num-classes {len(names)}"
        )
    labels = _load(prefix, dictionary)
    if labels is None:
        if needed:
            raise RefusalError(f"there are no labels: {prefix}.bin is missing")
        return None
    if labels.supports_prefetch:
        labels.prefetch(range(len(labels)))
    counts = Counter()
    many, unknown = [], []
    known = range(dictionary.nspecial, dictionary.nspecial + len(names))
    for number in range(1, len(labels) + 1):
        words = [word for word in labels[number - 1].tolist() if word != dictionary.eos()]
        if len(words) != 1:
            many.append((number, f"a label of {len(words)} words"))
        elif words[0] not in known:
            unknown.append((number, f"a class that {prefix.parent / 'dict.txt'} lacks"))
        counts.update(words)
    _refuse(prefix, many, "prepare the labels again, one word a line")
    _refuse(prefix, unknown, "prepare the labels again, with a --srcdict of all classes")
    missing = [name for name, at in zip(names, known) if not counts[at]]
    if missing and prefix.name == "train":
        logger.warning("%s: no row has the class %s", prefix, ", ".join(missing[:NAMES_SHOWN]))
    return len(labels)


def _refuse(path, bad, advice):
    """Raises for the first of the bad lines, and says how many there are."""
    if bad:
        number, fault = bad[0]
        more = f" (and {len(bad) - 1:,} such lines more)" if len(bad) > 1 else ""
        raise RefusalError(f"{path}:{number}: {fault}{more}: {advice}")
