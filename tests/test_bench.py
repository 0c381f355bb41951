"""The benchmarks run, and stop where layers do not compute the same."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts/bench"
TINY_LAYER = "--tokens 6 4 --subkeys 8 9 --topk 4 --heads 2 --dim 8 --key-dim 6 --repeats 2"
TINY_MODELS = (
    "--inference roberta_base pkm_roberta_base "
    "--training roberta_base pkm_roberta_base:pkm_grad=sparse:pkm_layers=[2] "
    "--batch 2 --length 8 --vocabulary 30 --warmups 0 --repeats 1 --set encoder_layers=9 "
    "encoder_embed_dim=16 encoder_ffn_embed_dim=16 encoder_attention_heads=2 pkm_subkeys=8 "
    "pkm_topk=4 pkm_key_dim=8"
)


@pytest.fixture
def run(monkeypatch):
    """Runs a benchmark in this process."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()

    def run(name, options):
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        import_module(name).main()

    yield run
    torch.set_num_threads(threads)


def test_layers_are_compared_and_drawn(run, tmp_path, capsys):
    files = ["--json", tmp_path / "runs/layer.json", "--plot", tmp_path / "runs/layer.png"]
    run("bench_layer", [*TINY_LAYER.split(), *files])
    record = json.loads((tmp_path / "runs/layer.json").read_text())
    assert {(r["tokens"], r["subkeys"]) for r in record["results"]} == {(6, 8), (4, 8), (6, 9)}
    ours = [r for r in record["results"] if r["layer"] == "ours, sparse"]
    assert all(r["times_faster_than"]["textbook"]["step"] > 0 for r in ours)
    assert all(r["step_ms"] == sorted(r["step_ms"]) for r in ours)
    assert torch.__version__.startswith(record["machine"]["versions"]["torch"])
    assert (tmp_path / "runs/layer.png").read_bytes().startswith(b"\x89PNG")
    assert "ours, dense" in capsys.readouterr().out


def test_what_is_not_installed_is_left_out_and_named(run, monkeypatch, capsys):
    monkeypatch.setattr("bench_layer.is_installed", lambda layer: layer != "product-key-memory")
    run("bench_layer", TINY_LAYER.split())
    printed = capsys.readouterr().out
    assert "product-key-memory is left out: it is not installed" in printed


def wrong_read(layer):
    forward = layer.forward
    layer.forward = lambda x: 1.001 * forward(x)


def wrong_gradient(layer):
    layer.values.weight.register_hook(lambda grad: 0.999 * grad)


@pytest.mark.parametrize(
    ("make_wrong", "what"),
    [(wrong_read, "what is read"), (wrong_gradient, "the gradient of values.weight")],
)
def test_it_stops_where_a_layer_computes_something_else(run, monkeypatch, make_wrong, what):
    make_layer = import_module("contestants").make_layer

    def make_wrong_layer(name, work):
        layer = make_layer(name, work)
        if name == "ours, dense":
            make_wrong(layer)
        return layer

    monkeypatch.setattr("contestants.make_layer", make_wrong_layer)
    with pytest.raises(ValueError, match=f"ours, dense differs from the textbook: {what}"):
        run("bench_layer", TINY_LAYER.split())


def test_it_stops_where_an_update_does_not_clip(run, monkeypatch):
    contestant = import_module("contestants").Contestant
    update = contestant.update

    def forget_to_clip(self):
        self.optimizer.step() if self.is_ours else update(self)

    monkeypatch.setattr(contestant, "update", forget_to_clip)
    with pytest.raises(ValueError, match="ours, dense differs from the textbook: the update of"):
        run("bench_layer", TINY_LAYER.split())


def test_models_are_measured(run, tmp_path):
    run("bench_models", [*TINY_MODELS.split(), "--json", tmp_path / "models.json"])
    record = json.loads((tmp_path / "models.json").read_text())
    assert len(record["results"]) == 4
    assert all(r["words_per_second"][1] > 0 for r in record["results"])
    assert record["table"][0]["measured"] > 0
    assert [r["times_first"] == 1 for r in record["results"]] == [True, False] * 2
