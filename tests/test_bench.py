"""The benchmarks run, and stop where what they compare does not compute the same."""

import json
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import start_processes

from pkm_fairseq.ops.cpu import numba_imports
from pkm_fairseq.ops.gpu import triton_imports
from tests.commands import forked  # noqa: F401 - has the server of forks import what takes long

SCRIPTS = Path(__file__).parents[1] / "scripts/bench"
TINY = "--topk 4 --heads 2 --dim 8 --key-dim 6 --repeats 2"
TINY_LAYER = f"{TINY} --tokens 6 4 --subkeys 8 9"
TINY_OPS = f"{TINY} --tokens 6 --subkeys 8"
TINY_MODELS = (
    "--batch 2 --length 8 --vocabulary 30 --repeats 1 --set encoder_layers=9 "
    "encoder_embed_dim=16 encoder_ffn_embed_dim=16 encoder_attention_heads=2 pkm_subkeys=8 "
    "pkm_topk=4 pkm_key_dim=8"
)
MODELS = (
    "--inference roberta_base pkm_roberta_base "
    "--training roberta_base pkm_roberta_base:pkm_grad=sparse:pkm_layers=[2]"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


def test_pieces_are_measured_with_and_without(run, capsys):
    small = {"--slots": 64, "--dim": 8, "--tokens": 4, "--reads": 3, "--repeats": 1, "--text": 99}
    run("bench_pieces", [word for pair in small.items() for word in pair])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "huge pages, forward",
        "kept gradient, forward and backward",
        "trained rows, update",
        "looking through binary text, loading",
    ]


def test_layers_are_compared_and_drawn(run, tmp_path, capsys):
    files = ["--json", tmp_path / "runs/layer.json", "--plot", tmp_path / "runs/layer.png"]
    run("bench_layer", [*TINY_LAYER.split(), *files])
    record = json.loads((tmp_path / "runs/layer.json").read_text())
    assert {(r["tokens"], r["subkeys"]) for r in record["results"]} == {(6, 8), (4, 8), (6, 9)}
    ours = [r for r in record["results"] if r["layer"] == "ours, sparse"]
    assert all(r["times_faster_than"]["baseline"]["step"] > 0 for r in ours)
    assert all(r["step_ms"] == sorted(r["step_ms"]) for r in ours)
    assert torch.__version__.startswith(record["machine"]["versions"]["torch"])
    assert (tmp_path / "runs/layer.png").read_bytes().startswith(b"\x89PNG")
    assert "ours, dense" in capsys.readouterr().out


def test_shards_are_measured_beside_their_formulas(run, tmp_path, monkeypatch):
    forks = partial(start_processes, start_method="forkserver")
    monkeypatch.setattr("torch.multiprocessing.spawn", forks)
    options = "--shards 1 --subkeys 8 --value-dim 8 --tokens 6 --topk 4 --heads 2 --json"
    run("bench_shards", [*options.split(), tmp_path / "shards.json"])
    (row,) = json.loads((tmp_path / "shards.json").read_text())["results"]
    assert row["bytes_by_formula"] == 0
    assert row["mib_by_formula"] == 4 * 64 * 8 * 4 / 2**20
    assert import_module("bench_shards").bytes_of_token(4, 128, 256) == 3 * (12 * 128 + 8 * 64)


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
    with pytest.raises(ValueError, match=f"ours, dense differs from the baseline: {what}"):
        run("bench_layer", TINY_LAYER.split())


def test_it_stops_where_an_update_does_not_clip(run, monkeypatch):
    contestant = import_module("contestants").Contestant
    update = contestant.update

    def forget_to_clip(self):
        self.optimizer.step() if self.is_ours else update(self)

    monkeypatch.setattr(contestant, "update", forget_to_clip)
    with pytest.raises(ValueError, match="ours, dense differs from the baseline: the update of"):
        run("bench_layer", TINY_LAYER.split())


def test_models_are_measured(run, tmp_path):
    run("bench_models", [*MODELS.split(), *TINY_MODELS.split(), "--json", tmp_path / "models.json"])
    record = json.loads((tmp_path / "models.json").read_text())
    assert len(record["results"]) == 4
    assert all(r["words_per_second"][1] > 0 for r in record["results"])
    assert record["table"][0]["measured"] > 0
    assert [r["times_first"] == 1 for r in record["results"]] == [True, False] * 2


def test_models_with_tables_in_fewer_bits_are_smaller(run, tmp_path):
    models = [f"pkm_roberta:pkm_layers=[2]:pkm_table_dtype={d}" for d in ("model", "bf16", "int8")]
    options = [*TINY_MODELS.split(), "pkm_subkeys=512", "--inference", *models, "--training"]
    run("bench_models", [*options, "--json", tmp_path / "models.json"])
    results = json.loads((tmp_path / "models.json").read_text())["results"]
    mib = [result["mib"] for result in results]
    # 512² values of 16 numbers; int8 with a float32 for each value.
    assert mib[0] - mib[1] == pytest.approx(8, abs=1)
    assert mib[0] - mib[2] == pytest.approx(11, abs=1)


