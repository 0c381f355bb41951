"""Several trainings of one process, as a sweep of Hydra (``-m``) makes them: each on its own."""

import sys
from pathlib import Path

from fairseq import checkpoint_utils
from fairseq.logging import progress_bar
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from pkm_fairseq.refusals import RefusalError


def begin_training(save_dir, saves):
    """Makes what a training is to start from nothing, and a job of a sweep have its own folder.

    Args:
        save_dir: folder of the checkpoints.
        saves: whether this worker writes there.

    Raises:
        RefusalError: if the folder is of another job, or of another sweep.
    """
    _forget_former_training()
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if not saves or hydra is None or OmegaConf.is_missing(hydra.job, "num"):
        return
    overrides = Path(save_dir, "overrides.yaml")
    ours = list(hydra.overrides.task)
    if overrides.exists() and list(OmegaConf.load(overrides)) != ours:
        raise RefusalError(
            f"{save_dir} is of another job, by its overrides.yaml: give this sweep another "
            "checkpoint.save_dir, with '${hydra:job.id}' at its end; or remove that file to go on"
        )
    OmegaConf.save(OmegaConf.create(ours), str(overrides))


def _forget_former_training():
    """Makes fairseq forget what it keeps for the whole process: best losses and TensorBoard's."""
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    train = sys.modules.get("fairseq_cli.train")
    if train is not None:
        vars(train.should_stop_early).clear()
    writers = progress_bar._tensorboard_writers or {}
    while writers:
        writers.popitem()[1].close()
