#!/usr/bin/env python3
"""Shows what finetuning on a new task costs a model on an old one, all of it trained or a part.

Finetunes CHECKPOINT on the old task; from that, in several ways, on the new one; and scores the old
task again, with its own head. Writes results.json and results.md into DEST. Killed and started
again, it goes on where it was.
"""

import argparse
import json
import logging
import os
import re
import statistics
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent / "ablation"))
from run import carry_out, publish  # noqa: E402 - after the above
from steps import ROOT, Step, config_name, flags, glue_config, hydra_value, tool  # noqa: E402

# How to go on to the new task: what is trained, whether of a list of slots, the rest frozen.
WAYS = {
    "full": ("everything", False, False),
    "slots": ("listed slots and all but values", True, False),
    "frozen-slots": ("listed slots", True, True),
    "frozen-values": ("all values", False, True),
}
ROBERTA = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("encoder_normalize_before", "layernorm_embedding", "activation_fn"),
)


def main():
    carry_out(run, parse_args())


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="pretrained")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="NAME=VALUE",
        help="changes to the tasks' configurations, as optimization.lr=[0.0002]",
    )
    for name, text in (("old", "first"), ("new", "second")):
        parser.add_argument(
            f"--{name}",
            type=Path,
            required=True,
            metavar="TASK-bin",
            help=f"the {text} task, as scripts/glue/prepare.py made it",
        )
    parser.add_argument(
        "--background",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="binary data whose slots are to be spared: the pretraining's, the old task's",
    )
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR", help="where to work")
    parser.add_argument("--count", type=int, required=True, help="slots to train of each table")
    parser.add_argument(
        "--slots-batch-size",
        type=int,
        default=1,
        help="sentences of a batch of the background (default: 1)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: 1 2 3)")
    parser.add_argument("--old-updates", type=int, help="(default: the configuration's)")
    parser.add_argument("--new-updates", type=int, help="(default: the configuration's)")
    parser.add_argument(
        "--frozen-lr", type=float, help="learning rate where all else is frozen (default: the same)"
    )
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    return parser.parse_intermixed_args()


def run(args):
    """Does what is missing and writes the results."""
    for name in ("checkpoint", "old", "new", "dest"):
        setattr(args, name, getattr(args, name).resolve())
    args.background = [folder.resolve() for folder in args.background]
    for path in (args.checkpoint, args.old, args.new, *args.background):
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    args.dest.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)  # as fairseq's --user-dir wants it

    # The package beside this script, whatever is installed; it takes seconds to import.
    sys.path.insert(1, str(ROOT))
    from results import describe_machine
    from runner import Runner

    from pkm_fairseq.files import write_whole

    logging.getLogger().setLevel(logging.ERROR)  # outside its commands fairseq logs everything
    steps = make_steps(args, *read_model(args.checkpoint))
    names = {
        f"{Path(sys.executable).parent}/": "",
        str(args.dest): "DEST",
        str(args.checkpoint): "CHECKPOINT",
    }
    device = "cpu" if args.cpu else "cuda"
    runner = Runner(
        args.dest, steps, lambda of: publish(of, names), lambda: describe_machine(device)
    )
    failed = runner.run()
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}; started again, it tries again")
    results = {
        "old": task_of(args.old),
        "new": task_of(args.new),
        "steps": {step.name: runner.done(step.name) for step in steps},
        "ways": {way: read_way(args, way) for way in WAYS},
    }
    write_whole(args.dest / "results.json", json.dumps(results, indent=1) + "\n")
    table = make_table(results)
    write_whole(args.dest / "results.md", table)
    print(table, end="")


def read_model(checkpoint):
    """Returns the options of a checkpoint's model, as a YAML has them, and its positions."""
    from fairseq.checkpoint_utils import load_checkpoint_to_cpu
    from omegaconf import OmegaConf

    from pkm_fairseq.config import PKMConfig

    trained = load_checkpoint_to_cpu(str(checkpoint))["cfg"].model
    memory = vars(PKMConfig.from_args(trained))
    trained = OmegaConf.to_container(trained) if OmegaConf.is_config(trained) else vars(trained)
    options = {name: trained[name] for name in ROBERTA}
    options.update((name, memory[name]) for name in memory if name.startswith("pkm_"))
    return options, trained["max_positions"]


