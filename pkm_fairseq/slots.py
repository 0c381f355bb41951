"""Lists the slots that new data access much more than a background does, for --pkm-train-slots.

The score of a slot is its TF-IDF (Lin et al. 2025, arXiv 2510.15103): its share of all accesses on
the new data, times log((B + 1) / (B_s + 1)), where B_s of the B batches of the background access
it. The list has the best slots of each table of values. Data are a task's, as
scripts/tasks/prepare.py makes them, or text, whatever the checkpoint was trained on.
"""

import argparse
import os
from pathlib import Path

import torch
from fairseq.tasks import setup_task
from omegaconf import OmegaConf

from pkm_fairseq.command_line import carry_out, device_for, number_from
from pkm_fairseq.observe import observe_reads
from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.report.checkpoints import open_checkpoint
from pkm_fairseq.report.evaluate import DataSet
from pkm_fairseq.slot_lists import best_slots, tf_idf, write_slots


def main():
    carry_out(list_slots, parse_args())


def parse_args():
    parser = argparse.ArgumentParser(
        prog="python -m pkm_fairseq.slots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="what will be finetuned"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the new data, binary"
    )
    parser.add_argument(
        "--background",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="data whose slots are to be spared, binary; one folder or several",
    )
    parser.add_argument(
        "--count", type=number_from(1), required=True, help="slots to list of each table, at most"
    )
    parser.add_argument("--dest", type=Path, required=True, metavar="FILE", help="the list, JSON")
    parser.add_argument(
        "--subset", default="train", help="data set of all folders (default: train)"
    )
    parser.add_argument(
        "--batch-size", type=number_from(1), default=32, help="sentences in a batch (default: 32)"
    )
    parser.add_argument(
        "--background-batches",
        type=number_from(1),
        default=1000,
        help="batches of each background, at random, at most (default: 1000)",
    )
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    args = parser.parse_args()
    if args.dest.is_dir():
        parser.error(f"--dest {args.dest} is a folder: name a file")
    return args


def list_slots(args):
    """Ranks the slots, writes the list and prints what it holds."""
    checkpoint = open_checkpoint(
        args.checkpoint, args.data, make_task=lambda cfg: task_for(args.data, cfg)
    )
    device = device_for(args)
    model = checkpoint.model.to(device).eval()

    # First all data, so that a wrong folder is refused before the work.
    data = {args.data: DataSet(checkpoint.task, args.subset, args.batch_size, model, device)}
    for folder in {*args.background} - {args.data}:
        task = task_for(folder, checkpoint.cfg)
        if task.source_dictionary != checkpoint.task.source_dictionary:
            raise RefusalError(
                f"{folder} has another dict.txt than {args.data}: prepare it with that"
            )
        data[folder] = DataSet(task, args.subset, args.batch_size, model, device)
    new, _ = count_accesses(model, data[args.data], str(args.data))
    found = [
        count_accesses(model, data[folder], str(folder), args.background_batches)
        for folder in args.background
    ]
    batches = sum(of_folder for _, of_folder in found)
    tables, lines = {}, []
    for layers, (accesses, _) in new.items():
        others, batches_with = sum(counts[layers] for counts, _ in found)
        slots = best_slots(tf_idf(accesses, batches_with, batches), args.count)
        name = "+".join(map(str, layers))
        if not len(slots):
            raise RefusalError(
                f"the new data access no slot of layer {name} that is worth training: all are in "
                "each batch of the background; lower --batch-size"
            )
        tables[layers] = slots
        lines.append(
            f"layer {name}: {len(slots):,} of {len(accesses):,} slots "
            f"({len(slots) / len(accesses):.1%}), with {_share(accesses, slots):.1%} of the "
            f"accesses on the new data and {_share(others, slots):.1%} of those on the "
            f"background, of which a batch accesses {batches_with.double().mean() / batches:.1%} "
            "of all slots"
        )
    origin = {
        "checkpoint": str(checkpoint.file),
        "data": str(args.data),
        "background": list(map(str, args.background)),
        "background_batches": batches,
        "batch_size": args.batch_size,
    }
    args.dest.parent.mkdir(parents=True, exist_ok=True)
    sizes = {layers: len(accesses) for layers, (accesses, _) in new.items()}
    write_slots(args.dest, tables, sizes, **origin)
    print(*lines, f"wrote {args.dest}", sep="\n")


def task_for(folder, cfg):
    """Returns the task that reads a folder: of the checkpoint's options where they are of its kind.

    Args:
        folder: of binary data, GLUE's or text.
        cfg: the checkpoint's options.

    Raises:
        ValueError: if there is no such data.
    """
    if os.pathsep in str(folder):
        raise RefusalError(
            f"{folder} is several folders: name those of --background one after the other, and "
            "list the slots of each --data by itself"
        )
    of_glue = (folder / "input0").is_dir()
    if not of_glue and not (folder / "dict.txt").is_file():
        raise RefusalError(
            f"{folder} is no folder of binary data: it has no dict.txt and no input0"
        )
    positions = cfg.model.max_positions
    if cfg.task._name.endswith("sentence_prediction") == of_glue:
        options = {**OmegaConf.to_container(cfg.task)}
    elif of_glue:
        options = {
            **{"_name": "pkm_sentence_prediction", "init_token": 0, "separator_token": 2},
            **{"max_positions": positions, "seed": cfg.common.seed},
        }
    else:
        options = {
            **{"_name": "pkm_masked_lm", "sample_break_mode": "complete"},
            **{"tokens_per_sample": positions, "seed": cfg.common.seed},
        }
    if of_glue:
        # A long sentence would end the work; labels, numbers or classes, are not looked at.
        options.update(shorten_method="truncate", regression_target=True, num_classes=1)
        options.update(classification_head_name="none")
    return setup_task(OmegaConf.create({**options, "data": str(folder)}))


@torch.no_grad()
def count_accesses(model, data, title, most=None):
    """Counts accesses to slots.

    Args:
        model: the model, in evaluation.
        data: a ``DataSet``.
        title: what to say while it takes.
        most: how many batches at most, None for all.

    Returns:
        A dict from the layers of each table to how often each slot was accessed, and in how many
        batches it was, (2, S), on the CPU; and how many batches there were.
    """
    counts = {
        layers: torch.zeros(2, len(table.weight), dtype=torch.int64, device=table.weight.device)
        for layers, table in model.tables().items()
    }
    batches = 0
    for batch in data.batches(title, most):
        with observe_reads(model.memories()) as reads:
            model(**batch["net_input"], features_only=True)
        for layers, of_table in counts.items():
            # What relu gives no weight was not read.
            slots = torch.cat(
                [slots[weights > 0] for layer in layers for slots, weights in reads[layer]]
            )
            accesses = slots.bincount(minlength=of_table.shape[1])
            of_table += torch.stack([accesses, (accesses > 0).long()])
        batches += 1
    return {layers: of_table.cpu() for layers, of_table in counts.items()}, batches


def _share(accesses, slots):
    return (accesses[slots].sum() / accesses.sum().clamp(min=1)).item()


if __name__ == "__main__":
    main()
