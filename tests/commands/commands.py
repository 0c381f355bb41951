"""Runs the real commands, as a user would, from the project's root."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch

from pkm_fairseq.commands.cli import find_command, parse_args
from tests.commands.forked import Forked, can_fork

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TIMEOUT = 300

# A model that trains in seconds, as flags of fairseq-train.
MODEL = {
    "encoder-layers": 2,
    "encoder-embed-dim": 32,
    "encoder-ffn-embed-dim": 64,
    "encoder-attention-heads": 2,
    "max-positions": 32,
    "dropout": 0.1,
}
MEMORY = {
    "pkm-layers": 1,
    "pkm-subkeys": 16,
    "pkm-topk": 8,
    "pkm-heads": 2,
    "pkm-key-dim": 16,
    "pkm-value-init": "zero",
}
OURS = {"arch": "pkm_roberta", "optimizer": "pkm_adam", **MODEL, **MEMORY}


def start(command, *args, cwd=ROOT, **env):
    """Starts a command of this environment and returns the process, its output merged."""
    args = [*map(str, args)]
    whole_env = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1", **env}
    if can_fork(command, env):
        return Forked(command, args, cwd, whole_env)
    return subprocess.Popen(
        [BIN / command if (BIN / command).exists() else command, *args],
        cwd=cwd,
        env=whole_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(command, *args, fails=False, **options):
    """Runs a command to its end and returns what it printed."""
    process = start(command, *args, **options)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert (process.returncode != 0) == fails, output
    return output


def call(*command):
    """Runs a command of pkm-fairseq in this process: each import of fairseq takes seconds.

    What it refuses comes out as the exception that it is.
    """
    args = parse_args([*map(str, command)])
    find_command(args.command).run(args)


def run_until(pattern, command, *args, **env):
    """Runs a command until it prints ``pattern``, then kills it, and all it started, at once."""
    process = start(command, *args, **env)
    printed = []
    for line in process.stdout:
        printed.append(line)
        if re.search(pattern, line):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(TIMEOUT)
            process.stdout.close()
            return
    raise AssertionError(f"{pattern} never came:\n{''.join(printed)}")


def run_on_two_workers(rendezvous, *args):
    """Runs fairseq-train on two CPU workers; returns what the first printed, which alone logs.

    Args:
        rendezvous: a path where nothing is, by which they find each other.
        args: those of fairseq-train.
    """
    distributed = {
        "distributed-world-size": 2,
        "distributed-init-method": f"file://{rendezvous}",
        "distributed-backend": "gloo",
        "ddp-backend": "legacy_ddp",
        "distributed-no-spawn": None,
    }
    workers = [
        start("fairseq-train", *args, *flags({**distributed, "distributed-rank": rank}))
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=TIMEOUT)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    return outputs[0]


def flags(options):
    """Writes options as flags; None stands for a flag without a value, False for none at all."""
    return [
        part
        for name, value in options.items()
        if value is not False
        for part in ([f"--{name}"] if value is None else [f"--{name}", value])
    ]


def pretraining(data, save_dir, *, updates, **options):
    """The arguments of a short pretraining with fairseq-train."""
    fixed = {
        "user-dir": "pkm_fairseq",
        "task": "masked_lm",
        "criterion": "masked_lm",
        "sample-break-mode": "complete",
        "tokens-per-sample": 32,
        "skip-invalid-size-inputs-valid-test": None,
        "batch-size": 8,
        "optimizer": "adam",
        "adam-betas": "(0.9,0.98)",
        "adam-eps": 1e-6,
        "weight-decay": 0.01,
        "lr": 0.01,
        "clip-norm": 1.0,
        "lr-scheduler": "polynomial_decay",
        "total-num-update": updates,
        "max-update": updates,
        "seed": 3,
        "cpu": None,
        "save-dir": save_dir,
        "no-epoch-checkpoints": None,
        "num-workers": 0,
        "required-batch-size-multiple": 1,
        # fairseq 0.12.2 draws masks from numpy's global state: a thread that reads ahead, as this
        # buffer does, would disturb them.
        "data-buffer-size": 0,
        "log-format": "json",
        "log-interval": 1,
    }
    extra = {name.replace("_", "-"): value for name, value in options.items()}
    return [data, *flags({**fixed, **extra})]


def log_lines(output, part):
    """Returns all that a run with --log-format json printed of ``part``, line by line."""
    lines = re.findall(rf"\| {part} \| (.*)|\[{part}\]\[INFO\] - (.*)", output)
    return [json.loads(plain or hydra) for plain, hydra in lines]


def logged(output, key, part="train_inner"):
    """Returns all values of ``key`` that a run with --log-format json printed."""
    return [line[key] for line in log_lines(output, part)]


def load_model_state(path):
    """Returns the model's tensors in a checkpoint."""
    return torch.load(path, weights_only=True)["model"]


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name
