"""The settings of an ablation: their names and types, and what is refused.

No ``from __future__ import annotations`` here: OmegaConf reads the types of the fields.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pkm_fairseq.task_data.glue import TASKS


@dataclass
class Row:
    """A row of the table: a model, and how it is pretrained."""

    title: str = MISSING
    start_from: Optional[str] = None  # the row whose last checkpoint to go on from
    lr: Optional[float] = None  # highest learning rate
    updates: Optional[int] = None  # None: as many as all; 0: finetuned as it was imported
    memory: bool = False  # whether it has the memory, or is dense
    model: Dict[str, Any] = field(default_factory=dict)  # beside, or instead of, all rows' options
    training: Dict[str, Any] = field(default_factory=dict)  # likewise
    finetune: bool = False
    seeds: Optional[List[int]] = None  # of its pretrainings; None: those of all


@dataclass
class Finetuning:
    """How rows are finetuned."""

    tasks: Dict[str, int] = field(default_factory=dict)  # GLUE task -> updates
    seeds: List[int] = field(default_factory=lambda: [1, 2, 3])
    # Of the shipped configuration of the task, in Hydra's form.
    overrides: List[str] = field(default_factory=list)


@dataclass
class Settings:
    """An ablation."""

    vocab_size: int = MISSING  # sentencepieces, or as many as the pretrained model has
    # Folder that pkm-fairseq import made: what rows without start_from start from.
    pretrained: Optional[str] = None
    tokens_per_sample: int = MISSING
    max_positions: Optional[int] = None  # of the models; None: as many
    batch_size: int = MISSING  # samples of an update
    updates: int = MISSING  # of a pretraining
    warmup: float = 0.1  # share of them
    validate_every: int = MISSING  # updates; checkpoints are saved as often
    seeds: List[int] = field(default_factory=lambda: [1])  # of the pretrainings
    cpu: bool = False
    model: Dict[str, Any] = field(default_factory=dict)  # fairseq-train's options of all models
    memory: Dict[str, Any] = field(default_factory=dict)  # and of those with a memory
    training: Dict[str, Any] = field(default_factory=dict)  # and of all pretrainings
    finetuning: Finetuning = field(default_factory=Finetuning)
    speed_repeats: int = 7  # rounds in which words per second are measured
    rows: Dict[str, Row] = field(default_factory=dict)

    @property
    def device(self):
        return "cpu" if self.cpu else "cuda"

    def positions(self):
        """Returns how many tokens the models can take."""
        return self.max_positions or self.tokens_per_sample

    def seeds_of(self, name):
        """Returns the seeds of a row's pretrainings."""
        own = self.rows[name].seeds
        return self.seeds if own is None else own

    def updates_of(self, name):
        """Returns the updates of a row's own pretraining."""
        own = self.rows[name].updates
        return self.updates if own is None else own

    def updates_before(self, name):
        """Returns the updates of the pretrainings that a row goes on from."""
        start = self.rows[name].start_from
        return self.updates_before(start) + self.updates_of(start) if start else 0

    def model_of(self, name):
        """Returns the options of a row's model."""
        row = self.rows[name]
        memory = dict(self.memory) if row.memory else {"pkm_layers": []}
        return {**self.model, **memory, **row.model}


def read_settings(path, overrides):
    """Reads a file of settings.

    Args:
        path: a YAML.
        overrides: changes to it, as ``updates=30``.

    Raises:
        ValueError: if something is unknown, missing, of a wrong type or cannot be.
    """
    try:
        given = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        typed = OmegaConf.merge(OmegaConf.structured(Settings), given)
        content = OmegaConf.to_container(typed, resolve=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines())
        raise ValueError(f"{path}: {reason}") from error
    for key in _missing(content):
        raise ValueError(f"{path}: {key} is missing: give it")
    settings = Settings(**content)
    settings.finetuning = Finetuning(**content["finetuning"])
    settings.rows = {name: Row(**row) for name, row in content["rows"].items()}
    _check(settings, path)
    return settings


def _missing(content, prefix=""):
    """Yields the names of all that has no value yet."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _missing(value, f"{prefix}{key}.")
        elif value == MISSING:
            yield prefix + key


def _check(settings, path):
    """Refuses what cannot be."""
    for name in ("vocab_size", "tokens_per_sample", "batch_size", "updates", "validate_every"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{path}: {name} {getattr(settings, name)} is below 1: raise it")
    if not settings.rows:
        raise ValueError(f"{path}: rows is empty: name what to train")
    for name, seeds in {
        "seeds": settings.seeds,
        "finetuning.seeds": settings.finetuning.seeds,
        **{f"rows.{name}.seeds": settings.seeds_of(name) for name in settings.rows},
    }.items():
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"{path}: {name} {seeds}: give at least one, each once")
    for task in settings.finetuning.tasks:
        if task not in TASKS:
            raise ValueError(f"{path}: {task} is not a GLUE task: choose among {', '.join(TASKS)}")
    earlier = []
    for name, row in settings.rows.items():
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"{path}: row {name}: a name has letters, digits, - and _ alone")
        if row.updates == 0 and (row.start_from or not settings.pretrained):
            raise ValueError(
                f"{path}: row {name} has no updates: give pretrained, and the row no start_from"
            )
        if row.updates != 0 and row.lr is None:
            raise ValueError(f"{path}: rows.{name}.lr is missing: give it")
        if row.start_from is not None and row.start_from not in earlier:
            raise ValueError(
                f"{path}: row {name} starts from {row.start_from}: name a row that stands before it"
            )
        if row.start_from and (
            lacks := {*settings.seeds_of(name)} - {*settings.seeds_of(row.start_from)}
        ):
            raise ValueError(
                f"{path}: row {name} has seeds {sorted(lacks)}, which {row.start_from} lacks: "
                f"give rows.{row.start_from}.seeds"
            )
        if not row.memory and any(key.startswith("pkm_") for key in row.model):
            raise ValueError(f"{path}: row {name} has options of a memory: add memory: true")
        earlier.append(name)
