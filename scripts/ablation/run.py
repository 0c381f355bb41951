#!/usr/bin/env python3
"""Runs the paper's ablation, with fairseq's own commands, and writes its table and picture.

Pretrains each row of CONFIG, validates it, finetunes it and measures how fast it is; then writes
results.json, results.md and results.png into DEST. Killed at whatever moment and started again, it
goes on where it was and repeats nothing. Several processes with one DEST share the work.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from settings import read_settings
from steps import ROOT, Steps, find_text

ONLY = ("pretraining", "finetuning", "speed", "results")


def main():
    run_restartable(run, parse_args())


def run_restartable(work, args):
    """Does ``work(args)``, which may be killed and started again, and ends with one line if not."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: terminated"))
    try:
        work(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: started again, it goes on where it was")


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML of settings")
    parser.add_argument(
        "overrides", nargs="*", metavar="NAME=VALUE", help="changes to them, as updates=30"
    )
    folders = {
        "--corpus": "train.txt and valid.txt, which may be gzipped",
        "--glue": "GLUE's official files, a folder a task",
    }
    for flag, text in folders.items():
        parser.add_argument(flag, type=Path, metavar="DIR", help=f"folder of {text}")
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR", help="where to work")
    parser.add_argument("--rows", help="rows to work on, in this order, as a,f (default: all)")
    parser.add_argument(
        "--only", choices=ONLY, help="what to do alone (default: all); speed is measured anew"
    )
    return parser.parse_intermixed_args()


def run(args):
    """Does what is missing of what is asked for, and writes the results there are."""
    settings = read_settings(args.config, args.overrides)
    rows = choose_rows(args.rows, settings)
    check_folders(args, settings, rows)
    os.chdir(ROOT)  # as fairseq's --user-dir wants it
    folders = [args.corpus, args.glue, args.dest]
    steps = Steps(settings, *folders)
    chosen = choose_steps(steps, rows, args.only)

    # These take seconds to import.
    from output import write_results
    from results import Results

    logging.getLogger().setLevel(logging.ERROR)  # outside its commands fairseq logs everything
    check_commands(chosen)
    if args.only == "speed":
        (args.dest / "speed" / "done.json").unlink(missing_ok=True)
    names = {args.corpus: "CORPUS", args.glue: "GLUE"}
    if settings.pretrained:
        names[settings.pretrained] = "PRETRAINED"
    failed = run_steps(args.dest, chosen, settings.device, names)
    write_results(Results(settings, steps).collect(), args.dest)
    refuse_failed(failed)


def run_steps(dest, steps, device, names):
    """Runs steps that are not done; returns the names of those that failed.

    Args:
        dest: DEST.
        steps: a list of ``Step``.
        device: cpu or cuda.
        names: what stands for paths, beside DEST, in the commands that are kept.
    """
    from results import describe_machine
    from runner import Runner

    names = {f"{Path(sys.executable).parent}/": "", dest: "DEST", **names}
    names = {str(path): name for path, name in names.items()}
    return Runner(dest, steps, lambda: describe_machine(device), names).run()


def refuse_failed(failed):
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}; started again, it tries again")


def choose_rows(text, settings):
    """Returns the names of the rows to work on."""
    names = text.split(",") if text else [*settings.rows]
    for name in names:
        if name not in settings.rows:
            raise ValueError(f"--rows {name} is no row: choose among {', '.join(settings.rows)}")
    return names


def check_folders(args, settings, rows):
    """Makes paths absolute, and refuses folders that are not there or were not given."""
    trains = args.only not in ("speed", "results")
    finetunes = (
        trains and args.only != "pretraining" and any(settings.rows[r].finetune for r in rows)
    )
    for name, needed in {"corpus": trains, "glue": finetunes}.items():
        folder = getattr(args, name)
        if needed and folder is None:
            raise ValueError(f"--{name} is missing: give the folder")
        if folder is not None and not folder.is_dir():
            raise ValueError(f"--{name} {folder} is not a folder")
        # What is not given is not used.
        setattr(args, name, (folder or Path(name)).resolve())
    for split in ("train", "valid") if trains else ():
        if not find_text(args.corpus, split).is_file():
            raise ValueError(f"--corpus {args.corpus} has no {split}.txt or {split}.txt.gz")
    for task in settings.finetuning.tasks if finetunes else ():
        if not (args.glue / task).is_dir():
            raise ValueError(f"--glue {args.glue} has no folder {task}")
    if settings.pretrained:
        settings.pretrained = str(Path(settings.pretrained).resolve())
        if not Path(settings.pretrained, "model.pt").is_file():
            raise ValueError(
                f"pretrained={settings.pretrained} has no model.pt: make the folder by "
                "pkm-fairseq import"
            )
    args.dest = args.dest.resolve()
    args.dest.mkdir(parents=True, exist_ok=True)


def choose_steps(steps, rows, only):
    """Returns the steps to be done, each after those it needs."""
    if only == "results":
        return []
    if only == "speed":
        return [steps.speed(needs=())]
    chosen = steps.pretrainings(rows)
    if only != "pretraining":
        chosen += steps.finetunings(rows)
    if only is None:
        chosen.append(steps.speed(needs=[step.name for step in chosen]))
    return chosen


def check_commands(steps):
    """Has fairseq read all command lines of pretrainings, so that none fails after hours.

    Raises:
        ValueError: if it refuses one.
    """
    import contextlib
    import io

    from fairseq import options

    for step in steps:
        if not step.command[0].endswith("fairseq-train"):
            continue
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                options.parse_args_and_arch(options.get_training_parser(), [*step.command[1:]])
        except SystemExit:
            reason = said.getvalue().strip().split("\n")[-1]
            raise ValueError(f"{step.name}: {reason}") from None


if __name__ == "__main__":
    main()
