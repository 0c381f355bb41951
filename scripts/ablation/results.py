"""Reads what an ablation has made: the figures of each row."""

import json
import re
import statistics
import sys
from dataclasses import asdict

import numpy as np
from fairseq.data import Dictionary, data_utils
from steps import ROOT, glue_config

from pkm_fairseq.usage.report.history import read_history

sys.path.insert(1, str(ROOT / "scripts" / "bench"))
from measure import describe_machine  # noqa: E402 - after the above

# What is kept of what was logged over training: figures of all memories together.
HISTORY = re.compile(r"ppl|pkm_(?!l\d)\w+")


class Results:
    """What there is of an ablation.

    Args:
        settings: ``Settings``.
        steps: ``Steps``.
    """

    def __init__(self, settings, steps):
        self.settings, self.steps, self.dest = settings, steps, steps.dest
        self._speed = {}
        if (self.dest / "speed.json").exists():
            measured = json.loads((self.dest / "speed.json").read_text())["results"]
            self._speed = {(record["kind"], record["model"]): record for record in measured}

    def collect(self):
        """Returns all figures; those of what is not done are None."""
        return {
            "machine": describe_machine(self.settings.device),
            "settings": asdict(self.settings),
            "data": {**(self._done("data") or {}), **self._describe_data()},
            "rows": {name: self._row(name) for name in self.settings.rows},
            "speed": self._done("speed"),
        }

    def _row(self, name):
        row = self.settings.rows[name]
        return {
            "title": row.title,
            "start_from": row.start_from,
            "lr": row.lr,
            "updates": self.settings.updates_before(name) + self.settings.updates_of(name),
            "speed": {
                kind: self._speed.get((kind, self.steps.speed_name(name)))
                for kind in ("inference", "training")
            },
            "runs": {seed: self._run(name, seed) for seed in self.settings.seeds_of(name)},
        }

    def _run(self, name, seed):
        """Returns the figures of one pretraining and of what follows it."""
        run = f"{name}.{seed}"
        tasks = self.settings.finetuning.tasks if self.settings.rows[name].finetune else ()
        if not self.settings.updates_of(name):
            finetuned = {task: self._finetuned(run, task) for task in tasks}
            done = any(of_task["best"] for of_task in finetuned.values())
            return {"history": {}, "finetuning": finetuned} if done else None
        trained, valid = self._done(run), self._done(f"{run}.valid")
        if not trained or not valid:
            return None
        before = self.settings.updates_before(name)
        history = read_history(self.dest / run / "tensorboard", "valid", None)
        (parameters,) = set(self._find(run, r"num\. shared model params: ([\d,]+)"))
        return {
            "parameters": int(parameters.replace(",", "")),
            "pretraining": trained,
            "validation": {**valid, "figures": self._validated(f"{run}.valid")},
            "without_memory": self._done(f"{run}.without") and self._validated(f"{run}.without"),
            "history": {
                figure: [(before + update, value) for update, value in entries]
                for figure, entries in history.items()
                if HISTORY.fullmatch(figure)
            },
            "finetuning": {task: self._finetuned(run, task) for task in tasks},
        }

    def _validated(self, step):
        """Returns what fairseq-validate printed last."""
        line = self._find(step, r"\| valid \| (\{.*\})")[-1]
        figures = {name[len("valid_") :]: value for name, value in json.loads(line).items()}
        return {name: float(value) for name, value in figures.items()}

    def _finetuned(self, run, task):
        """Returns the scores of a row on a task, and the drift of its memory, for each seed."""
        metric = glue_config(task).checkpoint.best_checkpoint_metric
        steps = {number: f"{run}.{task}.{number}" for number in self.settings.finetuning.seeds}
        scores = {
            number: [float(text) for text in self._find(step, rf'"valid_{metric}": "([^"]+)"')]
            for number, step in steps.items()
            if self._done(step)
        }
        drifts = {}
        if self._done(f"{run}.{task}.drift"):
            report = json.loads((self.dest / f"{run}.{task}.drift" / "report.json").read_text())
            after = report["checkpoints"][1::2]
            drifts = {number: of["figures"]["pkm_drift"] for number, of in zip(steps, after)}
        return {
            "metric": metric,
            "steps": {number: self._done(step) for number, step in steps.items()},
            "best": {number: max(of_seed) for number, of_seed in scores.items()},
            "last": {number: of_seed[-1] for number, of_seed in scores.items()},
            "without_memory": {
                number: self._validated(f"{step}.without")[metric]
                for number, step in steps.items()
                if self._done(f"{step}.without")
            },
            "drift": drifts,
        }

    def _describe_data(self):
        """Returns tokens, and the perplexity of a model that knows how frequent each is alone."""
        if not self._done("data"):
            return {}
        dictionary = Dictionary.load(str(self.steps.text / "dict.txt"))
        texts = {}
        for split in ("train", "valid"):
            lines = data_utils.load_indexed_dataset(str(self.steps.text / split), dictionary)
            texts[split] = np.concatenate([line.numpy() for line in lines])
        seen = np.bincount(texts["train"], minlength=len(dictionary)) + 1
        surprise = -np.log(seen / seen.sum())[texts["valid"]].mean()
        return {
            "train_tokens": len(texts["train"]),
            "valid_tokens": len(texts["valid"]),
            "unigram_perplexity": float(np.exp(surprise)),
        }

    def _done(self, step):
        """Returns the record of a step that is done, else None."""
        path = self.dest / step / "done.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _find(self, step, pattern):
        return re.findall(pattern, (self.dest / step / "log").read_text(errors="replace"))


def median(runs, *keys):
    """Returns the median over runs of a figure, None if none has it; as ``all_of``."""
    found = all_of(runs, *keys)
    return statistics.median(found) if found else None


def all_of(runs, *keys):
    """Returns a figure of all runs that have it, in their order.

    Args:
        runs: as ``Results`` collects them.
        keys: where the figure is in a run; what is a dict there counts with all its values.
    """
    found = []
    for run in runs.values():
        for key in keys:
            run = run.get(key) if run else None
        found += run.values() if isinstance(run, dict) else [run]
    return [value for value in found if value is not None]
