#!/usr/bin/env python3
"""Shows what training on new data costs a model on old data, all of it trained or a part.

Data are tasks of GLUE, or text. Finetunes CHECKPOINT on the old task (text it has learned already);
from that, in several ways, on the new one; and scores both, a task by its own head.
Writes results.json and results.md into DEST. Killed and started again, it goes on where it was.
"""

import argparse
import json
import logging
import os
import re
import statistics
from pathlib import Path

from omegaconf import OmegaConf
from run import refuse_failed, run_restartable, run_steps
from steps import (
    GLUE_CONFIGS,
    ROOT,
    VALIDATION_SEED,
    Step,
    config_name,
    flags,
    glue_config,
    hydra_value,
    tool,
)

from pkm_fairseq.commands.configs import load_config

# How to go on to the new data: what is trained, whether of a list of slots, the rest frozen.
WAYS = {
    "full": ("everything", False, False),
    "slots": ("listed slots and all but values", True, False),
    "frozen-slots": ("listed slots", True, True),
    "frozen-values": ("all values", False, True),
}
PRETRAINING_CONFIG = ROOT / "user_dir_examples" / "pretraining" / "base.yaml"
SIDES = ("old", "new")
WARMUP = 0.06  # of the updates on text, as RoBERTa is finetuned
ROBERTA = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("encoder_normalize_before", "layernorm_embedding", "activation_fn", "max_positions"),
)
TEXT = ("tokens_per_sample", "sample_break_mode")


