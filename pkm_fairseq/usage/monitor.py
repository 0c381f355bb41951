"""Watches what the memories of a model read, in training and in validation.

H heads, S slots.
"""

from contextlib import contextmanager
from itertools import chain

import torch

from pkm_fairseq.distributed import add_up_workers
from pkm_fairseq.usage.drift import Drift
from pkm_fairseq.usage.metrics import (
    add_reads,
    drift,
    join_counts,
    kl_from_uniform,
    make_counts,
    read_ratio,
    usage,
    usage_figures,
)
from pkm_fairseq.usage.moved import Moved
from pkm_fairseq.usage.observe import memories_of, observe_reads, observe_squares


class Span:
    """What memories read over some batches, counted on their device; nothing is waited for.

    Args:
        per_head: whether to count each head by itself.
    """

    def __init__(self, per_head):
        self._per_head = per_head
        self._tables = {}  # layer -> what names its table of values
        self._counts = {}  # layer -> counts, (3, H, S), or (3, 1, S) for all heads together
        self._squares = {}  # layer -> sums as of ``observe_squares``, (2,)
        self._batches = 0
        self._totals = None

    @contextmanager
    def observe(self, model, counted):
        """Adds what ``model`` reads inside the block, if it is to be counted.

        Yields:
            The reads, as ``observe_reads`` keeps them.
        """
        memories = memories_of(model)
        with observe_reads(memories) as reads, observe_squares(model) as squares:
            yield reads
        self._totals = None
        self._batches += counted
        for layer, memory in memories.items():
            table = memory.values.weight
            self._tables[layer] = id(table)
            if layer not in self._counts:
                heads = memory.heads if self._per_head else 1
                self._counts[layer] = make_counts(heads, len(table), table.device)
                self._squares[layer] = torch.zeros(2, dtype=torch.float64, device=table.device)
            if counted:
                for slots, weights in reads[layer]:
                    add_reads(self._counts[layer], slots, weights)
                self._squares[layer] += sum(squares[layer])

    @property
    def device(self):
        """Where the memories are, None of none."""
        return next((counts.device for counts in self._counts.values()), None)

    @property
    def counts(self):
        """The counts of all workers by layer, on the CPU."""
        return self._reduce()[0]

    @property
    def batches(self):
        """How many batches all workers have counted."""
        return self._reduce()[2].get("batches", 0)

    def _reduce(self):
        """Adds up what all workers have, once for each state of it."""
        if self._totals is None:
            batches = {"batches": torch.tensor(self._batches, device=self.device)}
            parts = self._counts, self._squares, batches if self._counts else {}
            self._totals = tuple(map(add_up_workers, parts))
        return self._totals

    def usage_figures(self, compute):
        """Computes figures of the counts by name: of all memories together and of each, and of each
        head if asked for.
        """
        counts, *_ = self._reduce()
        if not counts:
            return {}
        by_layer = {  # (3, S) each
            layer: of_layer.sum(1) if self._per_head else of_layer[:, 0]
            for layer, of_layer in counts.items()
        }
        figures = {"": {}}
        for layer, of_layer in by_layer.items():
            figures[f"l{layer}_"] = compute(of_layer)
            for head, of_head in enumerate(counts[layer].unbind(1) if self._per_head else ()):
                figures[f"l{layer}_h{head}_"] = compute(of_head)
        if len(by_layer) > 1:
            tables = [self._tables[layer] for layer in by_layer]
            figures[""] = compute(join_counts(list(by_layer.values()), tables))
        else:  # not again: large tables take long
            figures[""] = figures[f"l{layer}_"]
        return _named(figures)

    def ratio_figures(self, name):
        """Returns how large what is read is, by name: of all memories together and of each."""
        _, squares, _ = self._reduce()
        if not squares:
            return {}
        scopes = {"": sum(squares.values()), **{f"l{layer}_": squares[layer] for layer in squares}}
        return _named({scope: {name: read_ratio(sums)} for scope, sums in scopes.items()})


