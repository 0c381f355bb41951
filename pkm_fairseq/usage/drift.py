"""How many best slots of the same tokens change from one validation of a set to its next.

T tokens, H heads, B sentences, L length of the longest.
"""

from collections import defaultdict
from contextlib import ExitStack

import torch

from pkm_fairseq.usage.metrics import count_changes
from pkm_fairseq.usage.observe import memories_of, observe_reads

BY_WEIGHTS, AS_VALIDATED = "drift", "drift_running"


class Drift:
    """Compares the best slots of some examples with those of their set's last validation.

    The running statistics of query batch norm wander from update to update, and best slots with
    them, even while all weights stand still. So there are two kinds. ``drift_running`` is of what
    validations read. For ``drift`` the examples are read once more, with queries normalised by the
    statistics of their own batch: it is 0 where weights stand still. Where no statistics wander,
    both are the same, and ``drift`` is of what validations read.
    """

    def __init__(self):
        self._before = {}  # set -> _sizes and _best when it was last validated
        self.begin_set(None)

    def begin_set(self, name, examples=frozenset(), steps=0):
        """Begins a validation set.

        Args:
            name: which set it is.
            examples: those to compare.
            steps: in how many batches, the first, some worker has examples to compare. All workers
                read these once more: those who split a table wait for each other.
        """
        self.name = name
        self._examples = examples
        self._steps = steps
        self._sizes = {}  # (kind, layer) -> heads and slots
        self._best = defaultdict(dict)  # the same -> example -> best slots of its tokens, (T, H)

    def keep(self, model, sample, pad, reads, counted):
        """Keeps the best slots of a batch's examples that are to be compared.

        Args:
            model: the model, in evaluation.
            sample: the batch, as for ``UsageMonitor.watch_validation``.
            pad: index of the padding symbol.
            reads: what the model has read of it, as ``observe_reads`` keeps it.
            counted: whether its examples count.
        """
        memories = memories_of(model)
        wandering = [
            memory.query_norm
            for memory in memories.values()
            if getattr(memory.query_norm, "wanders", False)
        ]
        kinds = (AS_VALIDATED, BY_WEIGHTS) if wandering else (BY_WEIGHTS,)
        self._sizes = {
            (kind, layer): (memory.heads, len(memory.values.weight))
            for kind in kinds
            for layer, memory in memories.items()
        }
        kept = {
            row: example
            for row, example in enumerate(sample["id"].tolist())
            if counted and example in self._examples
        }
        of_kinds = [reads]
        if wandering and (kept or self._steps > 0):
            with ExitStack() as around:
                for norm in wandering:
                    around.enter_context(norm.by_own_batch())
                of_kinds.append(around.enter_context(observe_reads(memories)))
                around.enter_context(torch.no_grad())
                model(**sample["net_input"], features_only=True)
        self._steps -= 1
        if kept:
            # (L, B), as memories get tokens
            real = sample["net_input"]["src_tokens"].ne(pad).t().cpu()
            for kind, of_kind in zip(kinds, of_kinds):
                self._keep(kind, kept, real, of_kind)

    def _keep(self, kind, kept, real, reads):
        """Keeps the best slots of a batch's examples, by row; its tokens are ``real``, (L, B)."""
        for layer, of_layer in reads.items():
            for slots, _ in of_layer:
                best = slots[..., 0].int().cpu()  # (T, H)
                grid = best.new_zeros(*real.shape, best.shape[1])  # (L, B, H)
                grid[real] = best
                for row, example in kept.items():
                    self._best[kind, layer][example] = grid[real[:, row], row]

    def changes(self, device):
        """Counts changes since the set's last validation, by kind and layer, (H, 2).

        Without examples or an earlier validation there are none, and none of memories that were not
        there or had other sizes.
        """
        sizes, before = self._before.get(self.name, ({}, {}))
        changes = {
            key: torch.zeros(size[0], 2, dtype=torch.int64, device=device)
            for key, size in self._sizes.items()
            if self._examples and sizes.get(key) == size
        }
        for key, of_key in changes.items():
            then, now = before[key], self._best[key]
            for example in then.keys() & now.keys():
                of_key += count_changes(then[example], now[example]).to(device)
        return changes

    def end_set(self):
        """Makes the set's best slots those that its next validation is compared with."""
        self._before[self.name] = self._sizes, self._best
