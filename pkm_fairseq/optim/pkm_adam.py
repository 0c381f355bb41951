"""Adam for a model with memory, whose values and search have settings of their own.

No ``from __future__ import annotations`` here: fairseq reads the types of the fields.
"""

from ast import literal_eval
from dataclasses import dataclass, field
from typing import Any, List, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.constants import ZERO_SHARDING_CHOICES
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

from pkm_fairseq.config import flag
from pkm_fairseq.distributed import is_sparse, shard_of
from pkm_fairseq.refusals import RefusalError

from .averaging import average_gradient, no_gradient
from .lazy_adam import LazyAdam

VALUES_GROUP = 1  # parameter groups: all else, values and, with a rate of its own, the search


@dataclass
class PKMAdamConfig(FairseqDataclass):
    """Options of ``pkm_adam``: Adam's, and those of the values and of the search for slots."""

    adam_betas: Any = field(default=(0.9, 0.999), metadata={"help": "betas of Adam"})
    adam_eps: float = field(default=1e-8, metadata={"help": "epsilon of Adam"})
    weight_decay: float = field(
        default=0.0, metadata={"help": "weight decay of all parameters but the values"}
    )
    pkm_values_lr: Optional[float] = field(
        default=None,
        metadata={"help": "learning rate of the values, fixed (default: that of the model)"},
    )
    pkm_values_lr_scheduled: bool = field(
        default=False,
        metadata={"help": "let --pkm-values-lr follow the schedule of --lr, in proportion"},
    )
    pkm_values_weight_decay: float = field(
        default=0.0,
        metadata={
            "help": "weight decay of the values; with --pkm-grad sparse, of the rows an update "
            "touches"
        },
    )
    pkm_values_clip_norm: float = field(
        default=0.0,
        metadata={"help": "clip the values' gradient to this norm, after --clip-norm; 0 for none"},
    )
    pkm_search_lr: Optional[float] = field(
        default=None,
        metadata={
            "help": "learning rate of what finds slots, queries and sub-keys, which follows the "
            "schedule of --lr in proportion (default: that of the model)"
        },
    )
    lr: List[float] = II("optimization.lr")
    amp: bool = II("common.amp")
    zero_sharding: ZERO_SHARDING_CHOICES = II("distributed_training.zero_sharding")
    store_ema: bool = II("ema.store_ema")
    use_bmuf: bool = II("optimization.use_bmuf")


@register_optimizer("pkm_adam", dataclass=PKMAdamConfig)
class PKMAdam(FairseqOptimizer):
    """AdamW for all parameters; the values' own rate, decay and clipping, and sparse gradients.

    What finds slots may have a rate of its own, too: queries and sub-keys that learn as fast as the
    model can come to agree on a few directions, along which a few slots win all tokens.

    Gradients are averaged, unscaled and clipped by one factor that is held back until the step:
    none of these costs a pass over the table, and sparse gradients, which fairseq's own methods
    leave unscaled without a word, are scaled like the rest.

    Args:
        cfg: a ``PKMAdamConfig``.
        params: the parameters; values are those tagged ``param_group = "pkm_values"``, and those
            of the search ``"pkm_search"``.

    Raises:
        RefusalError: if an option has no effect or cannot work, naming what to change.
    """

    def __init__(self, cfg, params):
        super().__init__(cfg)
        groups = {"": [], "pkm_values": [], "pkm_search": []}
        apart = {"pkm_values"} if cfg.pkm_search_lr is None else groups
        for param in params:
            group = getattr(param, "param_group", "")
            groups[group if group in apart else ""].append(param)
        others, values, search = groups.values()
        _check(cfg, values, search)
        self._factor = 1.0  # of the gradients, not applied yet
        self._optimizer = LazyAdam(
            [
                {"params": others, "weight_decay": cfg.weight_decay},
                {
                    "params": values,
                    "weight_decay": cfg.pkm_values_weight_decay,
                    "clip_norm": cfg.pkm_values_clip_norm,
                },
                *([{"params": search, "weight_decay": cfg.weight_decay}] if search else []),
            ],
            betas=_read_betas(cfg.adam_betas),
            eps=cfg.adam_eps,
        )
        self.set_lr(cfg.lr[0])

    def set_lr(self, lr):
        """Sets the learning rate of the model, and of values and search what their options say."""

        def in_proportion(rate):
            return rate * lr / self.cfg.lr[0]

        values_lr, search_lr = self.cfg.pkm_values_lr, self.cfg.pkm_search_lr
        if values_lr is None:
            values_lr = lr
        elif self.cfg.pkm_values_lr_scheduled:
            values_lr = in_proportion(values_lr)
        rates = [lr, values_lr, *([] if search_lr is None else [in_proportion(search_lr)])]
        for group, group_lr in zip(self.param_groups, rates):
            group["lr"] = group_lr

    def all_reduce_grads(self, module):
        """Averages the gradients over all workers: those of sparse values row by row, of a shard
        over those who hold the same."""
        ours = [
            values
            for values in self.param_groups[VALUES_GROUP]["params"]
            if is_sparse(values) or shard_of(values)
        ]
        for values in ours:
            if values.grad is None:  # fairseq would make a dense one
                values.grad = no_gradient(values)
        super().all_reduce_grads(module)
        for values in ours:
            values.grad = average_gradient(values.grad, shard_of(values))

    def multiply_grads(self, c):
        """Multiplies the gradients by ``c`` when they are used."""
        self._factor = self._factor * c

    def clip_grad_norm(self, max_norm, aggregate_norm_fn=None):
        """Clips the norm of all gradients when they are used, and returns it."""
        norm = self.optimizer.grad_norm() * self._factor
        if aggregate_norm_fn is not None:
            norm = aggregate_norm_fn(norm)
        if max_norm > 0:
            self.multiply_grads((max_norm / (norm + 1e-6)).clamp(max=1))
        return norm

    def step(self, closure=None, scale=1.0, groups=None):
        """Moves the parameters along their gradients, divided by ``scale``."""
        self.set_lr(self.get_lr())  # reduce_lr_on_plateau lowers the rates of all groups
        self.optimizer.step(closure, scale=scale / self._factor)
        self._factor = 1.0

    def zero_grad(self):
        super().zero_grad()
        self._factor = 1.0

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """Goes on from a checkpoint at its learning rate, with the other options given now.

        Raises:
            RefusalError: if it is of another optimizer, or of the other kind of gradient, or has
                other groups of parameters.
        """
        groups = len(state_dict["param_groups"])
        if {groups, len(self.param_groups)} == {2, 3}:
            raise RefusalError(
                f"the checkpoint's optimizer was trained with{'out' if groups == 2 else ''} "
                f"--pkm-search-lr: {'leave it out' if groups == 2 else 'give it'}, or forget its "
                "state with --reset-optimizer"
            )
        if groups != len(self.param_groups):
            # Which fairseq finds out only where no half precision hides the optimizer.
            raise RefusalError(
                "the checkpoint was not trained with --optimizer pkm_adam: choose its optimizer, "
                "or forget its state with --reset-optimizer"
            )
        for values, index in zip(
            self.param_groups[VALUES_GROUP]["params"],
            state_dict["param_groups"][VALUES_GROUP]["params"],
        ):
            saved = "row_step" in state_dict["state"].get(index, {})
            if index in state_dict["state"] and saved != is_sparse(values):
                theirs, ours = ("sparse", "dense") if saved else ("dense", "sparse")
                raise RefusalError(
                    f"the checkpoint's optimizer was trained with --pkm-grad {theirs}: "
                    f"give that, not {ours}, or forget its state with --reset-optimizer"
                )
        options = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in self.param_groups
        ]
        super().load_state_dict(state_dict)
        for group, given in zip(self.param_groups, options):
            group.update(given, **(optimizer_overrides or {}))
        self.set_lr(self.get_lr())


