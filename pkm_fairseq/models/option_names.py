"""The names of a RoBERTa's options: Hydra's command line takes misspelt ones as well."""

from argparse import ArgumentParser, Namespace
from dataclasses import fields
from difflib import get_close_matches

from fairseq.models.roberta.model import base_architecture
from fairseq.models.transformer.transformer_config import EncDecBaseConfig, TransformerConfig
from omegaconf import DictConfig

from pkm_fairseq.refusals import RefusalError

# What fairseq, its tasks and its hub add to the options of every model.
ADDED = {"_name", "arch", "base_layers", "load_checkpoint_heads", "tokens_per_sample"}


def check_names(model_class, args):
    """Refuses options of Hydra's command line that no part of a RoBERTa has.

    Args:
        model_class: whose ``add_args`` declares its own.
        args: a DictConfig; a Namespace comes from a parser that has refused them already.

    Raises:
        RefusalError: naming them, and what they may have been meant to be.
    """
    if not isinstance(args, DictConfig):
        return
    known = known_names(model_class)
    for name in sorted(set(args) - known):
        if name.startswith("pkm_"):
            continue  # PKMConfig refuses them, whichever way they come
        close = get_close_matches(name, known, n=1)
        meant = f": do you mean {close[0]}?" if close else ": remove it"
        raise RefusalError(f"unknown model option {name}{meant}")


def known_names(model_class):
    """Returns the names of all options of a RoBERTa, as they are written under ``model:``."""
    parser = ArgumentParser()
    model_class.add_args(parser)
    given = Namespace()
    base_architecture(given)
    return {
        *ADDED,
        *(action.dest for action in parser._actions),
        *vars(given),
        # fairseq's encoder reads all that its own options declare.
        *(field.name for field in fields(TransformerConfig)),
        *(f"encoder_{field.name}" for field in fields(EncDecBaseConfig)),
    }
