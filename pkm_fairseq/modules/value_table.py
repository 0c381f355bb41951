"""The values of a memory."""

from functools import partial

import torch
from torch import nn

from pkm_fairseq.distributed import ROWS_AT_A_TIME, Shard, count_workers
from pkm_fairseq.ops import (
    KeptDenseGradient,
    KeptMemory,
    KeptSparseGradient,
    dense_gradient,
    gradient_of_rows,
    quantise_rows,
    quantized_bag,
    weighted_bag,
)
from pkm_fairseq.ops.cpu import with_huge_pages
from pkm_fairseq.refusals import RefusalError

from .sharded_bag import sharded_bag

GRADIENTS = {"dense": KeptDenseGradient, "sparse": KeptSparseGradient}


class ValueTable(nn.Module):
    """One row for each slot; several memories may share a table.

    Args:
        slots: number of rows.
        value_dim: width of a row.
        init: normal (variance 1 / value_dim) or zero.
        grad: dense or sparse, which an optimizer must be able to take, as ``LazyAdam`` is.
        shards: over how many workers the columns are split; see ``Shard``.

    Raises:
        RefusalError: if ``init`` or ``grad`` is neither, or the columns or workers cannot be split.
    """

    def __init__(self, slots, value_dim, init, grad="dense", shards=1):
        super().__init__()
        if init not in ("normal", "zero"):
            raise RefusalError(f"value_init={init} is not normal or zero: change --pkm-value-init")
        if grad not in GRADIENTS:
            raise RefusalError(f"grad={grad} is not dense or sparse: change --pkm-grad")
        if value_dim % shards:
            raise RefusalError(
                f"--pkm-shards {shards} does not divide the width of a value, {value_dim}: change "
                "it or --pkm-value-dim"
            )
        self.shard = Shard(shards) if shards > 1 else None  # None: it is whole
        self.value_dim = value_dim
        self.init = init
        self.grad = grad
        self._make_gradient = GRADIENTS[grad]()
        # A bare Parameter: fairseq's init_bert_params redraws every nn.Embedding.
        self.weight = nn.Parameter(with_huge_pages(torch.empty(slots, value_dim // shards)))
        self.register_parameter("rows", None)
        self.reset_parameters()

    def reset_parameters(self):
        """Draws all rows anew, for any number of shards the same."""
        std = self.value_dim**-0.5
        if self.init == "zero":
            nn.init.zeros_(self.weight)
        elif self.shard is None:
            nn.init.normal_(self.weight, std=std)
        else:
            # Some rows at a time: no worker need have room for all columns.
            for rows in self.weight.data.split(ROWS_AT_A_TIME):
                drawn = rows.new_empty(len(rows), self.value_dim).normal_(std=std)
                rows.copy_(self.shard.columns(drawn))

    def forward(self, slots, weights):
        """Reads the rows ``slots``, (T, n), times ``weights``, (T, n): (T, value-dim)."""
        if self.shard is None:
            return self._bag(slots, weights)
        return sharded_bag(self._bag, slots, weights, self.shard)

    def _bag(self, slots, weights):
        """Reads what this worker has of the rows."""
        if self.rows is None:
            # Workers that add up dense gradients write to rows that a kept table does not know of.
            add_up = self.grad == "dense" and count_workers() > 1
            make_gradient = dense_gradient if add_up else self._make_gradient
            return weighted_bag(self.weight, slots, weights, make_gradient)
        self._merge()
        make_gradient = partial(
            gradient_of_rows,
            places=self._places,
            rows=len(self.rows),
            sparse=self.grad == "sparse",
            room=self._room,
        )
        return weighted_bag(self.weight, slots, weights, make_gradient, self.rows)

    def train_rows(self, slots):
        """Trains only some rows; all others stay as they are to the bit.

        The parameter ``rows`` is trained in the place of ``weight``, so an optimizer knows of no
        others: neither its moments, nor clipping, nor weight decay. ``weight`` takes them over at
        each forward pass and whenever it is saved, only under its own name, as a whole.

        Args:
            slots: which rows, (R,), int64, ascending.
        """
        self._merge()
        self._room = KeptMemory()
        slots = slots.to(self.weight.device)
        places = slots.new_full((len(self.weight),), -1)
        places[slots] = torch.arange(len(slots), device=slots.device)
        self.register_buffer("_slots", slots, persistent=False)
        self.register_buffer("_places", places, persistent=False)
        self.weight.requires_grad_(False)
        self.rows = nn.Parameter(self.weight[slots])

    @property
    def trained(self):
        """The parameter that is trained: ``weight``, or ``rows`` where only they are."""
        return self.weight if self.rows is None else self.rows

    def _merge(self):
        """Takes the trained rows over into ``weight``."""
        # Of a copy that is not trained, fairseq's average of the model, ``weight`` is what counts.
        if self.rows is not None and self.rows.requires_grad:
            # ``data``: what autograd keeps for the backward pass does not change by it.
            self.weight.data.index_copy_(0, self._slots, self.rows.data)

    def gathered(self, tensors):
        """Has state dicts hold the table, which workers split, whole; see ``Shard.gathered``.

        Args:
            tensors: what to gather beside it.
        """
        self._merge()
        return self.shard.gathered([self.weight, *tensors])

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        self._merge()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        whole = self.shard and self.shard.whole(self.weight)
        if whole is not None:
            destination[prefix + "weight"] = whole
        destination.pop(prefix + "rows", None)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        weight = state_dict.get(prefix + "weight")
        if self.rows is not None and weight is not None:
            state_dict[prefix + "rows"] = weight[self._slots.to(weight.device)]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self):
        split = f", shards={self.shard.count}" if self.shard else ""
        return f"{len(self.weight)}, {self.value_dim}, init={self.init}, grad={self.grad}{split}"


class QuantizedValueTable(nn.Module):
    """The rows of a ``ValueTable`` in fewer bits, which can be read but not trained.

    They keep their bits under any dtype of the model.

    Args:
        table: the ``ValueTable``.
        dtype: bf16, or int8: each row in multiples of a 127th of its largest number.
    """

    def __init__(self, table, dtype):
        super().__init__()
        weight = table.weight.detach()
        if dtype == "int8":
            rounded, scales = quantise_rows(weight)
        else:
            rounded, scales = torch.empty_like(weight, dtype=torch.bfloat16), None
            with_huge_pages(rounded).copy_(weight)
        self.register_buffer("weight", rounded)
        self.register_buffer("scales", scales)

    def forward(self, slots, weights):
        """Reads the rows ``slots``, (T, n), times ``weights``, (T, n): (T, value-dim), float32."""
        return quantized_bag(self.weight, slots, weights, self.scales)

    def _apply(self, fn, *args, **kwargs):
        """Moves the table as ``fn`` says, but never converts it."""
        for name, buffer in self.named_buffers():
            setattr(self, name, buffer.to(fn(buffer[:0]).device))
        return self

    def extra_repr(self):
        slots, value_dim = self.weight.shape
        return f"{slots}, {value_dim}, {self.weight.dtype}"
