"""Pretraining that can start from a model without memory."""

from dataclasses import dataclass

from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from .init_from import InitFromConfig, InitFromTask
from .monitored import MonitoredTask
from .train_part import TrainPartConfig, TrainPartTask


@dataclass
class PKMMaskedLMConfig(InitFromConfig, TrainPartConfig, MaskedLMConfig):
    """fairseq's options, ``--pkm-init-from``, and those of which part is trained."""


@register_task("pkm_masked_lm", dataclass=PKMMaskedLMConfig)
class PKMMaskedLMTask(TrainPartTask, InitFromTask, MonitoredTask, MaskedLMTask):
    """fairseq's masked_lm task, with the figures of memory usage."""
