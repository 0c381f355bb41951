"""Every option of the memory: its name, type, default, help and check, in one place.

No ``from __future__ import annotations`` here: fairseq reads the types of the fields.
"""

from argparse import Namespace
from dataclasses import dataclass, field, fields, make_dataclass
from enum import Enum
from typing import List, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pkm_fairseq.refusals import RefusalError

PKM_MODES = ChoiceEnum(["residual", "replace"])
QUERY_NORMS = ChoiceEnum(["batch", "layer", "none"])
VALUE_INITS = ChoiceEnum(["normal", "zero"])
GRADIENTS = ChoiceEnum(["dense", "sparse"])
SCORES = ChoiceEnum(["dot", "cosine"])
WEIGHTS = ChoiceEnum(["softmax", "relu", "sigmoid"])
HEADS_MERGES = ChoiceEnum(["sum", "concat"])
GATES = ChoiceEnum(["none", "silu", "sigmoid"])
TABLE_DTYPES = ChoiceEnum(["model", "bf16", "int8"])
# Options of the plugin that are not the model's: of its tasks, criterions and optimizer.
OTHER_OPTIONS = {
    "pkm_init_from",
    "pkm_train_slots",
    "pkm_freeze_rest",
    "pkm_usage_per_head",
    "pkm_drift_tokens",
    "pkm_worth_tokens",
    "pkm_values_lr",
    "pkm_values_lr_scheduled",
    "pkm_values_weight_decay",
    "pkm_values_clip_norm",
    "pkm_search_lr",
}

# Options of the model that need no memory.
OF_ANY_ROBERTA = {"pkm_layer_norm_eps"}
LARGEST = 2**31 - 1