def make_steps(args, model, positions):
    """Returns the steps, each after those it needs."""
    steps = []
    for seed in args.seeds:
        old, slots = f"old.{seed}", args.dest / f"list.{seed}" / "slots.json"
        steps.append(finetune(args, model, positions, old, args.old, seed, args.old_updates))
        steps.append(score(args, positions, old))
        command = (
            *(sys.executable, "-m", "pkm_fairseq.slots", last(args, old), "--data", args.new),
            *("--background", *args.background, "--count", args.count, "--dest", slots),
            *("--batch-size", args.slots_batch_size, *flags({"cpu": args.cpu})),
        )
        steps.append(Step(slots.parent.name, "slots", tuple(map(str, command)), (old,)))
        for way, (_, listed, frozen) in WAYS.items():
            options = {"task.pkm_freeze_rest": frozen, "+model.load_checkpoint_heads": True}
            if listed:
                options["task.pkm_train_slots"] = slots
            if frozen and args.frozen_lr:
                options["optimization.lr"] = [args.frozen_lr]
            name, needs = f"{way}.{seed}", (old, *([slots.parent.name] if listed else []))
            steps.append(
                finetune(
                    *(args, model, positions, name, args.new, seed, args.new_updates),
                    *(last(args, old), options, needs),
                )
            )
            steps.append(score(args, positions, name))
    return steps


def finetune(args, model, positions, name, data, seed, updates, start=None, more=(), needs=()):
    """Finetunes by the shipped configuration of a task, whose head gets the task's name."""
    config = config_name(task_of(data))
    known = glue_config(task_of(data))
    updates = updates or known.optimization.max_update
    options = {
        "task.data": data,
        "task.max_positions": positions,
        "+criterion.classification_head_name": config,
        "checkpoint.finetune_from_model": start or args.checkpoint,
        "checkpoint.save_dir": args.dest / name,
        "common.seed": seed,
        "common.cpu": args.cpu,
        "optimization.max_update": updates,
        "optimization.max_epoch": 0,
        "optimizer._name": "pkm_adam",
        "model._name": "pkm_roberta",
        **{("" if key in known.model else "+") + f"model.{key}": model[key] for key in model},
        **dict(override.split("=", 1) for override in args.overrides),
        **dict(more),
    }
    command = (
        *(tool("fairseq-hydra-train"), "--config-dir", "user_dir_examples/glue"),
        *("--config-name", config, *(f"{key}={hydra_value(options[key])}" for key in options)),
    )
    return Step(name, f"finetuning on {task_of(data)}", command, needs, updates)


def score(args, positions, name):
    """Scores the old task by its own head."""
    options = {
        "user_dir": "pkm_fairseq",
        "task": "pkm_sentence_prediction",
        "criterion": "pkm_sentence_prediction",
        "num_classes": glue_config(task_of(args.old)).task.num_classes,
        "classification_head_name": config_name(task_of(args.old)),
        "max_positions": positions,
        "path": last(args, name),
        "batch_size": 32,
        "log_format": "json",
        "cpu": args.cpu,
    }
    command = (tool("fairseq-validate"), str(args.old), *flags(options))
    return Step(f"{name}.score", "scoring", command, (name,))


def last(args, name):
    return args.dest / name / "checkpoint_last.pt"


def task_of(data):
    return data.name.replace("-bin", "")


def read_way(args, way):
    """Returns the scores and how many numbers were trained, for each seed."""

    def find(name, pattern):
        return re.findall(pattern, (args.dest / name / "log").read_text(errors="replace"))[-1]

    def metric(data):
        best = glue_config(task_of(data)).checkpoint.best_checkpoint_metric
        return rf'"valid_{best}": "([^"]+)"'

    return {
        seed: {
            "old_before": float(find(f"old.{seed}.score", metric(args.old))),
            "old_after": float(find(f"{way}.{seed}.score", metric(args.old))),
            "new": float(find(f"{way}.{seed}", metric(args.new))),
            # Beside the shared ones fairseq counts "expert" ones, as it calls sparse values.
            "trained": sum(
                int(find(f"{way}.{seed}", rf"num\. {kind} .*trained: ([\d,]+)").replace(",", ""))
                for kind in ("shared", "expert")
            ),
        }
        for seed in args.seeds
    }


def make_table(results):
    """Returns the table in Markdown: medians over seeds, in percent."""
    old, new = (
        f"{results[name]}, {glue_config(results[name]).checkpoint.best_checkpoint_metric}"
        for name in ("old", "new")
    )
    header = ["trained, with the head", "numbers", f"{old}: before", "after", "lost", new]
    lines = [header, ["---"] * len(header)]
    for way, of_seeds in results["ways"].items():
        runs = of_seeds.values()
        lost = statistics.median(of["old_before"] - of["old_after"] for of in runs)
        before, after, gained, trained = (
            statistics.median(of[name] for of in runs)
            for name in ("old_before", "old_after", "new", "trained")
        )
        figures = [f"{figure:.1f}" for figure in (before, after, lost, gained)]
        lines.append([WAYS[way][0], f"{trained:,.0f}", *figures])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
