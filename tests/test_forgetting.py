"""What scripts/ablation/forgetting.py runs and makes of it, without a training."""

from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def forgetting(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts/ablation"))
    return import_module("forgetting")


@pytest.fixture
def args(forgetting, tmp_path):
    old, new = tmp_path / "CoLA-bin", tmp_path / "RTE-bin"
    for folder in (old, new):
        (folder / "input0").mkdir(parents=True)
    return Namespace(
        **{"checkpoint": Path("c.pt"), "old": old, "new": new, "background": [Path("text")]},
        **{"dest": tmp_path, "count": 5, "slots_batch_size": 1, "seeds": [1], "cpu": True},
        **{"old_updates": 4, "new_updates": None, "frozen_lr": 0.5},
        ways=[*forgetting.WAYS],
        model={"pkm_layers": [2], "encoder_layers": 4, "max_positions": 128},
        text={"tokens_per_sample": 32, "sample_break_mode": "none"},
        overrides=["optimization.lr=[0.1]"],
    )


def test_each_way_goes_on_from_the_old_task_and_keeps_its_head(forgetting, args):
    made = forgetting.make_steps(args)
    steps = {step.name: step for step in made}
    assert len(steps) == len(made) == 3 + 3 * len(forgetting.WAYS)
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
        for side, head in (("old", "cola"), ("new", "rte")):
            score = steps[f"{way}.1.{side}.score"].command
            assert score[score.index("--classification-head-name") + 1] == head
            assert score[1] == str(getattr(args, side))


def test_ways_can_be_chosen_and_a_list_of_slots_is_made_where_one_is_needed(forgetting, args):
    for ways in (["full"], ["frozen-values", "full"], ["frozen-slots"]):
        args.ways = ways
        names = [step.name for step in forgetting.make_steps(args)]
        assert [way for way in ways if f"{way}.1" in names] == ways
        assert len(names) == 2 + 3 * len(ways) + (ways == ["frozen-slots"])
        assert ("list.1" in names) == (ways == ["frozen-slots"])


def test_on_text_each_way_goes_on_from_the_checkpoint_and_both_are_scored_before(forgetting, args):
    args.old, args.new, args.new_updates = Path("text"), Path("other"), 50
    steps = {step.name: step for step in forgetting.make_steps(args)}
    assert len(steps) == 2 + 1 + 3 * len(forgetting.WAYS)
    for side in ("old", "new"):
        command = steps[f"{side}.score"].command
        assert command[1] == str(getattr(args, side))
        assert command[command.index("--path") + 1] == "c.pt"
    assert "c.pt" in steps["list.1"].command
    for way in forgetting.WAYS:
        command = steps[f"{way}.1"].command
        assert {"checkpoint.finetune_from_model=c.pt", "task.data=other"} < set(command)
        assert {"task.tokens_per_sample=32", "lr_scheduler.warmup_updates=3"} < set(command)
        assert not any("head" in part for part in command if part.startswith("+"))
        assert [steps[f"{way}.1.{side}.score"].command[1] for side in ("old", "new")] == [
            *("text", "other")
        ]


def write_log(args, name, text):
    (args.dest / name).mkdir()
    (args.dest / name / "log").write_text(text)


def write_logs(args, forgetting, metric):
    """Writes what the steps print: 200 a seed before, 100 a seed after, 60 and the seed new."""
    for seed in args.seeds:
        write_log(args, f"old.{seed}.score", f'"valid_{metric["old"]}": "{200 * seed}"')
        for way in forgetting.WAYS:
            trained = (
                f"num. shared model params: 2,000 (num. trained: 1,0{seed}0)\n"
                "num. expert model params: 0 (num. trained: 0)\n"
            )
            write_log(args, f"{way}.{seed}", trained)
            for side, value in (("old", 100 * seed), ("new", 60 + seed)):
                text = f'"valid_{metric[side]}": "50"\n"valid_{metric[side]}": "{value}"'
                write_log(args, f"{way}.{seed}.{side}.score", text)


def test_the_table_has_the_medians_of_gain_and_loss(forgetting, args):
    args.seeds = [1, 2, 3]
    write_logs(args, forgetting, {"old": "mcc", "new": "accuracy"})
    ways = {way: forgetting.read_way(args, way) for way in forgetting.WAYS}
    results = {"old": forgetting.title_of(args.old), "new": forgetting.title_of(args.new)}
    header, _, first, *_ = forgetting.make_table({**results, "ways": ways}).splitlines()
    assert header == (
        "| trained | numbers | CoLA (mcc) before | CoLA (mcc) after | RTE (accuracy) after |"
    )
    assert first == "| everything | 1,020 | 400.0 | 200.0 | 62.0 |"


def test_the_table_of_text_has_what_it_was_before(forgetting, args):
    args.old, args.new = Path("text"), Path("other")
    write_logs(args, forgetting, {"old": "ppl", "new": "ppl"})
    for side, ppl in (("old", 120), ("new", 300.25)):
        write_log(args, f"{side}.score", f'"valid_ppl": "{ppl}"')
    ways = {way: forgetting.read_way(args, way) for way in forgetting.WAYS}
    results = {"old": forgetting.title_of(args.old), "new": forgetting.title_of(args.new)}
    header, _, first, *_ = forgetting.make_table({**results, "ways": ways}).splitlines()
    assert header.endswith("| other (ppl) before | other (ppl) after |")
    assert first == "| everything | 1,010 | 120.0 | 100.0 | 300.2 | 61.0 |"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new": "text"}, "both be tasks of GLUE, or both text"),
        ({"old": "text", "new": "text"}, "add --new-updates"),
        ({"old": "text", "new": "text", "new_updates": 5}, "remove --old-updates"),
        ({"checkpoint": "none.pt"}, "none.pt does not exist"),
        ({"count": 0}, "--count 0 is below 1"),
        ({"overrides": ["lr"]}, "lr changes nothing: write NAME=VALUE"),
        ({"new": "STS-B-bin"}, "STS-B-bin is scored by numbers: choose classes"),
    ],
)
def test_what_cannot_be_compared_is_refused(forgetting, args, changes, message):
    args.background, args.checkpoint = [args.old], args.old
    (args.dest / "text").mkdir()
    (args.dest / "STS-B-bin/input0").mkdir(parents=True)
    for name, value in changes.items():
        setattr(args, name, args.dest / value if isinstance(value, str) else value)
    with pytest.raises(ValueError, match=message):
        forgetting.run(args)
