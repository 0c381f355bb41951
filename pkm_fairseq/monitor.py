"""Watches what the memories of a model read, in training and in validation.

T tokens, H heads, K slots read per head, S slots, B sentences, L length of the longest.
"""

import threading
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
import torch.distributed as dist

from pkm_fairseq.usage import (
    add_reads,
    count_changes,
    drift,
    join_counts,
    kl_from_uniform,
    make_counts,
    usage,
    usage_figures,
)
from pkm_fairseq.workers import count_workers


@contextmanager
def observe_reads(memories):
    """Keeps what memories read inside the block; in evaluation, in this thread alone.

    Args:
        memories: a dict from layer to ``ProductKeyMemory``.

    Yields:
        A dict from layer to a list of reads, one for each forward pass: slots, best first, and
        weights, (T, H, K) each, tokens in the order in which the memory gets them.
    """
    reads = {layer: [] for layer in memories}
    thread = threading.get_ident()

    def keep(search, layer, read):
        # Activation checkpointing trains a layer with two passes, the first without gradients, the
        # second maybe in a thread of autograd's.
        if torch.is_grad_enabled() if search.training else threading.get_ident() == thread:
            reads[layer].append(read)

    with ExitStack() as hooks:
        for layer, memory in memories.items():
            hooks.enter_context(
                memory.search.register_forward_hook(
                    lambda search, inputs, read, layer=layer: keep(search, layer, read)
                )
            )
        yield reads


