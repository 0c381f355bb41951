"""Writes what a finetuned checkpoint predicts for rows that prepare-task prepared.

Writes DEST/SPLIT.tsv: for each row its place in its file, from 0 on, and its class, with the
probability of every class, or its score. With --task it writes the files that GLUE's leaderboard
takes, with the official name, header, order and label words; MNLI has two.
"""

import csv
import io
import time
from pathlib import Path

import torch
from fairseq import utils
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from pkm_fairseq.config import TABLE_DTYPES
from pkm_fairseq.files import atomic_write
from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.task_data.glue import TASKS, submission_files
from pkm_fairseq.task_data.task import is_test, read_description
from pkm_fairseq.text.dictionaries import class_names

from .arguments import add_device, add_user_dir, device_for, number_from

SECONDS_BETWEEN_LINES = 5


def run(args):
    """Writes a file for each split.

    Raises:
        RefusalError: if checkpoint and data do not go together, naming what to change.
    """
    files = choose_files(args)
    model, task = load(args)
    args.dest.mkdir(parents=True, exist_ok=True)
    for split, file in files.items():
        task.load_dataset(split)
        logits = predict(file, model, task, split, args.batch_size)
        form = official if args.task else table
        atomic_write(args.dest / file, form(logits, task, split, args))
        print(f"wrote {args.dest / file}")


def add_arguments(parser):
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="of prepare-task")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR")
    parser.add_argument("--task", choices=TASKS, help="GLUE's, whose official files to write")
    parser.add_argument(
        "--split", nargs="+", metavar="SPLIT", help="such as valid (default: all test sets)"
    )
    parser.add_argument("--batch-size", type=number_from(1), default=32, help="sentences at once")
    add_user_dir(parser)
    add_device(parser)
    parser.add_argument(
        "--pkm-table-dtype",
        choices=[dtype.value for dtype in TABLE_DTYPES],
        help="how to keep the values (default: as the checkpoint says)",
    )


def check_arguments(args, parser):
    if args.task and args.split:
        parser.error("--split does not go with --task, which takes the official test sets")


def choose_files(args):
    """Returns the name of the file to write for each split."""
    if not args.checkpoint.is_file():
        raise RefusalError(f"--checkpoint {args.checkpoint} is not a file")
    if not (args.data / "input0" / "dict.txt").is_file():
        raise RefusalError(f"--data {args.data} was not made by pkm-fairseq prepare-task")
    if args.task:
        return submission_files(args.task)
    there = sorted(path.stem for path in (args.data / "input0").glob("*.idx"))
    splits = args.split or [*filter(is_test, there)]
    if not splits or not {*splits} <= {*there}:
        wanted = f"--split {' '.join(args.split)}" if args.split else "a test set"
        raise RefusalError(
            f"--data {args.data} does not have {wanted}: give --split and any of {', '.join(there)}"
        )
    return {split: f"{split}.tsv" for split in splits}


def load(args):
    """Returns the finetuned model and its task.

    Raises:
        RefusalError: if they do not go with the data.
    """
    # A row longer than the model reads must get a prediction too.
    overrides = {"data": str(args.data), "shorten_method": "truncate"}
    if args.pkm_table_dtype:
        dtype = {"pkm_table_dtype": args.pkm_table_dtype}
        overrides.update(dtype, model=dtype)  # for either command line's checkpoints
    try:
        (model,), _, task = load_model_ensemble_and_task([str(args.checkpoint)], overrides)
    except FileNotFoundError as error:
        # A pretraining's checkpoint looks for data of another layout.
        raise RefusalError(
            f"--checkpoint {args.checkpoint} is not finetuned on a task like --data: {error}"
        ) from error
    except ValueError as error:
        raise RefusalError(f"--checkpoint {args.checkpoint} cannot be used: {error}") from error
    if args.pkm_table_dtype and not getattr(model, "memories", dict)():
        raise RefusalError(
            f"--pkm-table-dtype {args.pkm_table_dtype} has no effect: "
            f"--checkpoint {args.checkpoint} has no memory; remove it"
        )
    if args.task:
        check_official(args, task)
    else:
        check_classes(args, task)
    return model.to(device_for(args)).eval(), task


