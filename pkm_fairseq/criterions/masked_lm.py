"""fairseq's pretraining loss, with the usage of memories logged."""

from dataclasses import dataclass

from fairseq.criterions import register_criterion
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss

from .usage import UsageConfig, check_usage


@dataclass
class PKMMaskedLMCriterionConfig(UsageConfig, MaskedLmConfig):
    """fairseq's options and those of usage."""


@register_criterion("pkm_masked_lm", dataclass=PKMMaskedLMCriterionConfig)
class PKMMaskedLMCriterion(MaskedLmLoss):
    """fairseq's masked_lm criterion; its task logs how much of the memory is used.

    Raises:
        RefusalError: if the task does not count, or an option cannot be.
    """

    def __init__(self, cfg, task):
        check_usage(cfg, task, "pkm_masked_lm")
        super().__init__(cfg, task)
        self.usage_config = cfg
