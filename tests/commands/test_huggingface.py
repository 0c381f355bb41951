"""Models go to transformers and come from it, with the same logits and the same weights."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from importlib import import_module
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, build_model

from pkm_fairseq.models import PKMRobertaModel
from tests.commands.commands import (
    ROOT,
    assert_same_state,
    flags,
    load_model_state,
    logged,
    pretraining,
    run,
)

# A torchaudio that does not go with torch, as fairseq-fixed brings it, stops transformers.
sys.modules["torchaudio"] = None
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

SCRIPTS = ROOT / "scripts/huggingface"
WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 130,
    "layer_norm_eps": 1e-5,
}
DENSE = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "max_positions": 128,
}
MEMORY = {
    "pkm_layers": [1],
    "pkm_subkeys": 12,
    "pkm_topk": 5,
    "pkm_heads": 3,
    "pkm_key_dim": 14,
}
# Checkpoints to export: the options of the model, and its classification heads' classes.
EXPORTS = {
    "dense": ({}, {}),
    "untied": ({"untie_weights_roberta": True}, {}),
    "residual": (MEMORY, {}),
    "replace": ({**MEMORY, "pkm_mode": "replace", "pkm_query_norm": "layer"}, {"answer": 3}),
    "shared": (
        {
            **{**MEMORY, "pkm_layers": [2, 0], "pkm_query_norm": "none"},
            **{"pkm_share_values": True, "pkm_value_dim": 10, "pkm_key_dropout": 0.3},
        },
        {"answer": 1},
    ),
}


@pytest.fixture(scope="module")
def scripts():
    """Calls the scripts in this process: each import of fairseq and transformers takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))

        def call(name, *args):
            patch.setattr(sys, "argv", [name, *map(str, args)])
            import_module(name).main()

        yield call


def randomize(model):
    """Draws every tensor, so that each takes part: biases, norms and statistics, too."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            spread = torch.randn_like(tensor)
            tensor.copy_(1 + 0.3 * spread.abs() if name.endswith("running_var") else 0.3 * spread)


def sentences(text):
    """Real lines, and one with what no vocabulary of theirs has."""
    lines = [line for line in (text / "valid.txt").read_text().splitlines() if line.strip()]
    return [*(line[:80] for line in lines[:12]), "snowman ☃☃ Ж"]


# In.


def make_byte_level(text, folder):
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train([str(text / "train.txt")], vocab_size=400, special_tokens=special)
    tokenizer.save_model(str(folder))


def make_unigram(text, folder):
    sentencepiece.SentencePieceTrainer.train(
        input=str(text / "train.txt"),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=300,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.vocab").unlink()


KINDS = {"Roberta": make_byte_level, "XLMRoberta": make_unigram, "Camembert": make_unigram}


@pytest.fixture(scope="module", params=KINDS)
def foreign(request, text, tmp_path_factory):
    """A folder as people have them, in several files of weights."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    KINDS[kind](text, folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": f"{kind}Tokenizer"})
    )
    config = getattr(transformers, f"{kind}Config")(**WIDTHS, type_vocab_size=1)
    config.save_pretrained(folder)
    entries = len(transformers.AutoTokenizer.from_pretrained(str(folder)))
    config.vocab_size = entries + 3
    model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    randomize(model)
    model.save_pretrained(folder, max_shard_size="50KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


@pytest.fixture(scope="module")
def imported(foreign, scripts, tmp_path_factory):
    dest = tmp_path_factory.mktemp("imported") / "model"
    scripts("import_model", foreign, "--dest", dest)
    return dest


def test_an_imported_model_cuts_text_and_answers_as_transformers_does(foreign, imported, text):
    module = import_module("import_model")
    config = module.read_config(foreign)
    order, _ = module.read_vocabulary(
        foreign, config["vocab_size"], module.read_encoder(foreign)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(foreign))
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(str(foreign)).eval()
    ours = PKMRobertaModel.from_pretrained(str(imported)).eval()
    for line in sentences(text):
        tokens = ours.encode(line)
        numbers = tokenizer(line, return_tensors="pt")["input_ids"]
        assert torch.tensor(order)[tokens].tolist() == numbers[0].tolist()
        with torch.no_grad():
            expected = theirs(numbers).logits[..., order]
            actual, _ = ours.model(tokens[None])
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
        assert actual.std() > 0.1