def main():
    run_restartable(run, parse_args())


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
    for name, of in (("old", "what may be forgotten"), ("new", "what to learn")):
        parser.add_argument(
            f"--{name}",
            type=Path,
            required=True,
            metavar="DIR",
            help=f"{of}: TASK-bin, as pkm-fairseq prepare-task made it, or binary text",
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
    for side in SIDES:
        parser.add_argument(
            f"--{side}-updates", type=int, help="(default: the task's configuration's)"
        )
    parser.add_argument(
        "--frozen-lr", type=float, help="learning rate where all else is frozen (default: the same)"
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=[*WAYS],
        help="what to train: "
        + "; ".join(f"{way}, {title}" for way, (title, *_) in WAYS.items())
        + " (default: each)",
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
    if is_text(args.old) != is_text(args.new):
        raise ValueError("--old and --new must both be tasks of GLUE, or both text")
    if is_text(args.new) and not args.new_updates:
        raise ValueError("text has no number of updates of its own: add --new-updates")
    if is_text(args.old) and args.old_updates:
        raise ValueError("text is not trained on before: remove --old-updates")
    for side in () if is_text(args.new) else SIDES:
        if glue_config(task_of(getattr(args, side))).task.num_classes == 1:
            raise ValueError(f"--{side} {getattr(args, side)} is scored by numbers: choose classes")
    for name in ("count", "slots_batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)} is below 1")
    for override in args.overrides:
        if "=" not in override:
            raise ValueError(f"{override} changes nothing: write NAME=VALUE")
    args.dest.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)  # as fairseq's --user-dir wants it

    from pkm_fairseq.files import atomic_write

    logging.getLogger().setLevel(logging.ERROR)  # outside its commands fairseq logs everything
    args.model, args.text = read_model(args.checkpoint)
    steps = make_steps(args)
    device = "cpu" if args.cpu else "cuda"
    refuse_failed(run_steps(args.dest, steps, device, {args.checkpoint: "CHECKPOINT"}))
    results = {
        "old": title_of(args.old),
        "new": title_of(args.new),
        "ways": {way: read_way(args, way) for way in args.ways},
    }
    atomic_write(args.dest / "results.json", json.dumps(results, indent=1) + "\n")
    table = make_table(results)
    atomic_write(args.dest / "results.md", table)
    print(table, end="")


def is_text(data):
    return not (data / "input0").is_dir()


def read_model(checkpoint):
    """Returns the options of a checkpoint's model and of its text, as a YAML has them."""
    from fairseq.checkpoint_utils import load_checkpoint_to_cpu

    from pkm_fairseq.config import PKMConfig

    cfg = load_checkpoint_to_cpu(str(checkpoint))["cfg"]
    memory = vars(PKMConfig.from_args(cfg.model))
    model, task = (
        OmegaConf.to_container(part) if OmegaConf.is_config(part) else vars(part)
        for part in (cfg.model, cfg.task)
    )
    if not memory["pkm_layers"]:
        raise ValueError(f"{checkpoint} has no memory")
    options = {name: model[name] for name in ROBERTA}
    options.update((name, memory[name]) for name in memory if name.startswith("pkm_"))
    return options, {name: task[name] for name in TEXT if name in task}


def make_steps(args):
    """Returns the steps, each after those it needs."""
    steps = []
    if is_text(args.new):  # the checkpoint can be scored as it is
        steps += [score(args, side, getattr(args, side), args.checkpoint) for side in SIDES]
    for seed in args.seeds:
        start, needs, slots = args.checkpoint, (), args.dest / f"list.{seed}/slots.json"
        if not is_text(args.old):
            steps.append(train(args, f"old.{seed}", args.old, seed, args.old_updates))
            start, needs = last(args, f"old.{seed}"), (f"old.{seed}",)
            steps.append(score(args, f"old.{seed}", args.old, start, needs))
        command = (
            *(tool("pkm-fairseq"), "slots", start, "--data", args.new),
            *("--background", *args.background, "--count", args.count, "--dest", slots),
            *("--batch-size", args.slots_batch_size, *flags({"cpu": args.cpu})),
        )
        if any(WAYS[way][1] for way in args.ways):
            steps.append(Step(slots.parent.name, "slots", tuple(map(str, command)), needs))
        for way in args.ways:
            _, listed, frozen = WAYS[way]
            options = {"task.pkm_freeze_rest": frozen, "checkpoint.finetune_from_model": start}
            if not is_text(args.new):
                options["+model.load_checkpoint_heads"] = True
            if listed:
                options["task.pkm_train_slots"] = slots
            if frozen and args.frozen_lr:
                options["optimization.lr"] = [args.frozen_lr]
            name, needed = f"{way}.{seed}", (*needs, *([slots.parent.name] if listed else []))
            steps.append(train(args, name, args.new, seed, args.new_updates, options, needed))
            steps += [
                score(args, f"{name}.{side}", getattr(args, side), last(args, name), (name,))
                for side in SIDES
            ]
    return steps


def train(args, name, data, seed, updates, more=(), needs=()):
    """Trains by a shipped configuration: of a task, whose head gets its name, or of pretraining."""
    if is_text(data):
        folder, config = PRETRAINING_CONFIG.parent, PRETRAINING_CONFIG.stem
        known = load_config(PRETRAINING_CONFIG)
        options = {
            **{f"task.{option}": value for option, value in args.text.items()},
            "common.fp16": False,
            "common.memory_efficient_fp16": not args.cpu,
            "optimization.update_freq": [1],
            "lr_scheduler.warmup_updates": round(WARMUP * updates),
            # As all else, or a learning rate for the frozen would not act.
            "optimizer.pkm_values_lr": None,
            "optimizer.pkm_values_lr_scheduled": False,
            "optimizer.pkm_search_lr": None,
        }
    else:
        folder, config = GLUE_CONFIGS, config_name(task_of(data))
        known = glue_config(task_of(data))
        options = {
            "task.max_positions": args.model["max_positions"],
            "+criterion.classification_head_name": config,
            "optimizer._name": "pkm_adam",
            "optimization.max_epoch": 0,
        }
    updates = updates or known.optimization.max_update
    options = {
        **{
            ("" if key in known.model else "+") + f"model.{key}": value
            for key, value in args.model.items()
        },
        "model._name": "pkm_roberta",
        "task.data": data,
        "checkpoint.finetune_from_model": args.checkpoint,
        "checkpoint.save_dir": args.dest / name,
        "common.seed": seed,
        "common.cpu": args.cpu,
        "optimization.max_update": updates,
        **options,
        **dict(override.split("=", 1) for override in args.overrides),
        **dict(more),
    }
    command = (
        *(tool("fairseq-hydra-train"), "--config-dir", str(folder.relative_to(ROOT))),
        *("--config-name", config, *(f"{key}={hydra_value(options[key])}" for key in options)),
    )
    return Step(name, f"training on {data.name}", command, needs)


def score(args, name, data, checkpoint, needs=()):
    """Scores data, a task by its own head."""
    if is_text(data):
        kind, options = "masked_lm", {"seed": VALIDATION_SEED}
    else:
        kind = "sentence_prediction"
        options = {
            "num_classes": glue_config(task_of(data)).task.num_classes,
            "classification_head_name": config_name(task_of(data)),
            "max_positions": args.model["max_positions"],
        }
    options = {
        "user_dir": "pkm_fairseq",
        "task": f"pkm_{kind}",
        "criterion": f"pkm_{kind}",
        **options,
        "path": checkpoint,
        "batch_size": 32,
        "required_batch_size_multiple": 1,
        "log_format": "json",
        "cpu": args.cpu,
    }
    command = (tool("fairseq-validate"), str(data), *flags(options))
    return Step(f"{name}.score", "scoring", command, tuple(needs))


def last(args, name):
    return args.dest / name / "checkpoint_last.pt"


def task_of(data):
    return data.name.replace("-bin", "")


def title_of(data):
    """Returns what data are and what they are scored by."""
    return f"{task_of(data)} ({metric_of(data)})"


def metric_of(data):
    """Returns what data are scored by."""
    return "ppl" if is_text(data) else glue_config(task_of(data)).checkpoint.best_checkpoint_metric


def read_way(args, way):
    """Returns the scores and how many numbers were trained, for each seed."""

    def find(name, pattern):
        return re.findall(pattern, (args.dest / name / "log").read_text(errors="replace"))[-1]

    def read(name, data):
        return float(find(name, rf'"valid_{metric_of(data)}": "([^"]+)"'))

    def read_seed(seed):
        after = {
            f"{side}_after": read(f"{way}.{seed}.{side}.score", getattr(args, side))
            for side in SIDES
        }
        if is_text(args.new):
            before = {
                f"{side}_before": read(f"{side}.score", getattr(args, side)) for side in SIDES
            }
        else:  # which has no head for the new task
            before = {"old_before": read(f"old.{seed}.score", args.old)}
        # Beside the shared ones fairseq counts "expert" ones, as it calls sparse values.
        trained = (
            int(find(f"{way}.{seed}", rf"num\. {kind} .*trained: ([\d,]+)").replace(",", ""))
            for kind in ("shared", "expert")
        )
        return {**before, **after, "trained": sum(trained)}

    return {seed: read_seed(seed) for seed in args.seeds}


def make_table(results):
    """Returns the table in Markdown: medians over seeds, of tasks in percent."""
    columns = {
        f"{side}_{when}": f"{results[side]} {when}"
        for side in SIDES
        for when in ("before", "after")
    }
    rows = {WAYS[way][0]: list(of.values()) for way, of in results["ways"].items()}
    columns = {
        name: columns[name] for name in columns if all(name in runs[0] for runs in rows.values())
    }
    lines = [["trained", "numbers", *columns.values()], ["---"] * (2 + len(columns))]
    for title, runs in rows.items():
        trained, *scores = (
            statistics.median(of[name] for of in runs) for name in ("trained", *columns)
        )
        lines.append([title, f"{trained:,.0f}", *(f"{of:.1f}" for of in scores)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
