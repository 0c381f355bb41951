"""The options of fairseq that a training of a RoBERTa can be given, as fairseq declares them."""

import argparse
from enum import Enum

from fairseq.criterions.masked_lm import MaskedLmConfig
from fairseq.criterions.sentence_prediction import SentencePredictionConfig as ClassifyConfig
from fairseq.dataclass import configs
from fairseq.dataclass.utils import interpret_dc_type
from fairseq.models.roberta import RobertaModel
from fairseq.models.roberta.model import base_architecture
from fairseq.tasks.masked_lm import MaskedLMConfig
from fairseq.tasks.sentence_prediction import SentencePredictionConfig

# Of every training, whichever its task; None stands for RoBERTa.
GENERAL = [
    configs.CommonConfig,
    configs.DistributedTrainingConfig,
    configs.DatasetConfig,
    configs.OptimizationConfig,
    configs.CheckpointConfig,
    configs.EMAConfig,
    RobertaModel,
]
PRETRAINING = [MaskedLMConfig, MaskedLmConfig]
FINETUNING = [SentencePredictionConfig, ClassifyConfig]


def declared(parts):
    """Returns a dict from the options of dataclasses, or of RoBERTa, to their default and choices.

    Choices are empty where there are none.
    """
    found = {}
    for part in parts:
        found.update(_of_model() if part is RobertaModel else _of_dataclass(part))
    return found


def everything():
    """Returns the same of all parts."""
    return declared([*GENERAL, *PRETRAINING, *FINETUNING])


def _of_dataclass(dataclass):
    found = {}
    for name, field in dataclass.__dataclass_fields__.items():
        # What is taken from elsewhere and has no help of its own is declared there.
        elsewhere = str(field.default).startswith("${") and not field.metadata.get("help")
        if name == "_name" or elsewhere:
            continue
        kind = interpret_dc_type(field.type)
        of_choices = isinstance(kind, type) and issubclass(kind, Enum)
        found[name] = field.default, [choice.value for choice in kind] if of_choices else []
    return found


def _of_model():
    """Returns the flags, and what architectures set beside them, for a YAML to change.

    ``max_source_positions`` is ``max_positions`` by another name.
    """
    parser = argparse.ArgumentParser(add_help=False)
    RobertaModel.add_args(parser)
    choices = {action.dest: action.choices or [] for action in parser._actions}
    defaults = argparse.Namespace()
    base_architecture(defaults)
    names = choices.keys() | vars(defaults).keys() - {"max_source_positions"}
    return {name: (getattr(defaults, name, None), choices.get(name, [])) for name in names}
