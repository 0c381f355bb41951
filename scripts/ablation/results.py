"""Reads what an ablation has made: the figures of each row."""

import json
import re
import sys
from dataclasses import asdict

import numpy as np
from fairseq.data import Dictionary, data_utils
from steps import ROOT, glue_config

from pkm_fairseq.usage.report.history import read_history

sys.path.insert(1, str(ROOT / "scripts" / "bench"))
from measure import describe_machine  # noqa: E402 - after the above

# What is kept of what was logged: figures of all memories together.
KEPT = re.compile(r"parameters|ppl|pkm_(?!l\d)\w+")


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
            self._speed = {record["model"]: record for record in measured}

    def collect(self):
        """Returns the figures of all runs that are done, and the rows that lack one."""
        runs = {
            (name, seed): self._run(name, seed)
            for name in self.settings.rows
            for seed in self.settings.seeds_of(name)
        }
        return {
            "machine": describe_machine(self.settings.device),
            "settings": asdict(self.settings),
            "data": self._describe_data(),
            "not_run": [*dict.fromkeys(name for (name, _), run in runs.items() if not run)],
            "runs": [run for run in runs.values() if run],
        }

    def _run(self, name, seed):
        """Returns the figures of one pretraining and of what follows it, None if it is not done."""
        run, row, before = f"{name}.{seed}", self.settings.rows[name], {}
        trains = self.settings.updates_of(name)
        if trains:
            before = self._pretrained(name, run)
        tuned = {}
        for task in self.settings.finetuning.tasks if row.finetune else ():
            tuned.update(self._finetuned(run, task))
        if not (before if trains else tuned):
            return None
        updates = self.settings.updates_before(name) + trains
        speed = self._speed.get(self.steps.speed_name(name))
        if speed:
            _, tuned["words_per_second"], _ = speed["words_per_second"]
            tuned["times_first"] = speed["times_first"]
        of_row = {"row": name, "title": row.title, "seed": seed, "updates": updates}
        return {**of_row, "lr": row.lr, "history": {}, **before, **tuned}

    def _pretrained(self, name, run):
        """Returns the figures of a pretraining and its validations; none if it is not done."""
        trained = self._done(run)
        if not trained or not self._done(f"{run}.valid"):
            return {}
        before = self.settings.updates_before(name)
        history = read_history(self.dest / run / "tensorboard", "valid", None)
        (parameters,) = set(self._find(run, r"num\. shared model params: ([\d,]+)"))
        figures = {
            "parameters": int(parameters.replace(",", "")),
            # The last of them, where the validation below has no figure of its own.
            **{figure: entries[-1][1] for figure, entries in history.items()},
            **self._validated(f"{run}.valid"),
        }
        figures = {of: figures[of] for of in figures if KEPT.fullmatch(of)}
        if self._done(f"{run}.without"):
            figures["ppl_values_zero"] = self._validated(f"{run}.without")["ppl"]
        machine = {key: trained["machine"].get(key) for key in ("device", "threads", "commit")}
        shifted = {
            figure: [(before + update, value) for update, value in entries]
            for figure, entries in history.items()
        }
        return {**figures, "seconds": trained["seconds"], **machine, "history": shifted}

    def _validated(self, step):
        """Returns what fairseq-validate printed last."""
        line = self._find(step, r"\| valid \| (\{.*\})")[-1]
        figures = {name[len("valid_") :]: value for name, value in json.loads(line).items()}
        return {name: float(value) for name, value in figures.items()}

    def _finetuned(self, run, task):
        """Returns the scores of a row on a task for each seed, once all of a kind are there."""
        metric = glue_config(task).checkpoint.best_checkpoint_metric
        steps = [f"{run}.{task}.{number}" for number in self.settings.finetuning.seeds]
        figures = {}
        if all(map(self._done, steps)):
            scores = (self._find(step, rf'"valid_{metric}": "([^"]+)"') for step in steps)
            figures[task] = [max(map(float, of_seed)) for of_seed in scores]
        if all(self._done(f"{step}.without") for step in steps):
            scores = [self._validated(f"{step}.without")[metric] for step in steps]
            figures[f"{task}_values_zero"] = scores
        if self._done(f"{run}.{task}.drift"):
            report = json.loads((self.dest / f"{run}.{task}.drift" / "report.json").read_text())
            after = report["checkpoints"][1::2]
            figures[f"{task}_drift"] = [of["figures"]["pkm_drift"] for of in after]
        return figures

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
