"""What the loss of a validation set owes to the memories of a model."""

import math

import numpy as np
import torch

from pkm_fairseq.distributed import add_up_workers
from pkm_fairseq.usage.observe import memories_of, observe_outputs, reading_zeros

AS_IT_IS, WITHOUT_ALL = "as it is", ""


class Worth:
    """Compares the loss of some batches with that of the same batches where memories read zeros.

    Each of these batches is run once more without all memories and, if there are several, without
    each of them. All workers do so at the same time, though each counts its own batches alone:
    those who split a table wait for each other. All must ask for figures together; each gets those
    of all.
    """

    def __init__(self):
        self.repeating = False  # True while a batch is run again, and nothing else is to count it
        self.just_began = False  # whether the batch before was the first of a set to be compared
        self.begin_set()

    def begin_set(self, chosen=frozenset(), worker=0, workers=1):
        """Begins a validation set.

        Args:
            chosen: the numbers of the batches to compare.
            worker: number of this worker, which runs this batch of every ``workers``.
            workers: how many workers there are.
        """
        self._chosen = chosen
        self._worker, self._workers = worker, workers
        self._turn = 0
        self._sums = {}  # what reads zeros -> loss, sample size, predictions (that change); (3,)

    def measure(self, model, run, again):
        """Runs the next validation batch of this worker and, if it is a chosen one, compares.

        Args:
            model: any model; one without memories has nothing to compare.
            run: runs the batch, and returns its loss, the sample size and whatever else.
            again: does the same once more.

        Returns:
            What ``run`` returns.
        """
        first = self._turn * self._workers
        memories = memories_of(model)
        had_begun = bool(self._sums)
        if not memories or self._chosen.isdisjoint(range(first, first + self._workers)):
            result = run()
        else:
            counted = first + self._worker in self._chosen
            result = self._compare(model, memories, run, again, counted)
        self.just_began = bool(self._sums) and not had_begun
        self._turn += 1
        return result

    def _compare(self, model, memories, run, again, counted):
        with observe_outputs(model) as outputs:
            result = run()
        predicted = _predictions(outputs[0])
        sums = {AS_IT_IS: _numbers(result, torch.ones_like(predicted))}
        emptied = {WITHOUT_ALL: [*memories.values()]}
        if len(memories) > 1:
            emptied.update({f"l{layer}_": [memory] for layer, memory in memories.items()})
        self.repeating = True
        try:
            for scope, of_scope in emptied.items():
                with reading_zeros(of_scope), observe_outputs(model) as outputs:
                    without = again()
                sums[scope] = _numbers(without, _predictions(outputs[0]) != predicted)
        finally:
            self.repeating = False
        if len(memories) == 1:
            sums[f"l{next(iter(memories))}_"] = sums[WITHOUT_ALL]
        # Now that nothing can fail any more: fairseq tries again what runs out of memory.
        for scope, of_scope in sums.items():
            before = self._sums.get(scope, torch.zeros_like(of_scope))
            self._sums[scope] = before + of_scope if counted else before
        return result

    def figures(self):
        """Returns the figures of the set by name, losses in bits, as fairseq logs them.

        ``pkm_worth`` is what the loss gains where all memories read zeros, ``pkm_l4_worth`` where
        one does; ``pkm_changed`` is the share of predictions that are others then.
        """
        if not self._sums:
            return {}
        sums = add_up_workers({"": torch.stack(list(self._sums.values()))})[""].tolist()
        loss, size, predictions = sums[0]
        if not size:
            return {}
        bits = size * math.log(2)
        figures = {"pkm_loss_with": loss / bits, "pkm_loss_without": sums[1][0] / bits}
        for scope, (of_scope, _, changed) in zip(list(self._sums)[1:], sums[1:]):
            figures[f"pkm_{scope}worth"] = (of_scope - loss) / bits
            if predictions:
                figures[f"pkm_{scope}changed"] = changed / predictions
        return figures


def _numbers(result, predictions):
    """Returns loss, sample size and how many predictions are True; (3,), float64, on the device."""
    loss, size, *_ = result
    numbers = [torch.as_tensor(number, device=loss.device) for number in (loss, size)]
    return torch.stack([number.double() for number in (*numbers, predictions.sum())])


def _predictions(output):
    """Returns the class, or the word, that each row of a model's output says; none of numbers."""
    logits = output[0]
    return logits.argmax(-1) if logits.shape[-1] > 1 else logits[..., :0].long()


def spread_batches(batches, tokens, within=None):
    """Chooses batches that hold so many tokens together, spread over a set.

    A set begins with its shortest sentences, which say little of the others.

    Args:
        batches: fairseq's EpochBatchIterator over the set.
        tokens: how many tokens.
        within: how many batches, the first, to choose from; None for all.

    Returns:
        Their numbers, the same at each call, as a set.
    """
    numbers = set()
    count = len(batches.frozen_batches[:within])
    for number in np.random.RandomState(0).permutation(count):
        if tokens <= 0:
            break
        numbers.add(int(number))
        tokens -= sum(int(batches.dataset.num_tokens(i)) for i in batches.frozen_batches[number])
    return numbers
