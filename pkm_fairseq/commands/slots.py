"""Lists the slots that new data access much more than a background does, for --pkm-train-slots.

The score of a slot is its TF-IDF (Lin et al. 2025, arXiv 2510.15103): its share of all accesses on
the new data, times log((B + 1) / (B_s + 1)), where B_s of the B batches of the background access
it. The list has the best slots of each table of values. Data are a task's, as
pkm-fairseq prepare-task makes them, or text, whatever the checkpoint was trained on.
"""

from pathlib import Path

from pkm_fairseq.finetuning.accesses import count_accesses, task_for
from pkm_fairseq.finetuning.slot_lists import best_slots, tf_idf, write_slots
from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.usage.report.checkpoints import open_checkpoint
from pkm_fairseq.usage.report.evaluate import DataSet

from .arguments import add_device, add_user_dir, device_for, number_from


def add_arguments(parser):
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
    add_user_dir(parser)
    add_device(parser)


def check_arguments(args, parser):
    if args.dest.is_dir():
        parser.error(f"--dest {args.dest} is a folder: name a file")


def run(args):
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


def _share(accesses, slots):
    return (accesses[slots].sum() / accesses.sum().clamp(min=1)).item()
