"""Small models of transformers to import, and text to try them on."""

import sys

import pytest
import torch

# A torchaudio that does not go with torch, as fairseq-fixed brings it, stops transformers.
sys.modules["torchaudio"] = None
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 130,
    "layer_norm_eps": 1e-5,
}


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