class UsageMonitor:
    """Counts what memories read inside its ``watch`` blocks, and turns the counts into figures.

    It counts over two spans: the window, the training updates since the last validation, and a
    validation set. Outside the blocks the model runs as if there were no monitor. In training
    nothing is waited for. All workers must ask for figures together; each gets those of all.

    Args:
        per_head: whether to give the figures of each head as well.
    """

    def __init__(self, per_head=False):
        self.per_head = per_head
        self._window = Span(per_head)
        self._window_figures = {}
        self._drift = Drift()
        self.moved = Moved()
        self.begin_set(None)

    @contextmanager
    def watch_training(self, model, counted=True):
        """Counts what ``model`` reads inside the block into the window.

        Args:
            model: any model; one without a method ``memories`` has nothing to count.
            counted: False where fairseq trains on a batch that only fills up an uneven shard.
        """
        self.moved.begin_run(memories_of(model))
        with self._window.observe(model, counted):
            yield

    def end_window(self):
        """Computes the figures of the window, and begins the next."""
        window, self._window = self._window, Span(self.per_head)
        self._window_figures = {}
        # A memory may have been there and read nothing: relu may give no slot a weight.
        if window.batches:
            self._window_figures = {
                **window.usage_figures(_window_figures),
                **window.ratio_figures("train_read_ratio"),
            }

    def begin_set(self, name, drift_examples=frozenset(), others=(), drift_steps=0):
        """Begins a validation set.

        Args:
            name: which set it is.
            drift_examples: those to measure drift on.
            others: examples that another worker counts, and this one gets only as filling.
            drift_steps: as ``Drift.begin_set`` takes it.
        """
        self.name = name
        self._set = Span(self.per_head)
        self._seen = set(others)  # examples
        self._drift.begin_set(name, drift_examples, drift_steps)
        self.moved.begin_set()

    @contextmanager
    def watch_validation(self, model, sample, pad):
        """Counts what ``model`` reads inside the block into the set that was begun.

        A batch that repeats examples of the set, as fairseq fills up uneven shards, is not counted.
        At the end of the block the model may run once more, to tell drift from batch statistics.

        Args:
            model: as in ``watch_training``.
            sample: the batch, with its examples' indices, ``id``, and ``net_input`` with
                ``src_tokens``.
            pad: index of the padding symbol.
        """
        examples = sample["id"].tolist()
        counted = self._seen.isdisjoint(examples)
        with self._set.observe(model, counted) as reads:
            yield
        if counted:
            # Before the model runs again: should it fail there, fairseq tries the batch once more.
            self._seen.update(examples)
        self._drift.keep(model, sample, pad, reads, counted)
        self.moved.compare(memories_of(model))

    def counts(self):
        """Returns the counts of the set, by layer, (3, H, S) or (3, 1, S), on the CPU."""
        return self._set.counts

    def figures(self):
        """Returns all figures of the set and of the window before it, by name.

        All begin with ``pkm_``; then follow the layer for those of one memory, ``pkm_l4_``, and the
        head for those of one head, ``pkm_l4_h0_``.
        """
        return {
            **self._set.ratio_figures("read_ratio"),
            **self.moved.figures(),
            **self._set.usage_figures(usage_figures),
            **self._drift_figures(),
            **self._window_figures,
        }

    def _drift_figures(self):
        changes = add_up_workers(self._drift.changes(self._set.device))  # (H, 2) each
        scopes = {}
        for (kind, layer), of_layer in changes.items():
            scopes.setdefault(("", kind), []).append(of_layer)
            scopes[f"l{layer}_", kind] = [of_layer]
            for head in range(len(of_layer)) if self.per_head else ():
                scopes[f"l{layer}_h{head}_", kind] = [of_layer[head : head + 1]]
        return {f"pkm_{scope}{kind}": drift(torch.cat(c)) for (scope, kind), c in scopes.items()}

    def end_set(self):
        """Makes the set's best slots those that its next validation is compared with.

        The counts, which are large, are let go of.
        """
        self._drift.end_set()
        self._set = Span(self.per_head)


def _named(figures):
    """Names figures, by scope and name, as they are logged."""
    return {
        f"pkm_{scope}{name}": figure
        for scope, of_scope in figures.items()
        for name, figure in of_scope.items()
    }


def _window_figures(counts):
    """The share of slots never the best, and never selected; and how uneven the weights were."""
    top1, selected, weight = counts
    return {
        "stale_top1": 1 - usage(top1),
        "stale_topk": 1 - usage(selected),
        "train_kl": kl_from_uniform(weight),
    }


def first_examples(batches, tokens):
    """Returns the examples that hold the first tokens of a set, whole ones, as a set.

    Args:
        batches: fairseq's EpochBatchIterator over the set.
        tokens: how many tokens.
    """
    examples = set()
    for example in chain.from_iterable(batches.frozen_batches):
        if tokens <= 0:
            break
        examples.add(int(example))
        tokens -= int(batches.dataset.num_tokens(example))  # of short numbers, which wrap around
    return examples
