"""The report on how checkpoints use their memories."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from pkm_fairseq.commands.cli import main
from pkm_fairseq.models import PKMRobertaModel
from pkm_fairseq.usage.report.checkpoints import names_apart
from pkm_fairseq.usage.report.history import read_history
from tests.commands.commands import MEMORY, MODEL, load_model_state, logged, pretraining, run

OURS = {
    **{"task": "pkm_masked_lm", "criterion": "pkm_masked_lm", "arch": "pkm_roberta"},
    **{**MODEL, **MEMORY, "pkm-layers": "0,1"},
}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run that validated twice: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    options = {
        **OURS,
        "tensorboard-logdir": folder / "tensorboard",
        "validate-interval-updates": 10,
        "save-interval-updates": 10,
    }
    return folder, run("fairseq-train", *pretraining(data, folder, updates=20, **options))


@pytest.fixture(scope="module")
def report(trained, data, tmp_path_factory):
    """The report on the run's first checkpoint and on its folder: the page and the figures."""
    folder, _ = trained
    dest = tmp_path_factory.mktemp("report")
    make_report(data, folder / "checkpoint_1_10.pt", folder, "--dest", dest, "--slots", 3, "--png")
    pictures = {path.stem for path in dest.glob("*.png")}
    name = folder.name
    of_memories = {f"{name}{file}.l{i}" for file in ("", "-checkpoint_1_10") for i in (0, 1)}
    assert pictures == {"comparison", "history", *of_memories}
    return (dest / "report.html").read_text(), json.loads((dest / "report.json").read_text())


def make_report(*args, **options):
    return run("pkm-fairseq", "report", *args, "--cpu", "--batch-size", 8, **options)


def test_its_figures_are_those_of_the_validations(trained, report):
    _, output = trained
    _, summary = report
    assert [checkpoint["updates"] for checkpoint in summary["checkpoints"]] == [10, 20]
    for number, checkpoint in enumerate(summary["checkpoints"]):
        for name, figure in checkpoint["figures"].items():
            if "drift" not in name and "moved" not in name:
                assert f"{figure:g}" == logged(output, f"valid_{name}", "valid")[number], name


def test_it_tells_the_drift_from_one_checkpoint_to_the_next(trained, report):
    _, output = trained
    _, summary = report
    first, second = (checkpoint["figures"] for checkpoint in summary["checkpoints"])
    assert "pkm_drift" not in first
    assert second["pkm_drift"] == pytest.approx(
        (second["pkm_l0_drift"] + second["pkm_l1_drift"]) / 2
    )
    last = output[output.rindex("| valid |") :]
    for name in ("pkm_drift", "pkm_l0_drift", "pkm_l1_drift"):
        assert [f"{second[name]:g}"] == logged(last, f"valid_{name}", "valid")


def test_it_tells_worth_and_how_far_values_moved_from_one_checkpoint_to_the_next(trained, report):
    folder, _ = trained
    page, summary = report
    first, second = (checkpoint["figures"] for checkpoint in summary["checkpoints"])
    assert "pkm_l1_worth" in second
    assert "pkm_worth" in page
    assert "pkm_moved" not in first
    key = "encoder.sentence_encoder.layers.1.pkm.values.weight"
    values = [load_model_state(folder / f"checkpoint_{name}.pt")[key] for name in ("1_10", "last")]
    moved = (values[1] - values[0]).square().sum(1).mean().sqrt().item()
    assert second["pkm_l1_moved"] == pytest.approx(moved)


def test_it_holds_its_pictures_and_the_history_of_the_run(trained, report):
    _, output = trained
    page, summary = report
    # The comparison, the history, and each of two memories of each of two checkpoints.
    assert len(re.findall('src="data:image/png;base64,iVBOR', page)) == 6
    assert not re.search(r'(src|href)="(?!data:)', page)
    printed = [float(value) for value in logged(output, "valid_pkm_top1_usage", "valid")]
    for number, checkpoint in enumerate(summary["checkpoints"], 1):
        steps, usage = zip(*checkpoint["history"]["pkm_top1_usage"])
        assert steps == (10, 20)[:number]
        assert usage == pytest.approx(printed[:number], rel=1e-5)


def test_of_what_a_resumed_run_logged_twice_the_last_counts(tmp_path):
    for logged_by_run in ({10: 1, 20: 2, 30: 3}, {20: 4, 30: 5, 40: 6}):
        with SummaryWriter(tmp_path / "valid") as writer:
            for step, value in logged_by_run.items():
                writer.add_scalar("loss", value, step)
    assert read_history(tmp_path, "valid", None) == {"loss": [(10, 1), (20, 4), (30, 5), (40, 6)]}
    assert read_history(tmp_path, "valid", 20) == {"loss": [(10, 1), (20, 4)]}
    assert read_history(tmp_path, "test", None) == read_history(None, "valid", None) == {}


