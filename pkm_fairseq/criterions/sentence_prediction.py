"""fairseq's finetuning loss, with GLUE's metrics and the usage of memories logged."""

from dataclasses import dataclass

from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_prediction import (
    SentencePredictionConfig,
    SentencePredictionCriterion,
)

from pkm_fairseq.config import flag
from pkm_fairseq.refusals import RefusalError

from .usage import UsageConfig, check_usage


@dataclass
class PKMSentencePredictionCriterionConfig(UsageConfig, SentencePredictionConfig):
    """fairseq's options and those of usage."""


@register_criterion("pkm_sentence_prediction", dataclass=PKMSentencePredictionCriterionConfig)
class PKMSentencePredictionCriterion(SentencePredictionCriterion):
    """fairseq's sentence_prediction criterion; its task scores and logs memory usage.

    Raises:
        RefusalError: if the task is not the one that does, fairseq's own scoring is asked for as
            well, or an option cannot be.
    """

    def __init__(self, cfg, task):
        check_usage(cfg, task, "pkm_sentence_prediction")
        for option in ("report_mcc", "report_acc_and_f1", "report_pearson_and_spearman"):
            if getattr(cfg, option, False):
                raise RefusalError(
                    f"{flag(option)}: pkm_sentence_prediction always reports it; remove it"
                )
        super().__init__(cfg, task)
        self.usage_config = cfg

    def forward(self, model, sample, reduce=True):
        """Same as in fairseq's criterion; the task records what is predicted in validation.

        Raises:
            RefusalError: if the rows have no labels.
        """
        if "target" not in sample:
            raise RefusalError(
                f"{self.task.cfg.data} has no labels of these rows: choose another --valid-subset, "
                "or pkm-fairseq predict"
            )
        if model.training:
            return super().forward(model, sample, reduce)
        model = _OutputKeeper(model)
        result = super().forward(model, sample, reduce)
        logits, _ = model.output
        predictions = logits.float().view(-1) if self.regression_target else logits.argmax(-1)
        self.task.record(sample["id"], predictions, sample["target"].view(-1))
        return result


class _OutputKeeper:
    """A model that keeps its last output: fairseq's criterion does not hand out the logits."""

    def __init__(self, model):
        self._model = model

    def __call__(self, **inputs):
        self.output = self._model(**inputs)
        return self.output

    def __getattr__(self, name):
        return getattr(self._model, name)
