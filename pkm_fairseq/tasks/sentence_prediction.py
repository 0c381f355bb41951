"""Finetuning on sentences and sentence pairs, scored over whole validation sets."""

import os
from argparse import ArgumentTypeError
from dataclasses import dataclass

import torch.distributed as dist
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from omegaconf import II

from pkm_fairseq.distributed import count_workers
from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.task_data.scores import classification_scores, regression_scores

from .binary_text import check_binary_text
from .checked_options import CheckedOptionsTask
from .init_from import InitFromConfig, InitFromTask
from .labels import check_kind, check_labels
from .monitored import MonitoredTask
from .train_part import TrainPartConfig, TrainPartTask


@dataclass
class PKMSentencePredictionConfig(InitFromConfig, TrainPartConfig, SentencePredictionConfig):
    """fairseq's options, ``--pkm-init-from``, and those of which part is trained."""

    train_subset: str = II("dataset.train_subset")
    valid_subset: str = II("dataset.valid_subset")
    disable_validation: bool = II("dataset.disable_validation")


@register_task("pkm_sentence_prediction", dataclass=PKMSentencePredictionConfig)
class PKMSentencePredictionTask(
    CheckedOptionsTask, TrainPartTask, InitFromTask, MonitoredTask, SentencePredictionTask
):
    """fairseq's sentence_prediction task, with GLUE's metrics on every validation set.

    The criterion ``pkm_sentence_prediction`` hands each validation batch to ``record``.
    """

    @classmethod
    def add_args(cls, parser):
        """Adds the task's flags, of which some are the criterion's: fairseq's default has none."""
        super().add_args(parser)
        for action in parser._actions:
            if action.dest == "criterion":
                action.type = _criterion_with_head

    def __init__(self, cfg, data_dictionary, label_dictionary):
        super().__init__(cfg, data_dictionary, label_dictionary)
        self._recorded = {}
        self._checked = set()  # splits

    def build_model(self, cfg, from_checkpoint=False):
        """Builds the model, once the labels it is to learn from were checked.

        Raises:
            RefusalError: if they are not there or do not fit, naming file, line and what to change.
        """
        if not from_checkpoint:
            valid = "" if self.cfg.disable_validation else self.cfg.valid_subset
            for split in [self.cfg.train_subset, *filter(None, valid.split(","))]:
                self.check_data(self.cfg.data, split, labels_needed=True)
        return super().build_model(cfg, from_checkpoint)

    def check_data(self, folder, split, labels_needed=False):
        """Refuses a split that cannot be read, or whose labels do not fit."""
        if split in self._checked:
            return
        for place in ("input0", "input1"):
            check_binary_text(os.path.join(folder, place, split), self.source_dictionary)
        check_binary_text(os.path.join(folder, "label", split), self.label_dictionary)
        check_labels(self.cfg, split, self.source_dictionary, self.label_dictionary, labels_needed)
        self._checked.add(split)

    @classmethod
    def setup_task(cls, cfg, **options):
        """Reads the dictionaries, as fairseq's task.

        Raises:
            RefusalError: if there are several folders of data, or a dictionary cannot be read.
        """
        if os.pathsep in cfg.data:
            raise RefusalError(
                f"{cfg.data} is several folders, of which {cfg._name} reads one: name it"
            )
        check_kind(cfg)
        return super().setup_task(cfg, **options)

    def get_batch_iterator(self, dataset, **options):
        self._recorded = {}
        return super().get_batch_iterator(dataset, **options)

    def record(self, ids, predictions, targets):
        """Records a validation batch, on each worker those of all workers; once, if it is repeated.

        Args:
            ids: each example's place in the set; what stands in several batches, as fairseq fills
                up uneven shards, counts once.
            predictions: each example's class or number.
            targets: the true ones.
        """
        if self.worth.repeating:
            return
        batch = list(zip(ids.tolist(), predictions.tolist(), targets.tolist()))
        batches = [batch]
        if count_workers() > 1:
            batches = [None] * count_workers()
            dist.all_gather_object(batches, batch)
        for batch in batches:
            self._recorded.update((example, pair) for example, *pair in batch)

    def scores(self):
        """Returns the metrics over all examples recorded of this validation set, in percent."""
        predictions, targets = zip(*self._recorded.values())
        if self.cfg.regression_target:
            return regression_scores(predictions, targets)
        # GLUE's tasks with an F1 call the positive class 1.
        positive = self.label_dictionary.index("1") - self.label_dictionary.nspecial
        return classification_scores(predictions, targets, positive if positive >= 0 else None)

    def compute_figures(self):
        return {**super().compute_figures(), **(self.scores() if self._recorded else {})}


def _criterion_with_head(name):
    """Takes a value of --criterion whose options name a classification head."""
    if not hasattr(CRITERION_DATACLASS_REGISTRY.get(name), "classification_head_name"):
        raise ArgumentTypeError(f"{name} has no classification head: give pkm_sentence_prediction")
    return name
