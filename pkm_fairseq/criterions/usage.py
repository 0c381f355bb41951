"""What the criterions that log memory usage share."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from pkm_fairseq.config import flag
from pkm_fairseq.refusals import RefusalError

# A figure that compares with the validation before, or that needs updates since then.
NOT_AT_EVERY_VALIDATION = (
    "drift",
    "drift_running",
    "stale_top1",
    "stale_topk",
    "train_kl",
    "train_read_ratio",
)
OF_WORTH = ("worth", "changed", "loss_with", "loss_without")


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
    pkm_worth_tokens: int = field(
        default=16384,
        metadata={
            "help": "tokens of each validation set, in whole batches from all over it, on which to "
            "measure what the loss becomes without each memory and without all; 0 for none"
        },
    )
    max_valid_steps: Optional[int] = II("dataset.max_valid_steps")
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")
    train_subset: str = II("dataset.train_subset")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")


def check_usage(cfg, task, name):
    """Refuses a task that does not count, and options that cannot be.

    Args:
        cfg: a criterion's options.
        task: the task it is built for.
        name: of the criterion, and of the task that it needs.

    Raises:
        RefusalError: naming what to change.
    """
    if not hasattr(task, "monitor"):
        raise RefusalError(
            f"--criterion {name} needs --task {name}, which counts what the memory reads"
        )
    for option in ("pkm_drift_tokens", "pkm_worth_tokens"):
        tokens = getattr(cfg, option)
        if tokens < 0:
            raise RefusalError(f"{flag(option)} {tokens} is below 0: give a number of tokens, or 0")
    metric = cfg.best_checkpoint_metric
    if metric.startswith("pkm_") and metric.endswith(OF_WORTH) and not cfg.pkm_worth_tokens:
        raise RefusalError(
            f"--best-checkpoint-metric {metric} is not there with --pkm-worth-tokens 0: change one"
        )
    if metric.startswith("pkm_") and metric.endswith(NOT_AT_EVERY_VALIDATION):
        raise RefusalError(
            f"--best-checkpoint-metric {metric} is not there at every validation: choose "
            "a figure of only the validation set, such as pkm_top1_usage"
        )
