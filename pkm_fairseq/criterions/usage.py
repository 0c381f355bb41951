"""What the criterions that log memory usage share."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II


@dataclass
class UsageConfig(FairseqDataclass):
    """The options that every criterion of the plugin adds to fairseq's own."""

    pkm_usage_per_head: bool = field(
        default=False, metadata={"help": "log memory usage of each head as well"}
    )
    pkm_drift_tokens: int = field(
        default=4096,
        metadata={
            "help": "tokens of each validation set, its first, on which to measure how many best "
            "slots change from one validation to the next; 0 for none"
        },
    )
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")


def check_usage(cfg, task, name):
    """Refuses a task that does not count, and options that cannot be.

    Args:
        cfg: a criterion's options.
        task: the task it is built for.
        name: of the criterion, and of the task that it needs.

    Raises:
        ValueError: naming what to change.
    """
    if not hasattr(task, "monitor"):
        raise ValueError(
            f"--criterion {name} needs --task {name}, which counts what the memory reads"
        )
    if cfg.pkm_drift_tokens < 0:
        raise ValueError(
            f"--pkm-drift-tokens {cfg.pkm_drift_tokens} is below 0: give a number of tokens, or 0"
        )
