"""A user dir of a user's own, on top of ours, through the real commands."""

import pytest
import torch

from pkm_fairseq.models import PKMRobertaModel
from tests.commands.commands import (
    MEMORY,
    MODEL,
    ROOT,
    assert_same_state,
    load_model_state,
    logged,
    pretraining,
    run,
)

OWN = {
    "user-dir": "user_dir_examples/own_query",
    "arch": "mlp_query_roberta",
    "task": "pkm_masked_lm",
    "criterion": "pkm_masked_lm",
    "optimizer": "pkm_adam",
    **MODEL,
    **MEMORY,
}
QUERY = "encoder.sentence_encoder.layers.1.pkm.query."


@pytest.fixture(autouse=True)
def import_this_pkm_fairseq(monkeypatch):
    # Wherever the tests are run from: the user dir imports what is installed.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_it_starts_from_a_dense_model_and_resumes_bit_identical(data, tmp_path, monkeypatch):
    dense = tmp_path / "dense"
    run("fairseq-train", *pretraining(data, dense, updates=1, arch="roberta", **MODEL))
    dense = dense / "checkpoint_last.pt"
    options = {**OWN, "pkm-init-from": dense, "save-interval-updates": 2}
    folder = tmp_path / "whole"
    output = run("fairseq-train", *pretraining(data, folder, updates=4, **options))
    assert "made fresh: the memory of layers 1" in output
    assert logged(output, "valid_pkm_topk_usage", "valid")
    state = load_model_state(folder / "checkpoint_last.pt")
    query = {name.replace(QUERY, "") for name in state if name.startswith(QUERY)}
    assert query == {"0.weight", "0.bias", "2.weight", "2.bias"}
    options["restore-file"] = folder / "checkpoint_1_2.pt"
    run("fairseq-train", *pretraining(data, tmp_path / "resumed", updates=4, **options))
    assert_same_state(load_model_state(tmp_path / "resumed" / "checkpoint_last.pt"), state)

    own = ("--user-dir", OWN["user-dir"])
    run("pkm-fairseq", "report", data, folder, "--dest", tmp_path / "report", "--cpu", *own)
    assert (tmp_path / "report/report.html").exists()
    memory = ("--arch", OWN["arch"], "--pkm-layers", 1, "--pkm-subkeys", 16, "--pkm-topk", 4)
    run("pkm-fairseq", "add-memory", dense, "--dest", tmp_path / "added.pt", *own, *memory)
    assert f"{QUERY}2.weight" in load_model_state(tmp_path / "added.pt")

    monkeypatch.syspath_prepend(ROOT / "user_dir_examples")
    import own_query

    hub = PKMRobertaModel.from_pretrained(str(folder), "checkpoint_last.pt", str(data))
    assert type(hub.model) is own_query.MLPQueryRobertaModel
    assert_same_state(hub.model.state_dict(), state)
    fresh = own_query.MLPQueryRobertaModel.from_pretrained(
        str(dense.parent), dense.name, str(data), pkm_layers=[1], pkm_subkeys=16, pkm_topk=4
    )
    assert isinstance(fresh.model.memories()[1], own_query.MLPQueryMemory)
    # Layers of its own keep the memory's initialisation, not fairseq's of 0.02.
    query = fresh.model.memories()[1].query
    assert query[0].weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
    with pytest.raises(ValueError, match=r"lacks .*\.pkm\.query\.0\.bias"):
        fresh.model.load_state_dict(stock_state(fresh.model.state_dict()))


def stock_state(state):
    """Makes the queries those of one layer."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(QUERY)}
    return {**kept, QUERY + "weight": state[QUERY + "2.weight"], QUERY + "bias": torch.zeros(3)}
