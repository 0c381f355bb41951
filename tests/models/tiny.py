"""Models small enough to build in a test, without a command line."""

from argparse import Namespace
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, build_model

import pkm_fairseq.models  # noqa: F401 - registers the architectures

VOCABULARY = 20
TINY = {
    "encoder_layers": 3,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "max_positions": 12,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
TINY_MEMORY = {
    "pkm_layers": [1],
    "pkm_subkeys": 8,
    "pkm_topk": 4,
    "pkm_heads": 2,
    "pkm_key_dim": 8,
}


def make_task():
    dictionary = Dictionary()
    for i in range(VOCABULARY):
        dictionary.add_symbol(f"w{i}")
    return SimpleNamespace(source_dictionary=dictionary, max_positions=lambda: 12)


def make_args(arch="pkm_roberta", **options):
    # What RobertaModel.add_args adds with a default on the command line.
    args = Namespace(arch=arch, min_params_to_wrap=10**8, **options)
    ARCH_CONFIG_REGISTRY[arch](args)
    return args


def make_model(arch="pkm_roberta", **options):
    torch.manual_seed(0)
    return build_model(make_args(arch, **{**TINY, **options}), make_task())


def make_memory_model(**options):
    return make_model(**{**TINY_MEMORY, **options})


def draw_tokens(*shape):
    """Tokens without padding: neither <s>, <pad>, </s> nor <unk>."""
    return torch.randint(4, 4 + VOCABULARY, shape, generator=torch.Generator().manual_seed(1))