def option(default, help):
    """Returns a field with a default and with the help that fairseq prints."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class MemoryConfig:
    """What one memory is made of; its options are named as here with ``pkm_`` before it."""

    subkeys: int = option(512, "sub-keys per half; the memory has this number squared slots")
    heads: int = option(4, "memory heads: queries per token")
    topk: int = option(32, "slots each head reads for a token")
    key_dim: Optional[int] = option(
        None,
        "width of a query and of a key: two sub-keys of half this (default: the model's width, at "
        "most 256)",
    )
    value_dim: Optional[int] = option(
        None,
        "width of a value (default: the model's width, or its share for a head with "
        "--pkm-heads-merge concat); with any other a learned projection follows the read",
    )
    query_norm: QUERY_NORMS = option("batch", "normalisation of the queries")
    sync_query_norm: bool = option(
        False,
        "normalise queries by the batches of all workers together (with "
        "--pkm-query-norm batch); else each worker goes by its own",
    )
    query_dropout: float = option(0.0, "dropout probability on the queries")
    key_dropout: float = option(
        0.0,
        "share of the sub-keys that each training pass leaves out, whole and for all "
        "tokens alike, others each time, so that other slots are used too",
    )
    score: SCORES = option(
        "dot",
        "score of a slot: the dot product of query and key, or the cosines of their "
        "halves, added and times a temperature that each head learns",
    )
    weights: WEIGHTS = option(
        "softmax",
        "weights of the slots a head reads: softmax over their scores, or relu or "
        "sigmoid of each score by itself, divided by top-k",
    )
    heads_merge: HEADS_MERGES = option(
        "sum",
        "sum what the heads read, or put their reads, of narrower values, side by "
        "side (concat) before a learned projection",
    )
    gate: GATES = option(
        "none",
        "multiply what is read by a function of the token: silu, number by number "
        "before a learned projection, or sigmoid, one number a token",
    )
    value_dropout: float = option(0.0, "dropout probability on what is read from the memory")
    value_init: VALUE_INITS = option(
        "normal",
        "initial values: normal draws them with variance 1 / value-dim; "
        "zero makes a residual memory start as no change to the model",
    )
    grad: GRADIENTS = option(
        "dense",
        "gradient of the values: dense works with every optimizer; sparse, with "
        "--optimizer pkm_adam, makes the cost of an update follow the rows it touches",
    )
    shards: int = option(
        1,
        "split the columns of the values over groups of so many workers, which with "
        "--optimizer pkm_adam divides the memory they need among them; a checkpoint can be "
        "used with any other number",
    )

    def check(self):
        """Refuses sizes, probabilities and choices of which no memory can be made.

        Raises:
            RefusalError: naming the option and what to change.
        """
        for name in ("subkeys", "heads", "topk", "key_dim", "value_dim", "shards"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise RefusalError(f"{name}={size} must be at least 1: raise {flag('pkm_' + name)}")
            if size is not None and size > LARGEST:
                raise RefusalError(f"{name}={size} exceeds {LARGEST}: lower {flag('pkm_' + name)}")
        for name in ("query_dropout", "key_dropout", "value_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise RefusalError(
                    f"{name}={getattr(self, name)} is not in [0, 1): change {flag('pkm_' + name)}"
                )
        for name, kind in CHOICES.items():
            names = [each.value for each in kind]
            if getattr(self, name) not in names:
                raise RefusalError(
                    f"{name}={getattr(self, name)} is not {' or '.join(names)}: "
                    f"change {flag('pkm_' + name)}"
                )
        if self.topk > self.subkeys:
            raise RefusalError(
                f"topk={self.topk} exceeds subkeys={self.subkeys}: lower --pkm-topk or raise "
                "--pkm-subkeys"
            )
        if self.key_dim is not None and self.key_dim % 2:
            raise RefusalError(
                f"key_dim={self.key_dim} is odd, and a key is made of two halves: make "
                "--pkm-key-dim even"
            )
        kept = count_kept(self.subkeys, self.key_dropout)
        if kept < self.topk:
            raise RefusalError(
                f"key_dropout={self.key_dropout} keeps {kept} of subkeys={self.subkeys}, fewer "
                f"than topk={self.topk}: lower --pkm-key-dropout or --pkm-topk, or raise "
                "--pkm-subkeys"
            )
        if self.key_dropout and kept == self.subkeys:
            raise RefusalError(
                f"key_dropout={self.key_dropout} has no effect: it keeps all of "
                f"subkeys={self.subkeys}; raise --pkm-key-dropout or remove it"
            )
        if self.heads_merge == "concat" and self.heads == 1:
            raise RefusalError(
                "--pkm-heads-merge concat has no effect with one head: remove it or raise "
                "--pkm-heads"
            )
        if self.sync_query_norm and self.query_norm != "batch":
            raise RefusalError(
                f"--pkm-sync-query-norm has no effect with --pkm-query-norm {self.query_norm}: "
                "remove it or choose batch"
            )


CHOICES = {
    each.name: each.type
    for each in fields(MemoryConfig)
    if isinstance(each.type, type) and issubclass(each.type, Enum)
}
_MemoryOptions = make_dataclass(
    "_MemoryOptions",
    [
        (f"pkm_{each.name}", each.type, field(default=each.default, metadata=each.metadata))
        for each in fields(MemoryConfig)
    ],
    bases=(FairseqDataclass,),
)


@dataclass
class PKMConfig(_MemoryOptions):
    """The model options that ``pkm_roberta`` adds to fairseq's RoBERTa: a memory's, and these."""

    pkm_layers: List[int] = field(
        default_factory=list,
        metadata={
            "help": "encoder layers that hold a memory, by fairseq's 0-based index, such as 4,8; "
            "empty for none"
        },
    )
    pkm_mode: PKM_MODES = option(
        "residual",
        "residual adds the memory to the feed-forward network (ResM); "
        "replace puts it in its place (plain PKM)",
    )
    pkm_share_values: bool = option(False, "one table of values for all memory layers")
    pkm_table_dtype: TABLE_DTYPES = option(
        "model",
        "how a model that is only evaluated keeps its values: bf16, int8 with a scale "
        "for each row, or as the model keeps all else; given when a checkpoint is loaded",
    )
    pkm_layer_norm_eps: float = option(
        1e-5,
        "epsilon of the model's layer norms, with or without a memory: fairseq's, or "
        "that of the imported model to start from (1e-12 for BERT)",
    )

    @classmethod
    def from_args(cls, args):
        """Rebuilds the options, typed, from a model's ``args`` as either command line makes them.

        Args:
            args: a Namespace or DictConfig; options that are absent or None take their default.

        Raises:
            RefusalError: if an option is unknown, of a wrong type, or without effect.
        """
        values = vars(args) if isinstance(args, Namespace) else args
        known = {option.name for option in fields(cls) if option.name.startswith("pkm_")}
        given = {
            name: values[name]
            for name in values
            if name.startswith("pkm_") and values[name] is not None
        }
        # fairseq-train hands the model the options of all rooms ("arch" tells).
        elsewhere = OTHER_OPTIONS if "arch" in values else set()
        unknown = sorted(given.keys() - known - elsewhere)
        if unknown:
            raise RefusalError(
                f"unknown model option {', '.join(unknown)}: known are {', '.join(sorted(known))}"
            )
        given = {name: value for name, value in given.items() if name in known}
        of_memory = given.keys() - OF_ANY_ROBERTA
        if of_memory and "pkm_layers" not in given:
            raise RefusalError(
                f"{flag(min(of_memory))} has no effect without a memory: "
                "add --pkm-layers (empty for a model without memory)"
            )
        typed = OmegaConf.structured(cls)
        for name, value in given.items():
            try:
                typed = OmegaConf.merge(typed, {name: value})
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0]
                raise RefusalError(f"{flag(name)} cannot be {value!r}: {reason}") from None
        plain = OmegaConf.to_container(typed, enum_to_str=True)
        return cls(**{name: plain[name] for name in known})

    def check(self, encoder_layers):
        """Refuses options that cannot work in a model of ``encoder_layers`` layers.

        Raises:
            RefusalError: naming the option and what to change.
        """
        for layer in self.pkm_layers:
            if not 0 <= layer < encoder_layers:
                raise RefusalError(
                    f"--pkm-layers {layer} does not exist: the encoder has layers 0 to "
                    f"{encoder_layers - 1}; choose among them or raise --encoder-layers"
                )
        if len(set(self.pkm_layers)) < len(self.pkm_layers):
            raise RefusalError(
                f"--pkm-layers {_join(self.pkm_layers)} names a layer twice: name each layer once"
            )
        if self.pkm_share_values and len(self.pkm_layers) == 1:
            raise RefusalError(
                "--pkm-share-values has no effect with one memory: "
                "remove it or name more layers in --pkm-layers"
            )
        if self.pkm_table_dtype != "model" and not self.pkm_layers:
            raise RefusalError(
                f"--pkm-table-dtype {self.pkm_table_dtype} has no effect without a memory: "
                "remove it or name layers in --pkm-layers"
            )
        if not 0 < self.pkm_layer_norm_eps < 1:
            raise RefusalError(
                f"--pkm-layer-norm-eps {self.pkm_layer_norm_eps} is not between 0 and 1: give a "
                "small number, such as 1e-5"
            )
        if self.pkm_shards > 1 and not self.pkm_layers:
            raise RefusalError(
                f"--pkm-shards {self.pkm_shards} has no effect without a memory: "
                "remove it or name layers in --pkm-layers"
            )
        if self.pkm_shards > 1 and self.pkm_table_dtype != "model":
            raise RefusalError(
                f"--pkm-table-dtype {self.pkm_table_dtype} is for evaluation and --pkm-shards for "
                "training: leave one of the two out"
            )
        self.memory().check()

    def memory(self):
        """Returns the ``MemoryConfig`` of each of the model's memories."""
        return MemoryConfig(
            **{each.name: getattr(self, f"pkm_{each.name}") for each in fields(MemoryConfig)}
        )


def default_key_dim(input_dim):
    """Returns the width of the keys that go with tokens of a width: the paper's for the paper's."""
    return min(256, max(2, input_dim // 2 * 2))


def count_kept(subkeys, key_dropout):
    """Returns how many of the ``subkeys`` of a half a training pass keeps."""
    return round(subkeys * (1 - key_dropout))


def flag(name):
    """Turns ``pkm_key_dim`` into ``--pkm-key-dim``."""
    return "--" + name.replace("_", "-")


def _join(numbers):
    """Writes a list as the command line takes it."""
    return ",".join(map(str, numbers))
