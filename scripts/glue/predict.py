#!/usr/bin/env python3
"""Writes the files that GLUE's leaderboard takes, from a finetuned checkpoint.

Reads the test sets of a folder that prepare.py made, and writes one file for each into DEST, with
the official name, header, order and label words; MNLI has two.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from fairseq import utils
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from glue_tasks import HIGHEST_SCORE, TASKS, submission_files

from pkm_fairseq.config import TABLE_DTYPES
from pkm_fairseq.files import write_whole  # registers the models and tasks, too

SECONDS_BETWEEN_LINES = 5


def main():
    args = parse_args()
    model, task = load(args)
    args.dest.mkdir(parents=True, exist_ok=True)
    for split, file in submission_files(args.task).items():
        task.load_dataset(split)
        predictions = predict(file, model, task, split, args)
        write(predictions, args.dest / file)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--task", required=True, choices=TASKS, help="whose official files to write"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the TASK-bin folder of prepare.py"
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR")
    parser.add_argument("--batch-size", type=int, default=32, help="sentences at once")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument(
        "--pkm-table-dtype",
        choices=[dtype.value for dtype in TABLE_DTYPES],
        help="how to keep the values (default: as the checkpoint says)",
    )
    return parser.parse_args()


def load(args):
    """Returns the finetuned model and its task, or exits where they do not go with the data."""
    if not args.checkpoint.is_file():
        sys.exit(f"--checkpoint {args.checkpoint} is not a file")
    if not (args.data / "input0" / "dict.txt").is_file():
        sys.exit(f"--data {args.data} was not made by scripts/glue/prepare.py")
    # A row longer than the model reads must get a prediction too.
    overrides = {"data": str(args.data), "shorten_method": "truncate"}
    if args.pkm_table_dtype:
        table = {"pkm_table_dtype": args.pkm_table_dtype}
        overrides.update(table, model=table)  # for either command line's checkpoints
    try:
        (model,), _, task = load_model_ensemble_and_task([str(args.checkpoint)], overrides)
    except FileNotFoundError as error:
        # A pretraining's checkpoint looks for data of another layout.
        sys.exit(f"--checkpoint {args.checkpoint} is not finetuned on --task: {error}")
    except ValueError as error:
        sys.exit(f"--checkpoint {args.checkpoint} cannot be used: {error}")
    if args.pkm_table_dtype and not getattr(model, "memories", dict)():
        sys.exit(
            f"--pkm-table-dtype {args.pkm_table_dtype} has no effect: "
            f"--checkpoint {args.checkpoint} has no memory; remove it"
        )
    wanted = TASKS[args.task]
    classes = len(wanted.classes) or 1
    if task.cfg.num_classes != classes:
        sys.exit(
            f"--checkpoint {args.checkpoint} has {task.cfg.num_classes} classes, "
            f"but --task {args.task} has {classes}"
        )
    if wanted.classes:
        labels = task.label_dictionary
        found = {*labels.symbols[labels.nspecial : labels.nspecial + classes]}
        if found != {*wanted.classes}:
            sys.exit(f"--data {args.data} is not of --task {args.task}: its classes are {found}")
    if (args.data / "input1").is_dir() != (len(wanted.sentences) == 2):
        sys.exit(f"--data {args.data} is not of --task {args.task}: its rows are of other length")
    if torch.cuda.is_available() and not args.cpu:
        model.cuda()
    return model.eval(), task


def predict(title, model, task, split, args):
    """Returns the prediction for each row of a test set, in the order of the rows."""
    dataset = task.dataset(split)
    batches = task.get_batch_iterator(
        dataset, max_sentences=args.batch_size, max_positions=task.max_positions()
    ).next_epoch_itr(shuffle=False)
    device = next(model.parameters()).device
    predictions = {}
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
        predictions.update(zip(batch["id"].tolist(), words(logits.float(), task)))
        if time.monotonic() - said > SECONDS_BETWEEN_LINES or number == len(batches):
            said = time.monotonic()
            print(f"{title}: {len(predictions):,} of {len(dataset):,} rows", flush=True)
    assert len(predictions) == len(dataset)
    return [predictions[row] for row in range(len(dataset))]


def words(logits, task):
    """Turns a batch's logits, (rows, classes), into what stands in an official file."""
    if task.cfg.regression_target:
        scores = HIGHEST_SCORE * logits.view(-1)
        return [f"{score:.4f}" for score in scores.clamp(0, HIGHEST_SCORE).tolist()]
    labels = task.label_dictionary
    return [labels[labels.nspecial + best] for best in logits.argmax(-1).tolist()]


def write(predictions, path):
    """Writes an official file, whole or not at all."""
    rows = (f"{index}\t{word}\n" for index, word in enumerate(predictions))
    write_whole(path, "index\tprediction\n" + "".join(rows))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
