"""Shows how checkpoints use their memories on a data set.

Writes DEST/report.html, one file with its pictures inside, and DEST/report.json with the figures.
The data set is read by the task of the last checkpoint, so that a pretrained model and those
finetuned from it can be compared on the finetuning's data.
"""

from pathlib import Path

from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.usage.monitor import UsageMonitor
from pkm_fairseq.usage.report.checkpoints import names_apart, open_checkpoint
from pkm_fairseq.usage.report.evaluate import DataSet, find_contexts, measure
from pkm_fairseq.usage.report.history import read_history
from pkm_fairseq.usage.report.render import write_report
from pkm_fairseq.usage.report.text import TokenText

from .arguments import add_device, add_user_dir, device_for, number_from


def add_arguments(parser):
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of binary data")
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint, or the folder of a training, which may be going on",
    )
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR")
    parser.add_argument("--subset", default="valid", help="data set to run on (default: valid)")
    parser.add_argument(
        "--batch-size", type=number_from(1), default=32, help="sentences at once (default: 32)"
    )
    parser.add_argument(
        "--drift-tokens",
        type=number_from(0),
        default=4096,
        help="tokens, the set's first, to measure drift on (default: 4096)",
    )
    parser.add_argument(
        "--worth-tokens",
        type=number_from(0),
        default=16384,
        help="tokens, in batches from all over the set, to measure on what the loss becomes "
        "without memories (default: 16384)",
    )
    parser.add_argument(
        "--slots",
        type=number_from(0),
        default=10,
        help="how many of the most used slots to show the text of (default: 10)",
    )
    parser.add_argument(
        "--contexts", type=number_from(1), default=5, help="tokens to show of each (default: 5)"
    )
    parser.add_argument("--per-head", action="store_true", help="figures of each head as well")
    parser.add_argument("--png", action="store_true", help="write each picture as a file, too")
    add_user_dir(parser)
    add_device(parser)


def run(args):
    """Runs each checkpoint over the data set and writes what it finds."""
    device = device_for(args)
    last = open_checkpoint(args.checkpoints[-1], args.data)
    data = DataSet(last.task, args.subset, args.batch_size, last.model, device)
    text = TokenText(last.task.source_dictionary, [args.data, last.file.parent])
    args.dest.mkdir(parents=True, exist_ok=True)  # before the work, in case it cannot be
    criterion = last.task.build_criterion(last.cfg.criterion)
    monitor = UsageMonitor(args.per_head)
    results = []
    for path, name in zip(args.checkpoints, names_apart(args.checkpoints)):
        is_last = len(results) == len(args.checkpoints) - 1
        checkpoint = last if is_last else open_checkpoint(path, args.data, lambda cfg: last.task)
        model = checkpoint.model.to(device).eval()
        if model.max_positions() < data.max_positions:
            raise RefusalError(
                f"{checkpoint.file} reads {model.max_positions()} tokens at once, but the data is "
                f"read for {last.file}, which reads {data.max_positions}: report on them apart"
            )
        figures, counts = measure(
            model,
            data,
            f"{name}: usage",
            monitor,
            args.drift_tokens,
            criterion if checkpoint.loss == last.loss else None,
            args.worth_tokens,
        )
        weights = {layer: of_layer[2].sum(0) for layer, of_layer in counts.items()}  # (S,) each
        slots = {
            layer: weight.topk(min(args.slots, len(weight))).indices.tolist()
            for layer, weight in weights.items()
        }
        found = find_contexts(model, data, f"{name}: text", slots, args.contexts)
        results.append(
            {
                "name": name,
                "file": str(checkpoint.file),
                "updates": checkpoint.updates,
                "figures": figures,
                "counts": counts,
                "slots": {
                    layer: [
                        {
                            "slot": slot,
                            "share": (weights[layer][slot] / weights[layer].sum()).item(),
                            "tokens": [text.describe(context) for context in found[layer, slot]],
                        }
                        for slot in of_layer
                    ]
                    for layer, of_layer in slots.items()
                },
                "history": read_history(checkpoint.tensorboard, args.subset, checkpoint.updates),
            }
        )
    write_report(results, args.dest, args.data, args.subset, args.png)
