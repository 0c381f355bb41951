"""RoBERTa with and without memory, as fairseq builds it, without data or a command line."""

from argparse import Namespace
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, build_model

import pkm_fairseq.models  # noqa: F401 - registers pkm_roberta


def make_task(vocabulary, max_positions):
    """Returns what models and losses ask of their task, with a dictionary of so many entries."""
    dictionary = Dictionary()
    for i in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    return SimpleNamespace(
        source_dictionary=dictionary,
        target_dictionary=dictionary,
        max_positions=lambda: max_positions,
    )


def make_model(arch, task, **options):
    """Builds an architecture of fairseq or of pkm_fairseq with the given options."""
    # What fairseq-train adds with a default.
    options = Namespace(arch=arch, min_params_to_wrap=10**8, **options)
    ARCH_CONFIG_REGISTRY[arch](options)
    torch.manual_seed(1)
    return build_model(options, task)
