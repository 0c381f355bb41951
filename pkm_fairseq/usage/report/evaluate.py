"""Runs models over a data set and watches their memories.

T tokens, H heads, K slots read per head, S slots, B sentences, L length of the longest.
"""

from functools import partial
from heapq import nlargest
from itertools import islice
from typing import NamedTuple

import torch
from fairseq import utils
from tqdm import tqdm

from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.usage.monitor import first_examples
from pkm_fairseq.usage.observe import observe_reads
from pkm_fairseq.usage.worth import Worth, spread_batches


class Context(NamedTuple):
    """A token that selects a slot: its weight and head, its sentence and its place there."""

    weight: float
    head: int
    sentence: tuple
    place: int


class DataSet:
    """The batches of a data set, the same at each iteration, with a bar that shows progress.

    Args:
        task: the fairseq task that reads it.
        subset: its name.
        batch_size: sentences in a batch.
        model: whose longest sentence bounds those of the set.
        device: where the batches are wanted.

    Raises:
        RefusalError: if there is no such set.
    """

    def __init__(self, task, subset, batch_size, model, device):
        try:
            task.load_dataset(subset, combine=False, epoch=1)
        except (FileNotFoundError, KeyError, AssertionError) as error:  # each task has its own
            raise RefusalError(f"--subset {subset} cannot be read: {error}") from error
        self.subset = subset
        self.pad = task.source_dictionary.pad()
        self.max_positions = model.max_positions()
        self.iterator = task.get_batch_iterator(
            task.dataset(subset),
            max_sentences=batch_size,
            max_positions=utils.resolve_max_positions(task.max_positions(), self.max_positions),
            ignore_invalid_inputs=True,
        )
        self._device = device
        if not self.iterator.frozen_batches:
            raise RefusalError(f"--subset {subset} has no sentence that is short enough")

    def batches(self, title, most=None):
        """Yields the batches, or ``most`` of them at random, the same each time.

        The words masked are those of fairseq's validations.
        """
        shuffle = most is not None
        epoch = self.iterator.next_epoch_itr(shuffle=shuffle, set_dataset_epoch=False)
        total = min(most, len(epoch)) if shuffle else len(epoch)
        for batch in tqdm(islice(epoch, total), desc=title, total=total):
            yield utils.move_to_cuda(batch) if self._device == "cuda" else batch


@torch.no_grad()
def measure(model, data, title, monitor, drift_tokens, criterion, worth_tokens):
    """Returns the figures of a data set and its counts.

    Args:
        model: the model.
        data: a ``DataSet``.
        title: what to say while it takes.
        monitor: makes the figures of usage and the counts; it compares with the model before.
        drift_tokens: on how many tokens to measure drift.
        criterion: the model's loss, None if it has none on these data, and so no figures of worth.
        worth_tokens: on how many tokens to measure worth.
    """
    monitor.begin_set(data.subset, first_examples(data.iterator, drift_tokens))
    worth = Worth()
    worth.begin_set(spread_batches(data.iterator, worth_tokens) if criterion else frozenset())
    for batch in data.batches(title):
        if criterion:
            again = partial(criterion, model, batch)
        else:
            again = partial(model, **batch["net_input"], features_only=True)

        def run(batch=batch, again=again):
            with monitor.watch_validation(model, batch, data.pad):
                return again()

        worth.measure(model, run, again)
    figures, counts = {**worth.figures(), **monitor.figures()}, monitor.counts()
    monitor.end_set()
    monitor.moved.begin_run(model.memories(), again=True)
    return figures, counts


@torch.no_grad()
def find_contexts(model, data, title, slots, contexts):
    """Finds the tokens that select slots with most weight.

    Args:
        model: the model.
        data: a ``DataSet``.
        title: what to say while it takes.
        slots: a dict from layer to a list of slots.
        contexts: how many tokens to find for each slot.

    Returns:
        A dict from (layer, slot) to a list of ``Context``, that of most weight first.
    """
    found = {(layer, slot): [] for layer, of_layer in slots.items() for slot in of_layer}
    for batch in data.batches(title) if found else ():
        with observe_reads(model.memories()) as reads:
            model(**batch["net_input"], features_only=True)
        sentences = batch["net_input"]["src_tokens"]
        places = sentences.ne(data.pad).t().nonzero()  # (T, 2), as memories get tokens
        for layer, slot in found:
            ((selected, weights),) = reads[layer]
            # A head selects a slot once at most; the head with most weight stands for the token.
            weight, head = weights.where(selected == slot, 0).sum(-1).max(-1)  # (T,) each
            weight, tokens = weight.topk(min(contexts, len(weight)))
            for w, token in zip(weight.tolist(), tokens.tolist()):
                if w > 0:
                    place, row = places[token].tolist()
                    sentence = tuple(sentences[row][sentences[row].ne(data.pad)].tolist())
                    found[layer, slot].append(Context(w, head[token].item(), sentence, place))
            found[layer, slot] = nlargest(contexts, found[layer, slot])
    return found
