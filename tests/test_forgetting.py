"""What scripts/forgetting.py runs and makes of it, without a training."""

from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def forgetting(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return import_module("forgetting")


@pytest.fixture
def args(tmp_path):
    return Namespace(
        **{"checkpoint": Path("c.pt"), "old": Path("CoLA-bin"), "new": Path("RTE-bin")},
        **{"background": [Path("text")], "dest": tmp_path, "count": 5, "slots_batch_size": 1},
        **{"seeds": [1], "old_updates": 4, "new_updates": None, "frozen_lr": 0.5, "cpu": True},
        overrides=["optimization.lr=[0.1]"],
    )


def test_each_way_goes_on_from_the_old_task_and_keeps_its_head(forgetting, args):
    made = forgetting.make_steps(args, {"pkm_layers": [2], "encoder_layers": 4}, 128)
    steps = {step.name: step for step in made}
    assert len(steps) == len(made) == 3 + 2 * len(forgetting.WAYS)
    assert "+criterion.classification_head_name=cola" in steps["old.1"].command
    last, slots = args.dest / "old.1/checkpoint_last.pt", args.dest / "list.1/slots.json"
    for way, (_, listed, frozen) in forgetting.WAYS.items():
        command = steps[f"{way}.1"].command
        assert f"checkpoint.finetune_from_model={last}" in command
        assert "+criterion.classification_head_name=rte" in command
        assert "+model.load_checkpoint_heads=true" in command
        assert (f"task.pkm_train_slots={slots}" in command) == listed
        assert f"task.pkm_freeze_rest={str(frozen).lower()}" in command
        assert f"optimization.lr=[{0.5 if frozen else 0.1}]" in command
        assert ("list.1" in steps[f"{way}.1"].needs) == listed
        score = steps[f"{way}.1.score"]
        assert score.command[score.command.index("--classification-head-name") + 1] == "cola"
        assert score.command[1] == "CoLA-bin"


def test_the_table_has_the_medians_of_gain_and_loss(forgetting, args):
    args.seeds = [1, 2, 3]
    for seed in args.seeds:
        for name in ("old", *forgetting.WAYS):
            folder = args.dest / f"{name}.{seed}"
            folder.mkdir()
            log = (
                f"num. shared model params: 2,000 (num. trained: 1,0{seed}0)\n"
                "num. expert model params: 0 (num. trained: 0)\n"
                f'"valid_accuracy": "50"\n"valid_accuracy": "6{seed}"'
            )
            (folder / "log").write_text(log)
            scored = args.dest / f"{name}.{seed}.score"
            scored.mkdir()
            (scored / "log").write_text(f'"valid_mcc": "{(4 if name == "old" else 1) * seed * 10}"')
    ways = {way: forgetting.read_way(args, way) for way in forgetting.WAYS}
    table = forgetting.make_table({"old": "CoLA", "new": "RTE", "ways": ways})
    header, _, first, *_ = table.splitlines()
    assert header == (
        "| trained, with the head | numbers | CoLA, mcc: before | after | lost | RTE, accuracy |"
    )
    assert first == "| everything | 1,020 | 80.0 | 20.0 | 60.0 | 62.0 |"
