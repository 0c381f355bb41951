"""Faults of fairseq that no subclass and no hook can mend, mended for the whole process.

fairseq's own tasks and models profit as well. Each function mends one fault of fairseq 0.12.2 and
fairseq-fixed 0.12.3.1, says when it shows and what ends it, and changes nothing elsewhere.
"""

import functools
from types import SimpleNamespace
from unittest.mock import patch

import numpy
import torch
from fairseq import checkpoint_utils
from fairseq.data import language_pair_dataset, token_block_dataset
from fairseq.data.iterators import EpochBatchIterator, GroupedIterator
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.trainer import Trainer

from pkm_fairseq.refusals import RefusalError


def install():
    """Mends all of them."""
    keep_numpy_compat()
    give_masked_lm_its_bpe()
    _wrap(Trainer, "load_checkpoint", start_averages_from_any_checkpoint)
    _wrap(Trainer, "train_step", survive_overflows_without_gpu)
    _wrap(checkpoint_utils, "load_ema_from_checkpoint", name_a_file_without_average)
    _wrap(EpochBatchIterator, "_get_iterator_for_epoch", resume_before_the_last_batch)
    _wrap(GroupedIterator, "__init__", refuse_an_epoch_without_updates)


def _wrap(owner, name, wrapper):
    stock = getattr(owner, name)

    @functools.wraps(stock)
    def wrapped(*args, **options):
        return wrapper(stock, *args, **options)

    setattr(owner, name, wrapped)


def keep_numpy_compat():
    """Lets fairseq's data sets find ``np.compat.long``, without which some fail.

    Those of --sample-break-mode eos, with numpy 2.4 and later, which has no ``np.compat``; until
    fairseq asks for ``int``.
    """
    if not hasattr(numpy, "compat"):
        for module in (token_block_dataset, language_pair_dataset):
            module.np = _NumpyWithCompat()


class _NumpyWithCompat:
    compat = SimpleNamespace(long=int)

    def __getattr__(self, name):
        return getattr(numpy, name)


def give_masked_lm_its_bpe():
    """Gives masked_lm ``args``, where it looks for the options of --bpe.

    With --mask-whole-words, since tasks have their options as ``cfg``; until fairseq looks there.
    """
    if not hasattr(MaskedLMTask, "args"):
        MaskedLMTask.args = property(bpe_options)


def bpe_options(task):
    """Returns the options of the BPE that a task was started with.

    Raises:
        RefusalError: if there is none, without which fairseq would not mask whole words.
    """
    everything = task.cfg._get_parent()
    bpe = everything and everything.get("bpe")
    if not bpe:
        raise RefusalError(
            "--mask-whole-words needs to know where words begin: add --bpe with its files, as "
            "--bpe sentencepiece --sentencepiece-model, or leave it out"
        )
    return bpe


def start_averages_from_any_checkpoint(stock, trainer, *args, **options):
    """Same as ``Trainer.load_checkpoint``; an average that is not there starts as the model.

    With --store-ema and a checkpoint that was trained without: so fairseq means it, but has deleted
    the weights by then; until it keeps them.
    """
    if not trainer.cfg.ema.store_ema:
        return stock(trainer, *args, **options)
    read = checkpoint_utils.load_checkpoint_to_cpu

    def read_with_average(*args, **options):
        state = read(*args, **options)
        state["extra_state"].setdefault("ema", state["model"])
        return state

    with patch.object(checkpoint_utils, "load_checkpoint_to_cpu", read_with_average):
        return stock(trainer, *args, **options)


def survive_overflows_without_gpu(stock, trainer, *args, **options):
    """Same as ``Trainer.train_step``, on the CPU when gradients overflow, too.

    With --fp16, where fairseq puts a norm on a GPU that is not there; until it asks the trainer for
    its device.
    """
    if trainer.cuda or not trainer.cfg.common.fp16:
        return stock(trainer, *args, **options)
    with patch.object(torch.Tensor, "cuda", lambda tensor: tensor):
        return stock(trainer, *args, **options)


def name_a_file_without_average(stock, path):
    """Same as ``load_ema_from_checkpoint``.

    With --ema-seed-model and a checkpoint that was trained without --store-ema, fairseq fails
    before its own check; until that comes first.

    Raises:
        RefusalError: if the checkpoint has no average, naming it.
    """
    try:
        return stock(path)
    except KeyError as error:
        raise RefusalError(
            f"--ema-seed-model {path} was trained without --store-ema and has no average: "
            "remove it, and the average starts as the model"
        ) from error


def resume_before_the_last_batch(stock, iterator, *args, **options):
    """Same as ``EpochBatchIterator._get_iterator_for_epoch``, without the last batch alone.

    With --skip-remainder-batch, where a training of fairseq 0.12.2 that resumes within an epoch
    leaves out as many batches more as it has read; later versions do not.
    """
    with patch.object(iterator, "skip_remainder_batch", False):
        batches = stock(iterator, *args, **options)
    if iterator.skip_remainder_batch and batches is not None:
        batches.take(len(batches) - 1)
    return batches


def refuse_an_epoch_without_updates(stock, groups, batches, size, *args, **options):
    """Same as ``GroupedIterator.__init__``.

    With --skip-remainder-batch, or a higher --update-freq than before, fairseq fails at the end of
    an epoch that had no update; until it does not.

    Raises:
        RefusalError: if there is no group of batches, naming what to change.
    """
    stock(groups, batches, size, *args, **options)
    if not groups.has_next():
        raise RefusalError(
            f"--update-freq {size} is more batches than an epoch, or what is left of it, has: "
            "lower it, make batches smaller, leave out --skip-remainder-batch, or add "
            "--reset-dataloader, with which an epoch that was broken off starts anew"
        )
