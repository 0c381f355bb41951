"""Faults of fairseq that no subclass and no hook can mend, mended for the whole process.

fairseq's own tasks and models profit as well. Each function mends one fault, says in which versions
it is and what ends it, and changes nothing where it is not.
"""

import functools
from types import SimpleNamespace
from unittest.mock import patch

import numpy
from fairseq import checkpoint_utils
from fairseq.data import language_pair_dataset, token_block_dataset
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.trainer import Trainer


def install():
    """Mends all of them."""
    keep_numpy_compat()
    give_masked_lm_its_bpe()
    start_averages_from_any_checkpoint()


def keep_numpy_compat():
    """Lets fairseq's data sets find ``np.compat.long``: --sample-break-mode eos fails without it.

    In fairseq 0.12.2 and fairseq-fixed 0.12.3.1, with numpy 2.4 and later, which has no
    ``np.compat``; until fairseq asks for ``int``.
    """
    if hasattr(numpy, "compat"):
        return
    for module in (token_block_dataset, language_pair_dataset):
        module.np = _NumpyWithCompat()


class _NumpyWithCompat:
    compat = SimpleNamespace(long=int)

    def __getattr__(self, name):
        return getattr(numpy, name)


def give_masked_lm_its_bpe():
    """Gives masked_lm the options of --bpe, for which --mask-whole-words asks it as ``args``.

    In fairseq 0.12.2 and fairseq-fixed 0.12.3.1, whose tasks have no ``args`` since they have a
    ``cfg``; until fairseq reads the BPE from elsewhere.
    """
    if not hasattr(MaskedLMTask, "args"):
        MaskedLMTask.args = property(bpe_options)


def bpe_options(task):
    """Returns the options of the BPE that a task was started with.

    Raises:
        ValueError: if there is none, without which fairseq would mask no whole words.
    """
    everything = task.cfg._get_parent()
    bpe = everything and everything.get("bpe")
    if not bpe:
        raise ValueError(
            "--mask-whole-words needs to know where words begin: add --bpe with its files, as "
            "--bpe sentencepiece --sentencepiece-model, or leave it out"
        )
    return bpe


def start_averages_from_any_checkpoint():
    """Lets --store-ema start from a checkpoint without an average, with the model's weights.

    So fairseq means it, but it has deleted the weights by then. In fairseq 0.12.2 and fairseq-fixed
    0.12.3.1; until fairseq keeps them.
    """
    load_checkpoint = Trainer.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_with_average(self, *args, **options):
        if not self.cfg.ema.store_ema:
            return load_checkpoint(self, *args, **options)
        read = checkpoint_utils.load_checkpoint_to_cpu

        def read_with_average(*args, **options):
            state = read(*args, **options)
            state["extra_state"].setdefault("ema", state["model"])
            return state

        with patch.object(checkpoint_utils, "load_checkpoint_to_cpu", read_with_average):
            return load_checkpoint(self, *args, **options)

    Trainer.load_checkpoint = load_with_average