def test_checkpoints_are_named_apart(tmp_path):
    paths = [tmp_path / "a" / "run.1", tmp_path / "b" / "run.1", tmp_path / "run" / "last.pt"]
    for folder in paths[:2]:
        folder.mkdir(parents=True)
    paths[2].parent.mkdir()
    paths[2].touch()
    assert names_apart(paths[1:]) == ["run.1", "run/last"]
    first, second, file = names_apart(paths)
    assert (first, second) == ("a/run.1", "b/run.1")
    assert file.endswith("run/last")
    assert names_apart(paths[:1] * 2) == ["run.1"] * 2


def test_it_shows_the_tokens_that_select_the_most_used_slots_with_most_weight(
    trained, report, data
):
    folder, _ = trained
    _, summary = report
    last = summary["checkpoints"][1]
    hub = PKMRobertaModel.from_pretrained(str(folder), "checkpoint_last.pt", str(data)).eval()
    reads = {layer: [] for layer in hub.model.memories()}
    for layer, memory in hub.model.memories().items():
        memory.search.register_forward_hook(
            lambda search, inputs, read, layer=layer: reads[layer].append(read)
        )
    hub.task.load_dataset("valid")
    sentences = []
    examples = hub.task.dataset("valid")
    examples.set_epoch(1)  # whose masks validations use
    for index in range(len(examples)):
        if len(examples[index]["net_input.src_tokens"]) <= MODEL["max-positions"]:
            sentences.append(examples[index]["net_input.src_tokens"])
            with torch.no_grad():
                hub.model(sentences[-1].unsqueeze(0), features_only=True)
    for layer, of_layer in last["slots"].items():
        slots, weights = (torch.cat(part).numpy() for part in zip(*reads[int(layer)]))
        totals = np.bincount(slots.ravel(), weights.ravel(), 256)
        assert [slot["slot"] for slot in of_layer] == totals.argsort()[::-1][:3].tolist()
        for slot in of_layer:
            assert slot["share"] == pytest.approx(totals[slot["slot"]] / totals.sum(), rel=1e-4)
            of_token = (weights * (slots == slot["slot"])).sum(-1).max(-1)
            expected = np.sort(of_token)[::-1][:5]
            found = [token["weight"] for token in slot["tokens"]]
            assert found == pytest.approx(expected.tolist(), rel=1e-4)
            best = torch.cat(sentences)[of_token.argmax()].item()
            symbol = hub.task.source_dictionary[best]
            assert slot["tokens"][0]["token"].strip() == symbol.replace("\u2581", " ").strip()


def test_of_a_run_that_is_writing_it_takes_the_newest_checkpoint_that_is_whole(
    trained, data, tmp_path
):
    folder, _ = trained
    shutil.copy(folder / "checkpoint_1_10.pt", tmp_path)
    whole = (folder / "checkpoint_last.pt").read_bytes()
    (tmp_path / "checkpoint_last.pt").write_bytes(whole[: len(whole) // 2])
    make_report(data, tmp_path, "--dest", tmp_path / "report", "--per-head", "--slots", 0)
    (checkpoint,) = json.loads((tmp_path / "report" / "report.json").read_text())["checkpoints"]
    assert checkpoint["file"].endswith("checkpoint_1_10.pt")
    assert checkpoint["history"]["pkm_kl"], "the checkpoint tells where its history is"
    assert "pkm_l1_h1_top1_usage" in checkpoint["figures"]


def test_what_cannot_be_reported_on_is_refused_in_one_line(trained, data, tmp_path, capsys):
    folder, _ = trained
    dense = tmp_path / "dense"
    options = {"arch": "roberta", **MODEL}
    run("fairseq-train", *pretraining(data, dense, updates=1, **options))
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes((folder / "checkpoint_last.pt").read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    for args, message in (
        ([data, tmp_path / "none.pt"], f"there is no checkpoint {tmp_path}/none.pt"),
        ([data, tmp_path / "empty"], f"there is no checkpoint in {tmp_path}/empty yet"),
        ([data, truncated], f"{truncated} cannot be read: "),
        ([data, dense], "has no memory"),
        ([tmp_path, folder], f"{tmp_path} is not data for the task of"),
        ([data, folder, "--subset", "dev"], "--subset dev cannot be read: "),
        ([data, folder, "--batch-size", "0"], "argument --batch-size: 0 is below 1"),
    ):
        with pytest.raises(SystemExit) as refusal:
            main(["report", *args, "--dest", tmp_path / "report", "--cpu"])
        printed = str(refusal.value.code) + capsys.readouterr().err
        assert "error: " in printed
        assert message in printed
    assert not (tmp_path / "report").exists()
