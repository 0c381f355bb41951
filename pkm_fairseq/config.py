"""Every option of the memory: its name, type, default, help and check, in one place.

No ``from __future__ import annotations`` here: fairseq reads the types of the fields.
"""

from argparse import Namespace
from dataclasses import dataclass, field, fields
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
}


# Those of the model that are not of each of its memories; the first needs none.
OF_ANY_ROBERTA = {"pkm_layer_norm_eps"}
OF_MODEL = {"pkm_layers", "pkm_mode", "pkm_share_values", "pkm_table_dtype", *OF_ANY_ROBERTA}
LARGEST = 2**31 - 1


@dataclass
class PKMConfig(FairseqDataclass):
    """The model options that ``pkm_roberta`` adds to fairseq's RoBERTa."""

    pkm_layers: List[int] = field(
        default_factory=list,
        metadata={
            "help": "encoder layers that hold a memory, by fairseq's 0-based index, such as 4,8; "
            "empty for none"
        },
    )
    pkm_mode: PKM_MODES = field(
        default="residual",
        metadata={
            "help": "residual adds the memory to the feed-forward network (ResM); "
            "replace puts it in its place (plain PKM)"
        },
    )
    pkm_subkeys: int = field(
        default=512,
        metadata={"help": "sub-keys per half; the memory has this number squared slots"},
    )
    pkm_heads: int = field(default=4, metadata={"help": "memory heads: queries per token"})
    pkm_topk: int = field(default=32, metadata={"help": "slots each head reads for a token"})
    pkm_key_dim: int = field(
        default=256, metadata={"help": "width of a query and of a key: two sub-keys of half this"}
    )
    pkm_value_dim: Optional[int] = field(
        default=None,
        metadata={
            "help": "width of a value (default: the model's width, or its share for a head with "
            "--pkm-heads-merge concat); with any other a learned projection follows the read"
        },
    )
    pkm_query_norm: QUERY_NORMS = field(
        default="batch", metadata={"help": "normalisation of the queries"}
    )
    pkm_sync_query_norm: bool = field(
        default=False,
        metadata={
            "help": "normalise queries by the batches of all workers together (with "
            "--pkm-query-norm batch); else each worker goes by its own"
        },
    )
    pkm_query_dropout: float = field(
        default=0.0, metadata={"help": "dropout probability on the queries"}
    )
    pkm_key_dropout: float = field(
        default=0.0,
        metadata={
            "help": "share of the sub-keys that each training pass leaves out, whole and for all "
            "tokens alike, others each time, so that other slots are used too"
        },
    )
    pkm_score: SCORES = field(
        default="dot",
        metadata={
            "help": "score of a slot: the dot product of query and key, or the cosines of their "
            "halves, added and times a temperature that each head learns"
        },
    )
    pkm_weights: WEIGHTS = field(
        default="softmax",
        metadata={
            "help": "weights of the slots a head reads: softmax over their scores, or relu or "
            "sigmoid of each score by itself, divided by top-k"
        },
    )
    pkm_heads_merge: HEADS_MERGES = field(
        default="sum",
        metadata={
            "help": "sum what the heads read, or put their reads, of narrower values, side by "
            "side (concat) before a learned projection"
        },
    )
    pkm_gate: GATES = field(
        default="none",
        metadata={
            "help": "multiply what is read by a function of the token: silu, number by number "
            "before a learned projection, or sigmoid, one number a token"
        },
    )
    pkm_value_dropout: float = field(
        default=0.0, metadata={"help": "dropout probability on what is read from the memory"}
    )
    pkm_value_init: VALUE_INITS = field(
        default="normal",
        metadata={
            "help": "initial values: normal draws them with variance 1 / value-dim; "
            "zero makes a residual memory start as no change to the model"
        },
    )
    pkm_share_values: bool = field(
        default=False, metadata={"help": "one table of values for all memory layers"}
    )
    pkm_grad: GRADIENTS = field(
        default="dense",
        metadata={
            "help": "gradient of the values: dense works with every optimizer; sparse, with "
            "--optimizer pkm_adam, makes the cost of an update follow the rows it touches"
        },
    )
    pkm_shards: int = field(
        default=1,
        metadata={
            "help": "split the columns of the values over groups of so many workers, which with "
            "--optimizer pkm_adam divides the memory they need among them; a checkpoint can be "
            "used with any other number"
        },
    )
    pkm_table_dtype: TABLE_DTYPES = field(
        default="model",
        metadata={
            "help": "how a model that is only evaluated keeps its values: bf16, int8 with a scale "
            "for each row, or as the model keeps all else; given when a checkpoint is loaded"
        },
    )
    pkm_layer_norm_eps: float = field(
        default=1e-5,
        metadata={
            "help": "epsilon of the model's layer norms, with or without a memory: fairseq's, or "
            "that of the imported model to start from (1e-12 for BERT)"
        },
    )

    @classmethod
    def from_args(cls, args):
        """Rebuilds the options, typed, from a model's ``args`` as either command line makes them.

        Args:
            args: a Namespace or DictConfig; options that are absent or None take their default.

        Raises:
            ValueError: if an option is unknown, of a wrong type, or without effect.
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
            ValueError: naming the option and what to change.
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
        if self.pkm_shards < 1:
            raise RefusalError(f"--pkm-shards {self.pkm_shards} must be at least 1: raise it")
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
        if self.pkm_sync_query_norm and self.pkm_query_norm != "batch":
            raise RefusalError(
                f"--pkm-sync-query-norm has no effect with --pkm-query-norm {self.pkm_query_norm}: "
                "remove it or choose batch"
            )
        check_memory(**self.layer_options())

    def layer_options(self):
        """Returns what each ``ProductKeyMemory`` is built with, by the names of its arguments."""
        return {
            option.name[len("pkm_") :]: getattr(self, option.name)
            for option in fields(self)
            if option.name.startswith("pkm_") and option.name not in OF_MODEL
        }


def check_memory(
    *,
    subkeys,
    heads,
    topk,
    key_dim,
    value_dim,
    query_dropout,
    key_dropout,
    value_dropout,
    score,
    weights,
    heads_merge,
    gate,
    **unchecked,
):
    """Refuses sizes, probabilities and choices of which no memory can be made.

    Takes any of the arguments of a ``ProductKeyMemory``.

    Raises:
        ValueError: naming the option and what to change.
    """
    sizes = {"subkeys": subkeys, "heads": heads, "topk": topk, "key_dim": key_dim}
    if value_dim is not None:
        sizes["value_dim"] = value_dim
    for name, size in sizes.items():
        if size < 1:
            raise RefusalError(f"{name}={size} must be at least 1: raise {flag('pkm_' + name)}")
        if size > LARGEST:
            raise RefusalError(f"{name}={size} exceeds {LARGEST}: lower {flag('pkm_' + name)}")
    if topk > subkeys:
        raise RefusalError(
            f"topk={topk} exceeds subkeys={subkeys}: lower --pkm-topk or raise --pkm-subkeys"
        )
    if key_dim % 2:
        raise RefusalError(
            f"key_dim={key_dim} is odd, and a key is made of two halves: make --pkm-key-dim even"
        )
    dropouts = {
        "query_dropout": query_dropout,
        "key_dropout": key_dropout,
        "value_dropout": value_dropout,
    }
    for name, p in dropouts.items():
        if not 0 <= p < 1:
            raise RefusalError(f"{name}={p} is not in [0, 1): change {flag('pkm_' + name)}")
    kept = count_kept(subkeys, key_dropout)
    if kept < topk:
        raise RefusalError(
            f"key_dropout={key_dropout} keeps {kept} of subkeys={subkeys}, fewer than topk={topk}: "
            "lower --pkm-key-dropout or --pkm-topk, or raise --pkm-subkeys"
        )
    if key_dropout and kept == subkeys:
        raise RefusalError(
            f"key_dropout={key_dropout} has no effect: it keeps all of subkeys={subkeys}; "
            "raise --pkm-key-dropout or remove it"
        )
    choices = {
        "score": (score, SCORES),
        "weights": (weights, WEIGHTS),
        "heads_merge": (heads_merge, HEADS_MERGES),
        "gate": (gate, GATES),
    }
    for name, (choice, known) in choices.items():
        names = [each.value for each in known]
        if choice not in names:
            raise RefusalError(
                f"{name}={choice} is not {' or '.join(names)}: change {flag('pkm_' + name)}"
            )
    if heads_merge == "concat" and heads == 1:
        raise RefusalError(
            "--pkm-heads-merge concat has no effect with one head: remove it or raise --pkm-heads"
        )


def count_kept(subkeys, key_dropout):
    """Returns how many of the ``subkeys`` of a half a training pass keeps."""
    return round(subkeys * (1 - key_dropout))


def flag(name):
    """Turns ``pkm_key_dim`` into ``--pkm-key-dim``."""
    return "--" + name.replace("_", "-")


def _join(numbers):
    """Writes a list as the command line takes it."""
    return ",".join(map(str, numbers))