class UsageMonitor:
    """Counts what memories read inside its ``watch`` blocks, and turns the counts into figures.

    It counts over two spans: the window, the training updates since the last validation, and a
    validation set. Outside the blocks the model runs as if there were no monitor. Reads are counted
    on their device; in training nothing is waited for. All workers must ask for figures together;
    each gets those of all.

    Args:
        per_head: whether to give the figures of each head as well.
    """

    def __init__(self, per_head=False):
        self.per_head = per_head
        self._tables = {}  # layer -> what names its table of values
        self._sizes = {}  # layer -> heads and slots
        self._window = {}  # layer -> counts, (3, H, S), or (3, 1, S) for all heads together
        self._window_batches = 0  # that it counts
        self._window_figures = {}
        self._before = {}  # set -> _sizes and _best when it was last validated
        self.begin_set(None)

    @contextmanager
    def watch_training(self, model, counted=True):
        """Counts what ``model`` reads inside the block into the window.

        Args:
            model: any model; one without a method ``memories`` has nothing to count.
            counted: False where fairseq trains on a batch that only fills up an uneven shard.
        """
        memories = _memories_of(model)
        with observe_reads(memories) as reads:
            yield
        self._count(self._window, memories, reads, counted)
        self._window_batches += counted

    def end_window(self):
        """Computes the figures of the window, and begins the next."""
        counts = _add_up_workers(self._window)
        # A memory may have been there and read nothing: relu may give no slot a weight.
        batches = _add_up_workers(
            {
                layer: torch.tensor(self._window_batches, device=of_layer.device)
                for layer, of_layer in self._window.items()
            }
        )
        self._window.clear()
        self._window_batches = 0
        self._window_figures = {}
        if any(batches.values()):
            self._window_figures = self._of_each_scope(counts, _window_figures)

    def begin_set(self, name, drift_examples=frozenset(), others=()):
        """Begins a validation set.

        Args:
            name: which set it is.
            drift_examples: those to measure drift on.
            others: examples that another worker counts, and this one gets only as filling.
        """
        self.name = name
        self._drift_examples = drift_examples
        self._counts = {}  # as _window
        self._seen = set(others)  # examples
        self._best = {}  # (layer, example) -> best slots of its tokens, (tokens, H)
        self._totals = None

    @contextmanager
    def watch_validation(self, model, sample, pad):
        """Counts what ``model`` reads inside the block into the set that was begun.

        A batch that repeats examples of the set, as fairseq fills up uneven shards, is not counted.

        Args:
            model: as in ``watch_training``.
            sample: the batch, with its examples' indices, ``id``, and ``net_input.src_tokens``.
            pad: index of the padding symbol.
        """
        memories = _memories_of(model)
        with observe_reads(memories) as reads:
            yield
        examples = sample["id"].tolist()
        counted = self._seen.isdisjoint(examples)
        self._totals = None
        self._count(self._counts, memories, reads, counted)
        if counted:
            real = sample["net_input"]["src_tokens"].ne(pad).t()  # (L, B), as memories get tokens
            self._keep_best(examples, real.cpu(), reads)
            self._seen.update(examples)

    def _count(self, counts, memories, reads, counted):
        for layer, memory in memories.items():
            table = memory.values.weight
            self._tables[layer] = id(table)
            self._sizes[layer] = memory.heads, len(table)
            if layer not in counts:
                heads = memory.heads if self.per_head else 1
                counts[layer] = make_counts(heads, len(table), table.device)
            for slots, weights in reads[layer] if counted else ():
                add_reads(counts[layer], slots, weights)

    def _keep_best(self, examples, real, reads):
        """Keeps the best slots of the examples that drift is measured on."""
        kept = [i for i, example in enumerate(examples) if example in self._drift_examples]
        if not kept:
            return
        for layer, of_layer in reads.items():
            for slots, _ in of_layer:
                best = slots[..., 0].int().cpu()  # (T, H)
                grid = best.new_zeros(*real.shape, best.shape[1])  # (L, B, H)
                grid[real] = best
                for i in kept:
                    self._best[layer, examples[i]] = grid[real[:, i], i]

    def counts(self):
        """Returns the counts of the set, by layer, (3, H, S) or (3, 1, S), on the CPU."""
        return self._reduce()[0]

    def figures(self):
        """Returns all figures of the set and of the window before it, by name.

        All begin with ``pkm_``; then follow the layer for those of one memory, ``pkm_l4_``, and the
        head for those of one head, ``pkm_l4_h0_``.
        """
        counts, changes = self._reduce()
        figures = self._of_each_scope(counts, usage_figures)
        if changes:
            figures["pkm_drift"] = drift(torch.cat(list(changes.values())))
        for layer, of_layer in changes.items():
            figures[f"pkm_l{layer}_drift"] = drift(of_layer)
            for head in range(len(of_layer)) if self.per_head else ():
                figures[f"pkm_l{layer}_h{head}_drift"] = drift(of_layer[head : head + 1])
        return {**figures, **self._window_figures}

    def end_set(self):
        """Makes the set's best slots those that its next validation is compared with."""
        self._before[self.name] = {layer: self._sizes[layer] for layer in self._counts}, self._best

    def _reduce(self):
        """Adds up the counts and the changes of all workers, once for each state of the set."""
        if self._totals is None:
            self._totals = (_add_up_workers(self._counts), _add_up_workers(self._changes()))
        return self._totals

    def _changes(self):
        """Counts changes of best slots since the set's last validation, by layer, (H, 2).

        Without drift examples or an earlier validation there are none, and none of memories that
        were not there or had other sizes.
        """
        sizes, before = self._before.get(self.name, ({}, {}))
        changes = {
            layer: torch.zeros(self._sizes[layer][0], 2, dtype=torch.int64, device=counts.device)
            for layer, counts in self._counts.items()
            if self._drift_examples and sizes.get(layer) == self._sizes[layer]
        }
        for layer, example in self._best.keys() & before.keys():
            if layer in changes:
                now, then = self._best[layer, example], before[layer, example]
                changes[layer] += count_changes(then, now).to(changes[layer])
        return changes

    def _of_each_scope(self, counts, compute):
        """Computes figures of all memories together, of each, and of each head if asked for."""
        if not counts:
            return {}
        by_layer = {layer: of_layer.sum(1) for layer, of_layer in counts.items()}  # (3, S) each
        tables = [self._tables[layer] for layer in by_layer]
        scopes = {"": join_counts(list(by_layer.values()), tables)}
        for layer, of_layer in by_layer.items():
            scopes[f"l{layer}_"] = of_layer
            if self.per_head:
                for head, of_head in enumerate(counts[layer].unbind(1)):
                    scopes[f"l{layer}_h{head}_"] = of_head
        return {
            f"pkm_{scope}{name}": figure
            for scope, of_scope in scopes.items()
            for name, figure in compute(of_scope).items()
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


def _memories_of(model):
    return model.memories() if hasattr(model, "memories") else {}


def _add_up_workers(tensors):
    """Returns the sums over all workers of a dict of tensors, on the CPU."""
    if count_workers() > 1:
        tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        for tensor in tensors.values():
            dist.all_reduce(tensor)
    return {key: tensor.cpu() for key, tensor in tensors.items()}