def _read_betas(betas):
    """Returns the two numbers that the command line writes as text, and a YAML as it likes."""
    try:
        beta1, beta2 = literal_eval(betas) if isinstance(betas, str) else betas
        if 0 <= beta1 < 1 and 0 <= beta2 < 1:
            return beta1, beta2
    except (SyntaxError, TypeError, ValueError):
        pass
    raise RefusalError(f"--adam-betas {betas} is not two numbers from 0 to below 1, as (0.9,0.98)")


def _check(cfg, values, search):
    """Refuses options that have no effect or cannot work."""
    if cfg.amp:
        raise RefusalError(
            "--optimizer pkm_adam cannot be used with --amp, with which fairseq unscales gradients "
            "twice: choose --memory-efficient-fp16 or --memory-efficient-bf16"
        )
    if cfg.zero_sharding == "os":
        raise RefusalError(
            "--optimizer pkm_adam cannot be used with --zero-sharding os, which puts another "
            "optimizer in its place: leave it out or choose --optimizer adam"
        )
    if cfg.use_bmuf:
        raise RefusalError(
            "--optimizer pkm_adam cannot be used with --use-bmuf, which averages the weights of "
            "all workers, but not what this optimizer knows of them: choose --optimizer adam"
        )
    if any(map(shard_of, values)) and cfg.store_ema:
        raise RefusalError(
            "--pkm-shards cannot be used with --store-ema, whose average is saved by one worker: "
            "leave one of the two out"
        )
    if cfg.pkm_values_lr_scheduled and cfg.pkm_values_lr is None:
        raise RefusalError(
            "--pkm-values-lr-scheduled has no effect without --pkm-values-lr: add it"
        )
    of_values = ("pkm_values_lr", "pkm_values_weight_decay", "pkm_values_clip_norm")
    acts_on = dict.fromkeys(of_values, ("values", values))
    acts_on["pkm_search_lr"] = ("queries or sub-keys", search)
    for name, (what, params) in acts_on.items():
        value = getattr(cfg, name)
        if value is not None and value < 0:
            raise RefusalError(f"{flag(name)} {value} is negative: raise it")
        if value != getattr(PKMAdamConfig, name) and not params:
            raise RefusalError(
                f"{flag(name)} has no effect, since there are no {what} to optimize: remove it, or "
                "give the model a memory with --pkm-layers; with --fp16 add --fp16-no-flatten-grads"
            )
