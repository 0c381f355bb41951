"""Finetuning on sentences and sentence pairs, scored over whole validation sets."""

from dataclasses import dataclass

import torch.distributed as dist
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from pkm_fairseq.scores import classification_scores, regression_scores
from pkm_fairseq.workers import count_workers

from .init_from import InitFromConfig, InitFromTask
from .monitored import MonitoredTask
from .train_part import TrainPartConfig, TrainPartTask


@dataclass
class PKMSentencePredictionConfig(InitFromConfig, TrainPartConfig, SentencePredictionConfig):
    """fairseq's options, ``--pkm-init-from``, and those of which part is trained."""


@register_task("pkm_sentence_prediction", dataclass=PKMSentencePredictionConfig)
class PKMSentencePredictionTask(TrainPartTask, InitFromTask, MonitoredTask, SentencePredictionTask):
    """fairseq's sentence_prediction task, with GLUE's metrics on every validation set.

    The criterion ``pkm_sentence_prediction`` hands each validation batch to ``record``.
    """

    def __init__(self, cfg, data_dictionary, label_dictionary):
        super().__init__(cfg, data_dictionary, label_dictionary)
        self._recorded = {}

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
