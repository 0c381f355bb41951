"""Pretraining that can start from a model without memory."""

from dataclasses import dataclass

from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from .init_from import InitFromConfig, InitFromTask
from .monitored import MonitoredTask


@dataclass
class PKMMaskedLMConfig(InitFromConfig, MaskedLMConfig):
    """fairseq's options and ``--pkm-init-from``."""


@register_task("pkm_masked_lm", dataclass=PKMMaskedLMConfig)
class PKMMaskedLMTask(InitFromTask, MonitoredTask, MaskedLMTask):
    """fairseq's masked_lm task, with the figures of memory usage."""
