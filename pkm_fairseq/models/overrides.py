"""Overrides that give a checkpoint a memory, however its own options were saved.

Published checkpoints have a Namespace of all options, those of fairseq-train a config with a
Namespace for the model's, and those of Hydra a config of configs. ``fairseq-validate
--model-overrides`` means another thing to each, and loses what has no place there.
"""

import functools

from fairseq import checkpoint_utils
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models import ARCH_MODEL_REGISTRY

from pkm_fairseq.config import OTHER_OPTIONS
from pkm_fairseq.models.hub import make_ours
from pkm_fairseq.refusals import RefusalError


def install():
    """Has fairseq load models as the function below does."""
    stock = checkpoint_utils.load_model_ensemble_and_task
    wrapped = functools.partial(load_model_ensemble_and_task, stock)
    checkpoint_utils.load_model_ensemble_and_task = functools.wraps(stock)(wrapped)


def load_model_ensemble_and_task(stock, filenames, arg_overrides=None, *args, **options):
    """Same as fairseq's; options of a memory reach the model, wherever they are written.

    Raises:
        RefusalError: if it is no RoBERTa, and only a RoBERTa can have a memory.
    """
    memory, arch, others = _split(arg_overrides or {})
    if not memory or args or options.get("state") is not None or len(filenames) != 1:
        return stock(filenames, arg_overrides, *args, **options)
    file = checkpoint_utils.get_maybe_sharded_checkpoint_filename(
        filenames[0], options.get("suffix", ""), 0, num_shards=1
    )
    state = checkpoint_utils.load_checkpoint_to_cpu(file)
    if state.get("args") is not None:
        model = state["args"]
        for name, value in _flat(others).items():
            setattr(model, name, value)
    else:
        overwrite_args_by_name(state["cfg"], others)
        model = state["cfg"].model
    make_ours(model, memory, arch)
    trained = getattr(model, "_name", None) or model.arch
    if not hasattr(ARCH_MODEL_REGISTRY[trained], "memories"):
        raise RefusalError(f"{file} is of --arch {trained}: only a RoBERTa can have a memory")
    return stock(filenames, None, **{**options, "state": state})


def _split(overrides):
    """Returns the options of a memory, the architecture that is to hold it, and all others."""
    others = dict(overrides)
    of_model = others.pop("model", None)
    of_model = dict(of_model) if isinstance(of_model, dict) else {}
    given = {**others, **of_model}
    memory = {
        name: value
        for name, value in given.items()
        if name.startswith("pkm_") and name not in OTHER_OPTIONS
    }
    for options in (others, of_model):
        for name in ("_name", *memory):  # fairseq would take the name for the task's as well
            options.pop(name, None)
    if of_model:
        others["model"] = of_model
    return memory, given.get("_name", "pkm_roberta"), others


def _flat(overrides):
    """Returns overrides as a Namespace has them: ``{"task": {"_name": …}}`` as ``{"task": …}``."""
    flat = {}
    for group, value in overrides.items():
        options = value if isinstance(value, dict) else {"_name": value}
        flat.update({group if name == "_name" else name: options[name] for name in options})
    return flat