def check_official(args, task):
    """Refuses a checkpoint or data that are not of the GLUE task."""
    wanted = TASKS[args.task]
    classes = len(wanted.classes) or 1
    if task.cfg.num_classes != classes:
        raise RefusalError(
            f"--checkpoint {args.checkpoint} has {task.cfg.num_classes} classes, "
            f"but --task {args.task} has {classes}"
        )
    if wanted.classes:
        found = {*class_names(task.label_dictionary)}
        if found != {*wanted.classes}:
            raise RefusalError(
                f"--data {args.data} is not of --task {args.task}: its classes are {found}"
            )
    if (args.data / "input1").is_dir() != (len(wanted.sentences) == 2):
        raise RefusalError(
            f"--data {args.data} is not of --task {args.task}: its rows are of other length"
        )


def check_classes(args, task):
    """Refuses a checkpoint of other classes than the data have."""
    folder = args.data / "label" / "dict.txt"
    if task.cfg.regression_target:
        if folder.is_file():
            raise RefusalError(f"--checkpoint {args.checkpoint} gives scores, {folder} has classes")
        return
    names = class_names(task.label_dictionary)
    if len(names) != task.cfg.num_classes:
        raise RefusalError(
            f"--checkpoint {args.checkpoint} has {task.cfg.num_classes} classes, but {folder} has "
            f"{len(names)}: {', '.join(names)}"
        )


def predict(title, model, task, split, batch_size):
    """Returns the logits of each row of a set, (rows, classes), in the order of the rows."""
    dataset = task.dataset(split)
    batches = task.get_batch_iterator(
        dataset, max_sentences=batch_size, max_positions=task.max_positions()
    ).next_epoch_itr(shuffle=False)
    device = next(model.parameters()).device
    found = {}
    said = time.monotonic()
    for number, batch in enumerate(batches, 1):
        if device.type == "cuda":
            batch = utils.move_to_cuda(batch)
        with torch.no_grad():
            logits, _ = model(
                **batch["net_input"],
                features_only=True,
                classification_head_name=task.cfg.classification_head_name,
            )
        found.update(zip(batch["id"].tolist(), logits.float().cpu()))
        if time.monotonic() - said > SECONDS_BETWEEN_LINES or number == len(batches):
            said = time.monotonic()
            print(f"{title}: {len(found):,} of {len(dataset):,} rows", flush=True)
    assert len(found) == len(dataset)
    return torch.stack([found[row] for row in range(len(dataset))])


def official(logits, task, split, args):
    """Returns an official file."""
    if task.cfg.regression_target:
        lowest, highest = TASKS[args.task].scores
        scores = lowest + (highest - lowest) * logits.view(-1)
        words = [f"{score:.4f}" for score in scores.clamp(lowest, highest).tolist()]
    else:
        words = best_classes(logits, task)
    rows = (f"{index}\t{word}\n" for index, word in enumerate(words))
    return "index\tprediction\n" + "".join(rows)


def table(logits, task, split, args):
    """Returns the text of a table with all that is predicted."""
    described = read_description(args.data)
    left_out = {*described.get("left_out", {}).get(split, ())}
    places = (place for place in range(len(logits) + len(left_out)) if place not in left_out)
    text = io.StringIO()
    written = csv.writer(text, delimiter="\t", lineterminator="\n")
    if task.cfg.regression_target:
        lowest, highest = described.get("scores") or (0, 1)
        scores = (lowest + (highest - lowest) * logits.view(-1)).tolist()
        written.writerow(["index", "prediction"])
        written.writerows((place, f"{score:.6g}") for place, score in zip(places, scores))
        return text.getvalue()
    names = class_names(task.label_dictionary)
    written.writerow(["index", "prediction", *(f"probability of {name}" for name in names)])
    rows = zip(places, best_classes(logits, task), logits.softmax(-1).tolist())
    written.writerows([place, best, *(f"{p:.6f}" for p in shares)] for place, best, shares in rows)
    return text.getvalue()


def best_classes(logits, task):
    labels = task.label_dictionary
    return [labels[labels.nspecial + best] for best in logits.argmax(-1).tolist()]
