"""What an ablation runs: fairseq's own commands and the scripts of this project, as steps."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

from pkm_fairseq.commands.configs import load_config
from pkm_fairseq.task_data.folders import for_hydra

ROOT = Path(__file__).parents[2]
GLUE_CONFIGS = ROOT / "user_dir_examples" / "glue"
BENCH_MODELS = ROOT / "scripts" / "bench" / "bench_models.py"
# A row that goes on from another has its seed and this for each pretraining before: the same seed
# would show the same sentences again, with the same words masked.
SEED_OF_NEXT = 100
VALIDATION_SEED = 1  # all models are validated on the same masks
ALL_TOKENS = 10**9
# The files of an encoder, and the options of both commands that prepare data, that name them.
ENCODERS = {
    "sentencepiece.bpe.model": "--sentencepiece-model",
    "encoder.json": "--gpt2-encoder-json",
    "vocab.bpe": "--gpt2-vocab-bpe",
    "tokenizer.json": "--tokenizer-json",
}


@dataclass(frozen=True)
class Step:
    """A command to be run once.

    Args:
        name: names its folder in DEST, too.
        kind: what it does, in a word or two.
        command: the command line.
        needs: names of the steps before it.
        may_change: whether it is run anew when its command has changed, or that is refused.
    """

    name: str
    kind: str
    command: Tuple[str, ...]
    needs: Tuple[str, ...] = ()
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
            if self.settings.updates_of(needed)
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
                        for number in seeds:
                            steps += self.tuned_without_memory(name, seed, task, number)
                        if self.settings.updates_of(name):
                            steps.append(self.drift(name, seed, task))
        return steps

    def data(self):
        texts = {split: find_text(self.corpus, split) for split in ("train", "valid")}
        return self._step(
            "data",
            *(tool("pkm-fairseq"), "prepare-text"),
            *("--train", texts["train"], "--valid", texts["valid"]),
            *self._encoder_of_text(),
            *("--dest", self.text),
        )

    def _encoder_of_text(self):
        """Returns the options of what the text is cut with: of a new model, or the pretrained's."""
        if not self.settings.pretrained:
            return "--vocab-size", self.settings.vocab_size
        folder = Path(self.settings.pretrained)
        return "--dict", folder / "dict.txt", *_encoder_flags(folder)

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
        elif settings.pretrained:
            options["pkm_init_from"] = self._pretrained()
        return Step(
            folder.name,
            "memory pretraining" if row.memory else "dense pretraining",
            (tool("fairseq-train"), str(self.text), *flags(options)),
            tuple(needs),
        )

    def validation(self, name, seed):
        """Validates a row's last checkpoint on the whole validation set."""
        run = f"{name}.{seed}"
        return self._validation(f"{run}.valid", run, self._checkpoint(run))

    def without_memory(self, name, seed):
        """Validates it once more, with all values of its memory set to zero."""
        run = f"{name}.{seed}"
        empty = self.dest / f"{run}.empty" / "checkpoint.pt"
        yield self._emptying(run, self._checkpoint(run))
        yield self._validation(f"{run}.without", f"{run}.empty", empty)

    def tuned_without_memory(self, name, seed, task, number):
        """Scores a finetuned model with all values of its memory set to zero."""
        run = f"{name}.{seed}.{task}.{number}"
        empty = self.dest / f"{run}.empty" / "checkpoint.pt"
        yield self._emptying(run, self.dest / run / "checkpoint_best.pt")
        yield self._validation(f"{run}.without", f"{run}.empty", empty, task)

    def _emptying(self, run, checkpoint):
        command = (sys.executable, "scripts/ablation/without_memory.py", checkpoint)
        dest = self.dest / f"{run}.empty" / "checkpoint.pt"
        return self._step(f"{run}.empty", *command, "--dest", dest, needs=(run,))

    def _validation(self, step, needed, checkpoint, glue_task=None):
        """Validates a checkpoint on the text, or on a task of GLUE."""
        data, kind, own = self.text, "pkm_masked_lm", {}
        if glue_task:
            data, kind = self._glue(glue_task), "pkm_sentence_prediction"
            own = {
                "num_classes": glue_config(glue_task).task.num_classes,
                "max_positions": self.settings.positions(),
            }
        options = {
            "user_dir": "pkm_fairseq",
            "task": kind,
            "criterion": kind,
            **own,
            "path": checkpoint,
            "batch_size": self.settings.batch_size,
            "required_batch_size_multiple": 1,
            "seed": VALIDATION_SEED,
            "log_format": "json",
            "cpu": self.settings.cpu,
        }
        command = (tool("fairseq-validate"), str(data), *flags(options))
        return Step(step, f"validation on {glue_task or 'text'}", command, (needed,))

    def glue_data(self, task):
        return self._step(
            f"glue.{task}",
            *(tool("pkm-fairseq"), "prepare-task"),
            *("--glue", self.glue, "--tasks", task, "--dest", self.dest / f"glue.{task}"),
            *("--dict", self.text / "dict.txt", *self._encoder_of_glue(), "--workers", 1),
            needs=("data",),
        )

    def _encoder_of_glue(self):
        """Returns the options of the encoder that the text was cut with, and lies beside it."""
        if not self.settings.pretrained:
            return "--sentencepiece-model", self.text / "sentencepiece.bpe.model"
        return _encoder_flags(Path(self.settings.pretrained))

    def _glue(self, task):
        return self.dest / f"glue.{task}" / f"{task}-bin"

    def finetuning(self, name, seed, task, number):
        """Finetunes a row by the shipped configuration of a task."""
        run = f"{name}.{seed}"
        folder = self.dest / f"{run}.{task}.{number}"
        known = glue_config(task).model
        model = self.settings.model_of(name)
        options = {
            "task.data": self._glue(task),
            "task.max_positions": self.settings.positions(),
            "checkpoint.finetune_from_model": (
                self._checkpoint(run) if self.settings.updates_of(name) else self._pretrained()
            ),
            "checkpoint.save_dir": folder,
            "common.seed": number,
            "common.cpu": self.settings.cpu,
            "optimization.max_update": self.settings.finetuning.tasks[task],
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
        needs = (run, f"glue.{task}") if self.settings.updates_of(name) else (f"glue.{task}",)
        return Step(folder.name, f"finetuning on {task}", command, needs)

    def drift(self, name, seed, task):
        """Compares the memory before and after each finetuning, on the task's validation set."""
        run = f"{name}.{seed}"
        tuned = [f"{run}.{task}.{number}" for number in self.settings.finetuning.seeds]
        # The report measures drift from one checkpoint to the next.
        checkpoints = [self._checkpoint(part) for after in tuned for part in (run, after)]
        command = (
            *(tool("pkm-fairseq"), "report"),
            *(self._glue(task), *checkpoints, *self.cpu),
            *("--dest", self.dest / f"{run}.{task}.drift", "--drift-tokens", ALL_TOKENS),
            *("--slots", 0),
        )
        command = tuple(map(str, command))
        return Step(f"{run}.{task}.drift", f"drift on {task}", command, tuple(tuned))

    def speed(self, needs):
        """Measures the words per second of all rows' models in turn, when all else is done."""
        models = dict.fromkeys(self.speed_name(name) for name in self.settings.rows)
        sizes = {"batch": self.settings.batch_size, "length": self.settings.tokens_per_sample}
        step = self._step(
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

    def _pretrained(self):
        return Path(self.settings.pretrained) / "model.pt"

    def _checkpoint(self, run):
        return self.dest / run / "checkpoint_last.pt"

    def _step(self, name, *command, needs=()):
        return Step(name, name, tuple(map(str, command)), tuple(needs))


def _encoder_flags(folder):
    """Returns the options that name the encoder's files that lie in ``folder``."""
    there = (name for name in ENCODERS if (folder / name).is_file())
    return [part for name in there for part in (ENCODERS[name], folder / name)]


def find_text(corpus, split):
    """Returns the text of a split, gzipped or not; what it would be called if neither is there."""
    path = corpus / f"{split}.txt"
    zipped = corpus / f"{split}.txt.gz"
    return zipped if zipped.exists() else path


def config_name(task):
    """Returns the name of a GLUE task's shipped configuration."""
    return task.lower().replace("-", "_")


def glue_config(task):
    return load_config(GLUE_CONFIGS / f"{config_name(task)}.yaml")


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
    """Writes a value as Hydra reads it; text may be more than one word of Hydra's, a path not."""
    if isinstance(value, Path):
        return for_hydra(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(hydra_value, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def tool(name):
    return str(Path(sys.executable).with_name(name))
