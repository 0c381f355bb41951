"""Checkpoint files that are whole or not there: what fairseq lacks to survive a kill at any moment.

fairseq writes a checkpoint whole or not at all, but then copies it byte by byte over
``checkpoint_best.pt`` and ``checkpoint_last.pt``. A kill meanwhile leaves half a file, which the
next start cannot read. Where a write fails and a second try succeeds, it is appended to what the
first one wrote, and nothing can read that. fairseq has no hook for either, so ``install`` puts ours
in their places.
"""

import functools
import logging
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from pkm_fairseq.checkpoints.safe_reading import check_file, is_cut_off
from pkm_fairseq.checkpoints.sweeps import begin_training
from pkm_fairseq.refusals import RefusalError

logger = logging.getLogger(__name__)


def install():
    """Has fairseq write, copy and resume from checkpoints as the functions below say."""
    for owner, wrapper in (
        (PathManager, copy),
        (checkpoint_utils, torch_persistent_save),
        (checkpoint_utils, load_checkpoint),
        (checkpoint_utils, save_checkpoint),
    ):
        stock = getattr(owner, wrapper.__name__)
        wrapped = functools.wraps(stock)(functools.partial(wrapper, stock))
        setattr(owner, wrapper.__name__, wrapped)


@contextmanager
def written_aside(path):
    """Yields the name under which to write a file that is to be there whole or not at all.

    Raises:
        OSError: if it cannot be written, naming it.
    """
    partial = Path(f"{path}.tmp")
    try:
        yield str(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        if partial.exists():
            partial.unlink()
        # torch covers a full disk with an error of its own, of unexpected positions.
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise OSError(f"{path} cannot be written, and is as it was: {reason}") from error


def copy(stock, source, dest, overwrite=False):
    """Copies a file, whole or not at all."""
    if not PathManager.supports_rename(dest):
        return stock(source, dest, overwrite)
    with written_aside(dest) as partial:
        return stock(source, partial, overwrite=True)


def torch_persistent_save(stock, checkpoint, path, async_write=False):
    """Writes a checkpoint, whole or not at all, at the first try."""
    if async_write or not PathManager.supports_rename(path):
        stock(checkpoint, path, async_write)
        return
    with written_aside(path) as partial, open(partial, "wb") as opened:
        torch.save(checkpoint, opened)


def save_checkpoint(stock, cfg, trainer, *args):
    """Writes checkpoints, in which tables that workers split are whole."""
    with ExitStack() as whole:
        model = trainer.get_model()
        if hasattr(model, "whole_tables") and not cfg.no_save:
            whole.enter_context(model.whole_tables(trainer.optimizer))
        return stock(cfg, trainer, *args)


def load_checkpoint(stock, cfg, trainer, **options):
    """Starts or resumes a training; mends a cut off ``checkpoint_last.pt`` before.

    Raises:
        RefusalError: if it is not there, does not fit the model, or is of another part of it,
            naming the options.
    """
    begin_training(cfg.save_dir, trainer.data_parallel_rank == 0)
    suffix = trainer.checkpoint_suffix or ""
    last = f"checkpoint_last{suffix}.pt"
    if cfg.restore_file != "checkpoint_last.pt":
        check_file("--restore-file", cfg.restore_file.replace(".pt", f"{suffix}.pt"))
    elif not PathManager.exists(os.path.join(cfg.save_dir, last)):
        # As fairseq looks for them; of its versions not all have the first.
        starts = ("continue_once", "finetune_from_model")
        named = [start for start in starts if getattr(cfg, start, None)]
        for start in named[:1]:
            check_file(f"--{start.replace('_', '-')}", cfg[start])
    elif not suffix and trainer.data_parallel_rank == 0:  # shards can only be mended together
        mend(Path(cfg.save_dir, last))
    try:
        return stock(cfg, trainer, **options)
    except Exception as error:
        reason = error.__context__
        if "Cannot load model parameters" in str(error) and isinstance(reason, RefusalError):
            raise RefusalError(f"{str(error).split(';')[0]}: {reason}") from None
        if "parameter group" not in str(error):  # as torch's optimizers say it
            raise
        raise RefusalError(
            "the checkpoint's optimizer is of another part of the model: give --pkm-freeze-rest "
            "and --pkm-train-slots as it was trained with, or forget its state with "
            "--reset-optimizer"
        ) from error


def mend(last):
    """Replaces a checkpoint that is cut off by the newest beside it that is whole.

    Raises:
        RefusalError: if none is, naming the file to remove.
    """
    if not last.is_file() or not is_cut_off(last):
        return
    others = sorted(last.parent.glob("checkpoint*.pt"), key=lambda file: file.stat().st_mtime)
    whole = [file for file in others if not is_cut_off(file)]
    if not whole:
        raise RefusalError(
            f"{last} is cut off, and no other checkpoint there is whole: remove it to begin anew"
        )
    logger.warning("%s is cut off: going on from %s, the newest that is whole", last, whole[-1])
    PathManager.copy(str(whole[-1]), str(last), overwrite=True)
