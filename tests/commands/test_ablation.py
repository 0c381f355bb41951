"""The ablation: one of its rows at a tiny size, through the real command."""

import json

import torch

from tests.commands.commands import ROOT, load_model_state, run, run_until

TINY = ROOT / "user_dir_examples/ablation/tiny.yaml"


def test_it_goes_on_after_a_kill_and_writes_its_results(text, environment, tmp_path):
    dest = tmp_path / "dest"
    changes = ["vocab_size=300", "updates=4", "validate_every=4"]
    command = [environment / "bin/python", ROOT / "scripts/ablation/run.py", TINY, *changes]
    command += ["--corpus", text, "--dest", dest, "--rows", "d", "--only", "pretraining"]
    run_until("d.1: memory pretraining", *command)
    made_before = (dest / "data/done.json").read_text()
    assert "data: data" not in run(*command)
    assert (dest / "data/done.json").read_text() == made_before

    results = json.loads((dest / "results.json").read_text())
    (row,) = results["runs"]
    assert (row["row"], row["seed"], row["updates"]) == ("d", 1, 4)
    assert 0 < row["pkm_top1_usage"] <= 1
    assert 0 < abs(row["ppl_values_zero"] - row["ppl"]) < 100
    whole = load_model_state(dest / "d.1/checkpoint_last.pt")
    empty = load_model_state(dest / "d.1.empty/checkpoint.pt")
    for name, tensor in whole.items():
        kept = not name.endswith("pkm.values.weight")
        assert torch.equal(empty[name], tensor if kept else torch.zeros_like(tensor))
    assert results["data"]["unigram_perplexity"] > 1
    made = json.loads((dest / "d.1/done.json").read_text())
    assert made["command"].startswith("fairseq-train DEST/data/text --user-dir")
    assert made["seconds"] == row["seconds"]
    table = (dest / "results.md").read_text().splitlines()
    assert f" {row['ppl']:.1f} " in table[2]
    assert table[-1] == "Not run: a, b, c, e, f."
    assert (dest / "results.png").read_bytes().startswith(b"\x89PNG")
