"""What the criterions that log memory usage share."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from pkm_fairseq.refusals import RefusalError

# A figure that compares with the validation before, or that needs updates since then.
NOT_AT_EVERY_VALIDATION = ("drift", "stale_top1", "stale_topk", "train_kl")


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
    train_subset: str = II("dataset.train_subset")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")


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
        raise RefusalError(
            f"--criterion {name} needs --task {name}, which counts what the memory reads"
        )
    if cfg.pkm_drift_tokens < 0:
        raise RefusalError(
            f"--pkm-drift-tokens {cfg.pkm_drift_tokens} is below 0: give a number of tokens, or 0"
        )
    metric = cfg.best_checkpoint_metric
    if metric.startswith("pkm_") and metric.endswith(NOT_AT_EVERY_VALIDATION):
        raise RefusalError(
            f"--best-checkpoint-metric {metric} is not there at every validation: choose "
            "a figure of the validation set alone, such as pkm_top1_usage"
        )
