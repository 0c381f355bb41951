"""Pretraining that can start from a model without memory."""

from dataclasses import dataclass

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from pkm_fairseq.fairseq_fixes import bpe_options
from pkm_fairseq.refusals import RefusalError

from .checked_options import CheckedOptionsTask
from .init_from import InitFromConfig, InitFromTask
from .monitored import MonitoredTask
from .train_part import TrainPartConfig, TrainPartTask


@dataclass
class PKMMaskedLMConfig(InitFromConfig, TrainPartConfig, MaskedLMConfig):
    """fairseq's options, ``--pkm-init-from``, and those of which part is trained."""


@register_task("pkm_masked_lm", dataclass=PKMMaskedLMConfig)
class PKMMaskedLMTask(CheckedOptionsTask, TrainPartTask, InitFromTask, MonitoredTask, MaskedLMTask):
    """fairseq's masked_lm task, with the figures of memory usage."""

    def check_options(self):
        super().check_options()
        cfg = self.cfg
        name = cfg._get_parent().criterion._name
        criterion = CRITERION_REGISTRY[name]
        is_of_fairseq = criterion.__module__.startswith("fairseq.")
        # Such as cross_entropy, the default, which takes the mean over all tokens.
        if is_of_fairseq and not issubclass(criterion, MaskedLmLoss):
            raise RefusalError(f"--criterion {name} is not of masked tokens: give pkm_masked_lm")
        if cfg.mask_whole_words:
            bpe_options(self)
        if not 0 < cfg.mask_prob < 1:
            raise RefusalError(f"--mask-prob {cfg.mask_prob} is not between 0 and 1")
        kept, random = cfg.leave_unmasked_prob, cfg.random_token_prob
        if min(kept, random) < 0 or kept + random > 1:
            raise RefusalError(
                f"--leave-unmasked-prob {kept} and --random-token-prob {random} are not shares of "
                "the masked tokens: lower them to 1 together, or raise them to 0"
            )
        if cfg.mask_multiple_length < 1 or cfg.mask_stdev < 0:
            raise RefusalError(
                f"--mask-multiple-length {cfg.mask_multiple_length} has to be 1 or more, and "
                f"--mask-stdev {cfg.mask_stdev} 0 or more"
            )