def test_what_torch_cannot_train_in_bfloat16_is_measured_in_float16(run, monkeypatch, capsys):
    embedding_bag = torch.nn.functional.embedding_bag

    def without_bfloat16(slots, values, *args, **kwargs):
        if values.dtype == torch.bfloat16 and torch.is_grad_enabled():
            raise NotImplementedError("not implemented for 'BFloat16'")
        return embedding_bag(slots, values, *args, **kwargs)

    monkeypatch.setattr("torch.nn.functional.embedding_bag", without_bfloat16)
    run("bench_layer", [*TINY_LAYER.split(), "--dtype", "bfloat16"])
    printed = capsys.readouterr().out
    assert "baseline is measured in torch.float16: torch cannot train it in bfloat16" in printed
    assert "ours, dense is" not in printed
    assert "left out" not in printed.replace("product-key-memory is left out", "")


def test_the_table_says_what_was_reached(run, monkeypatch, capsys):
    targets = import_module("targets")
    work = targets.Work(tokens=6, dim=8, subkeys=8, heads=2, topk=4, key_dim=6)
    entries = ((targets.BASELINE, work),), (targets.DENSE, work)
    table = [
        targets.Target("within reach", "at least", 1e-9, "step", *entries),
        targets.Target("out of reach", "at most", 1e-9, "forward", *entries),
    ]
    monkeypatch.setattr("bench_layer.TARGETS", table)
    run("bench_layer", [*TINY_LAYER.split(), "--table"])
    reached, missed = capsys.readouterr().out.splitlines()[-2:]
    assert reached.startswith("within reach (baseline): at least 1e-09, measured ")
    assert reached.endswith("reached")
    assert missed.startswith("out of reach (baseline)")
    assert missed.endswith("MISSED")


@pytest.mark.skipif(not numba_imports(), reason="numba is not installed")
def test_ops_are_measured_beside_a_copy(run, tmp_path):
    run("bench_ops", [*TINY_OPS.split(), "--json", tmp_path / "ops.json"])
    results = json.loads((tmp_path / "ops.json").read_text())["results"]
    assert results["bag backward, dense"]["times_as_long"].keys() == {"torch", "EmbeddingBag"}
    copy, bag = results["copy of the table"], results["bag"]
    assert copy["of_copy_bandwidth"] == 1
    # 6 tokens read 2 heads' 4 rows of 8 numbers, a copy reads and writes 64.
    bandwidth = 6 * 2 * 4 * 8 * 4 / bag["quartiles_ms"]["kernels"][1] / 1e6
    assert bag["gb_per_second"] == pytest.approx(bandwidth)
    bandwidth = 2 * 64 * 8 * 4 / copy["quartiles_ms"]["torch"][1] / 1e6
    assert copy["gb_per_second"] == pytest.approx(bandwidth)


@pytest.mark.skipif(not numba_imports(), reason="numba is not installed")
def test_it_stops_where_the_kernels_compute_something_else(run, monkeypatch):
    search = import_module("bench_ops").product_key_search

    def wrong_search(*args, **kwargs):
        found, slots = search(*args, **kwargs)
        return (1.001 if os.environ["PKM_KERNELS"] == "1" else 1) * found, slots

    monkeypatch.setattr("bench_ops.product_key_search", wrong_search)
    with pytest.raises(ValueError, match="search: torch differs from the kernels"):
        run("bench_ops", TINY_OPS.split())


@pytest.mark.skipif(not triton_imports(), reason="triton is not installed")
def test_figures_of_the_gpu_kernels(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PKM_KERNELS", "1")
    options = ["--device", DEVICE, "--dest", tmp_path]
    # Triton's interpreter would take a minute for the layers.
    run(
        "bench_gpu",
        [*options, "--only", "layer", "models", f"--layer={TINY_OPS}", f"--models={TINY_MODELS}"],
    )
    whole = json.loads((tmp_path / "figures.json").read_text())["figures"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run("bench_gpu", [*options, "--only", "ops", f"--ops={TINY_OPS}"])
    ops = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert [(row["what"].split(",")[0], row["figure"]) for row in [*ops, *whole]] == [
        ("bag forward", "at least 0.8"),
        ("bag backward", "at least 0.6"),
        ("search", "at least 5"),
        ("layer step", "at least 6"),
        ("layer step", "at least 6"),
        ("training", "at least 0.85"),
        ("training", "at least 2"),
    ]
    assert all(row["measured"] > 0 for row in [*ops, *whole])
    assert os.environ["PKM_KERNELS"] == "1"


@pytest.mark.skipif(not triton_imports(), reason="triton is not installed")
def test_tiles_are_measured_beside_those_in_use_and_one_that_fails_is_named(
    run, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tiles = import_module("bench_tiles")
    monkeypatch.setattr(tiles, "TILES", {("weighted_bag", "TILE"): ((tiles.BAG,), (256, -1))})
    run("bench_tiles", [*TINY_OPS.split(), "--device", DEVICE, "--json", tmp_path / "tiles.json"])
    small, none = json.loads((tmp_path / "tiles.json").read_text())["results"]
    assert (small["in_use"], small["size"]) == (4096, 256)
    assert small["times_faster"] > 0
    assert "times_faster" not in none
    assert f"bag: TILE -1 for 4096, {none['failed']}" in capsys.readouterr().out
