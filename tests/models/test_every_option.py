"""Whatever options are given, a model trains and comes back from its checkpoint, or is refused.

More cases, others at each run: pytest --hypothesis-profile many tests/models/test_every_option.py
"""

import io
import re
from dataclasses import fields
from enum import Enum

import pytest
import torch
import torch.nn.functional as F
from fairseq.models import build_model
from hypothesis import event, given
from hypothesis import strategies as st

from pkm_fairseq.config import PKMConfig, flag
from pkm_fairseq.optim import PKMAdam, PKMAdamConfig
from tests.models.tiny import TINY, draw_tokens, make_memory_model, make_model, make_task

PAD = 1
OPTIONS = {option.name: option.type for option in fields(PKMConfig) if "pkm_" in option.name}
CHOICES = {
    name: [choice.value for choice in kind]
    for name, kind in OPTIONS.items()
    if isinstance(kind, type) and issubclass(kind, Enum)
}
SWITCHES = [name for name, kind in OPTIONS.items() if kind is bool]
SIZES = ["pkm_subkeys", "pkm_heads", "pkm_topk", "pkm_key_dim", "pkm_value_dim"]
DROPOUTS = ["pkm_query_dropout", "pkm_key_dropout", "pkm_value_dropout"]
ROBERTA = {
    "encoder_normalize_before": st.booleans(),
    "layernorm_embedding": st.booleans(),
    "checkpoint_activations": st.booleans(),
    "untie_weights_roberta": st.booleans(),
    "encoder_layerdrop": st.sampled_from([0, 0.5]),
    "dropout": st.sampled_from([0, 0.5]),
    "activation_fn": st.sampled_from(["gelu", "relu", "tanh"]),
    "ffn_reg_scale_factor": st.sampled_from([0, 0.1]),
    "quant_noise_pq": st.sampled_from([0, 0.5]),
    "quant_noise_pq_block_size": st.just(4),
}
# Numbers for a size that no memory can have, the last of them for want of room.
BAD_SIZES = [0, -1, 2.5, True, "many", [4], 2**40, 2**70]
BAD = [
    *[("pkm_layers", bad) for bad in ([-1], [TINY["encoder_layers"]], [0, 0], ["a"], 1.5, "a")],
    *[(name, bad) for name in CHOICES for bad in ("other", "", 3, ["batch"])],
    *[(name, bad) for name in SWITCHES for bad in ("maybe", [True])],
    *[(name, bad) for name in SIZES for bad in BAD_SIZES],
    *[(name, bad) for name in DROPOUTS for bad in (1, -0.1, float("nan"), float("inf"), "a")],
    *[("pkm_shards", bad) for bad in (*BAD_SIZES, 2)],
    *[("pkm_layer_norm_eps", bad) for bad in (0, -1e-5, 1, float("nan"), "a")],
    ("pkm_key_dim", 3),
    *[("pkm_key_dropout", bad) for bad in (0.01, 0.9)],
    ("pkm_top_k", 3),
]


@st.composite
def options(draw):
    """Options each of which can be; some cannot be together."""
    subkeys = draw(st.integers(1, 12))
    topk = draw(st.integers(1, subkeys))
    memory = {
        "pkm_layers": st.lists(st.integers(0, TINY["encoder_layers"] - 1), unique=True),
        "pkm_subkeys": st.just(subkeys),
        "pkm_topk": st.just(topk),
        "pkm_heads": st.integers(1, 3),
        "pkm_key_dim": st.integers(1, 4).map(lambda half: 2 * half),
        "pkm_value_dim": st.none() | st.integers(1, 20),
        **dict.fromkeys(DROPOUTS, st.sampled_from([0, 0.5])),
        "pkm_key_dropout": st.sampled_from([0, 0.5, 1 - topk / subkeys]),
        **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
        **dict.fromkeys(SWITCHES, st.booleans()),
        "pkm_shards": st.just(1),  # of one worker
        "pkm_table_dtype": st.just("model"),  # the others cannot be trained
        "pkm_layer_norm_eps": st.sampled_from([1e-5, 1e-12]),
    }
    assert memory.keys() == OPTIONS.keys(), "an option is never drawn"
    return draw(st.fixed_dictionaries({**memory, **ROBERTA}))


@st.composite
def batches(draw):
    """Up to four sentences of one token or more, shorter ones padded."""
    lengths = draw(st.lists(st.integers(1, TINY["max_positions"]), min_size=1, max_size=4))
    tokens = draw_tokens(len(lengths), max(lengths))
    for row, length in zip(tokens, lengths):
        row[length:] = PAD
    return tokens


@given(
    options=options(),
    tokens=batches(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_what_is_not_refused_trains_and_comes_back_from_its_checkpoint(options, tokens, dtype):
    refusal = None
    try:
        model = make_model(**options).to(dtype)
    except ValueError as error:
        refusal = str(error)
    event("refused" if refusal else "trained")
    if refusal:
        assert re.search("--[a-z]", refusal)
        return
    real = tokens.ne(PAD)
    optimizer = PKMAdam(PKMAdamConfig(lr=[0.01], amp=False, use_bmuf=False), model.parameters())
    logits = model.train()(tokens)[0]
    loss = F.cross_entropy(logits[real].float(), tokens[real])
    loss.backward()
    assert loss.isfinite()
    assert optimizer.clip_grad_norm(1.0).isfinite()
    optimizer.step()

    file = io.BytesIO()
    torch.save({"args": model.args, "model": model.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    loaded = build_model(checkpoint["args"], make_task()).to(dtype)
    loaded.load_state_dict(checkpoint["model"])
    with torch.no_grad():
        expected = model.eval()(tokens)[0][real]
        assert expected.isfinite().all()
        assert torch.equal(loaded.eval()(tokens)[0][real], expected)


@pytest.mark.parametrize(("name", "bad"), BAD, ids=lambda value: str(value))
def test_what_no_memory_can_have_is_refused_by_name(name, bad):
    with pytest.raises(ValueError, match=rf"{flag(name)}|{name}") as refusal:
        make_memory_model(**{name: bad})
    assert len(str(refusal.value).splitlines()) == 1
