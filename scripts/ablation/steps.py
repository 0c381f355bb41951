"""What an ablation runs: fairseq's own commands and the scripts of this project, as steps."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
GLUE_CONFIGS = ROOT / "user_dir_examples" / "glue"
BENCH_MODELS = ROOT / "scripts" / "bench" / "bench_models.py"
# A row that goes on from another has its seed and this for each pretraining before: the same seed
# would show the same sentences again, with the same words masked.
SEED_OF_NEXT = 100
VALIDATION_SEED = 1  # all models are validated on the same masks
ALL_TOKENS = 10**9


@dataclass(frozen=True)
class Step:
    """A command to be run once.

    Args:
        name: names its folder in DEST, too.
        kind: steps of one kind take alike long for a unit of work.
        command: the command line.
        needs: names of the steps before it.
        work: how much of it there is.
        may_change: whether it is run anew when its command has changed, or that is refused.
    """

    name: str
    kind: str
    command: Tuple[str, ...]
    needs: Tuple[str, ...] = ()
    work: float = 1
    may_change: bool = False


class Steps:
    """Makes the steps of an ablation.

    Args:
        settings: ``Settings``.
        corpus: folder of train.txt and valid.txt, which may be gzipped.
        glue: folder of GLUE's official files.
        dest: folder to make everything in.
    """

    def __init__(self, settings, corpus, glue, dest):
        self.settings = settings
        self.corpus, self.glue, self.dest = corpus, glue, dest
        self.text = dest / "data" / "text"
        self.cpu = ("--cpu",) if settings.cpu else ()

    def pretrainings(self, rows):
        """Returns the steps that pretrain and validate rows, those they go on from included."""
        wanted = dict.fromkeys(
            (needed, seed)
            for name in rows
            for needed in (*self._starts(name), name)
            for seed in self.settings.seeds_of(name)
        )
        steps = [self.data()]
        for name, seed in wanted:
            steps += [self.pretraining(name, seed), self.validation(name, seed)]
            if self.settings.rows[name].memory:
                steps += self.without_memory(name, seed)
        return steps

    def finetunings(self, rows):
        """Returns the steps that finetune rows and measure their drift."""
        tasks = self.settings.finetuning.tasks
        rows = [name for name in rows if self.settings.rows[name].finetune]
        steps = [self.glue_data(task) for task in tasks if rows]
        for name in rows:
            for seed in self.settings.seeds_of(name):
                for task in tasks:
                    seeds = self.settings.finetuning.seeds
                    steps += [self.finetuning(name, seed, task, number) for number in seeds]
                    if self.settings.rows[name].memory:
                        steps.append(self.drift(name, seed, task))
        return steps

    def data(self):
        texts = {split: find_text(self.corpus, split) for split in ("train", "valid")}
        return self._script(
            "data",
            "scripts/pretraining/prepare.py",
            *("--train", texts["train"], "--valid", texts["valid"]),
            *("--vocab-size", self.settings.vocab_size, "--dest", self.text),
        )

    def pretraining(self, name, seed):
        """Trains a row from nothing or from the row it starts from."""
        settings = self.settings
        row = settings.rows[name]
        updates = settings.updates_of(name)
        folder = self.dest / f"{name}.{seed}"
        needs = ["data"]
        options = {
            "user_dir": "pkm_fairseq",
            "task": "pkm_masked_lm",
            "criterion": "pkm_masked_lm",
            "arch": "pkm_roberta",
            "sample_break_mode": "none",
            "tokens_per_sample": settings.tokens_per_sample,
            "max_positions": settings.positions(),
            "batch_size": settings.batch_size,
            "optimizer": "pkm_adam",
            "lr": row.lr,
            "lr_scheduler": "polynomial_decay",
            "warmup_updates": round(settings.warmup * updates),
            "total_num_update": updates,
            "max_update": updates,
            "seed": seed + SEED_OF_NEXT * len(self._starts(name)),
            "cpu": settings.cpu,
            "save_dir": folder,
            "tensorboard_logdir": folder / "tensorboard",
            "validate_interval_updates": settings.validate_every,
            "save_interval_updates": settings.validate_every,
            "keep_interval_updates": 1,
            "no_epoch_checkpoints": True,
            "log_format": "json",
            **settings.training,
            **settings.model_of(name),
            **row.training,
        }
        if row.start_from:
            needs.append(f"{row.start_from}.{seed}")
            # What has no memory yet gets a fresh one; what has one keeps it.
            keeps = settings.rows[row.start_from].memory
            option = "finetune_from_model" if keeps else "pkm_init_from"
            options[option] = self._checkpoint(needs[-1])
        return Step(
            folder.name,
            "memory pretraining" if row.memory else "dense pretraining",
            (tool("fairseq-train"), str(self.text), *flags(options)),
            tuple(needs),
            updates,
        )

    def validation(self, name, seed):
        """Validates a row's last checkpoint on the whole validation set."""
        run = f"{name}.{seed}"
        return self._validation(f"{run}.valid", run, self._checkpoint(run))

    def without_memory(self, name, seed):
        """Validates it once more, with all values of its memory set to zero."""
        run = f"{name}.{seed}"
        empty = self.dest / f"{run}.empty" / "checkpoint.pt"
        args = (self._checkpoint(run), "--dest", empty)
        yield self._script(f"{run}.empty", "scripts/without_memory.py", *args, needs=(run,))
        yield self._validation(f"{run}.without", f"{run}.empty", empty)

    def _validation(self, step, needed, checkpoint):
        options = {
            "user_dir": "pkm_fairseq",
            "task": "pkm_masked_lm",
            "path": checkpoint,
            "batch_size": self.settings.batch_size,
            "required_batch_size_multiple": 1,
            "seed": VALIDATION_SEED,
            "log_format": "json",
            "cpu": self.settings.cpu,
        }
        command = (tool("fairseq-validate"), str(self.text), *flags(options))
        return Step(step, "validation", command, (needed,))

    def glue_data(self, task):
        return self._script(
            f"glue.{task}",
            "scripts/tasks/prepare.py",
            *("--glue", self.glue, "--tasks", task, "--dest", self.dest / f"glue.{task}"),
            *("--dict", self.text / "dict.txt"),
            *("--sentencepiece-model", self.text / "sentencepiece.bpe.model", "--workers", 1),
            needs=("data",),
        )

    def finetuning(self, name, seed, task, number):
        """Finetunes a row by the shipped configuration of a task."""
        run = f"{name}.{seed}"
        folder = self.dest / f"{run}.{task}.{number}"
        updates = self.settings.finetuning.tasks[task]
        known = glue_config(task).model
        model = self.settings.model_of(name)
        options = {
            "task.data": self.dest / f"glue.{task}" / f"{task}-bin",
            "task.max_positions": self.settings.positions(),
            "checkpoint.finetune_from_model": self._checkpoint(run),
            "checkpoint.save_dir": folder,
            "common.seed": number,
            "common.cpu": self.settings.cpu,
            "optimization.max_update": updates,
            "optimization.max_epoch": 0,
            "model._name": "pkm_roberta",
            **{("" if key in known else "+") + f"model.{key}": model[key] for key in model},
        }
        command = (
            *(tool("fairseq-hydra-train"), "--config-dir", "user_dir_examples/glue"),
            *("--config-name", config_name(task)),
            *(f"{key}={hydra_value(value)}" for key, value in options.items()),
            *self.settings.finetuning.overrides,
        )
        return Step(folder.name, f"finetuning on {task}", command, (run, f"glue.{task}"), updates)

    def drift(self, name, seed, task):
        """Compares the memory before and after each finetuning, on the task's validation set."""
        run = f"{name}.{seed}"
        tuned = [f"{run}.{task}.{number}" for number in self.settings.finetuning.seeds]
        # The report measures drift from one checkpoint to the next.
        checkpoints = [self._checkpoint(part) for after in tuned for part in (run, after)]
        command = (
            *(sys.executable, "-m", "pkm_fairseq.report"),
            *(self.dest / f"glue.{task}" / f"{task}-bin", *checkpoints, *self.cpu),
            *("--dest", self.dest / f"{run}.{task}.drift", "--drift-tokens", ALL_TOKENS),
            *("--slots", 0),
        )
        command = tuple(map(str, command))
        return Step(f"{run}.{task}.drift", f"drift on {task}", command, tuple(tuned))

    def speed(self, needs):
        """Measures the words per second of all rows' models in turn, when all else is done."""
        models = dict.fromkeys(self.speed_name(name) for name in self.settings.rows)
        sizes = {"batch": self.settings.batch_size, "length": self.settings.tokens_per_sample}
        step = self._script(
            "speed",
            BENCH_MODELS.relative_to(ROOT),
            *("--device", self.settings.device),
            *("--vocabulary", self.settings.vocab_size, *flags(sizes)),
            *("--repeats", self.settings.speed_repeats, "--json", self.dest / "speed.json"),
            *("--inference", "--training", *models),
            needs=needs,
        )
        return Step(**{**vars(step), "may_change": True})

    def speed_name(self, name):
        """Returns what the benchmark calls a row's model."""
        options = self.settings.model_of(name).items()
        return ":".join(["pkm_roberta", *(f"{key}={hydra_value(value)}" for key, value in options)])

    def _starts(self, name):
        """Returns the rows that a row goes on from, the first first."""
        start = self.settings.rows[name].start_from
        return [*self._starts(start), start] if start else []

    def _checkpoint(self, run):
        return self.dest / run / "checkpoint_last.pt"

    def _script(self, name, script, *args, needs=()):
        command = (sys.executable, str(script), *map(str, args))
        return Step(name, name, command, tuple(needs))


def find_text(corpus, split):
    """Returns the text of a split, gzipped or not; what it would be called if neither is there."""
    path = corpus / f"{split}.txt"
    zipped = corpus / f"{split}.txt.gz"
    return zipped if zipped.exists() else path


def config_name(task):
    """Returns the name of a GLUE task's shipped configuration."""
    return task.lower().replace("-", "_")


def glue_config(task):
    return OmegaConf.load(GLUE_CONFIGS / f"{config_name(task)}.yaml")


def flags(options):
    """Writes options as flags; True stands for a flag alone, False and None for none at all."""
    parts = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        parts.append("--" + name.replace("_", "-"))
        if isinstance(value, (list, tuple)):
            parts.append(",".join(map(str, value)))
        elif value is not True:
            parts.append(str(value))
    return parts


def hydra_value(value):
    """Writes a value as Hydra reads it."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(hydra_value, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def tool(name):
    return str(Path(sys.executable).with_name(name))
