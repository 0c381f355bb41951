"""Sparse memory finetuning through the real commands: listing slots, and training them alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pkm_fairseq.commands.cli import main
from pkm_fairseq.finetuning.accesses import task_for
from pkm_fairseq.models import PKMRobertaModel
from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.usage.observe import observe_reads
from tests.commands.commands import (
    MEMORY,
    MODEL,
    assert_same_state,
    load_model_state,
    logged,
    pretraining,
    run,
)

OURS = {
    **{"task": "pkm_masked_lm", "criterion": "pkm_masked_lm", "arch": "pkm_roberta"},
    **{**MODEL, **MEMORY, "pkm-layers": "0,1", "pkm-value-init": "normal"},
}
COUNT = 40
VALUES = "encoder.sentence_encoder.layers.{}.pkm.values.weight"


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    run("fairseq-train", *pretraining(data, folder, updates=2, **OURS), "--disable-validation")
    return folder / "checkpoint_last.pt"


def list_slots(start, data, dest, *extra):
    command = ["slots", start, "--data", data, "--background", data, data, "--count", COUNT]
    command += ["--dest", dest, "--cpu", "--batch-size", 4, *extra]
    main(command)
    return {of["layers"][0]: of["slots"] for of in json.loads(dest.read_text())["pkm_slots"]}


@pytest.fixture(scope="module")
def slots(start, data, tmp_path_factory):
    """A list of slots: its file, and the slots by layer."""
    path = tmp_path_factory.mktemp("slots") / "slots.json"
    return path, list_slots(start, data, path, "--subset", "valid")


def test_the_list_is_that_of_the_accesses(start, slots, data):
    hub = PKMRobertaModel.from_pretrained(
        *(str(start.parent), "checkpoint_last.pt", str(data)),
        sentencepiece_model=str(data / "sentencepiece.bpe.model"),
    ).eval()
    hub.task.load_dataset("valid")
    batches = hub.task.get_batch_iterator(
        hub.task.dataset("valid"), max_sentences=4, max_positions=32, ignore_invalid_inputs=True
    )
    read = {0: [], 1: []}
    for batch in batches.next_epoch_itr(shuffle=False):
        with torch.no_grad(), observe_reads(hub.model.memories()) as reads:
            hub.model(**batch["net_input"], features_only=True)
        for layer in read:
            ((of_batch, _),) = reads[layer]
            read[layer].append(of_batch.flatten().numpy())
    assert json.loads(slots[0].read_text())["background_batches"] == 2 * len(batches)
    for layer, of_layer in read.items():
        accesses = np.bincount(np.concatenate(of_layer), minlength=256)
        # Twice the same background is twice as many batches.
        with_slot = 2 * sum(np.isin(np.arange(256), of_batch) for of_batch in of_layer)
        scores = accesses / accesses.sum() * np.log((2 * len(of_layer) + 1) / (with_slot + 1))
        listed = np.isin(np.arange(256), slots[1][layer])
        assert listed.sum() == COUNT
        # The last bits of a sum, which differ by process, decide a read now and then.
        cut = np.sort(scores)[-COUNT]
        assert listed[scores > 1.1 * cut].all()
        assert not listed[scores < cut / 1.1].any()
        assert (scores > 1.1 * cut).sum() > COUNT / 2


def train(data, start, slots, save_dir, updates=4, **options):
    options = {**OURS, "pkm-train-slots": slots[0], "save-interval-updates": 2, **options}
    options = {"finetune-from-model": start, "update-freq": 2, "clip-norm": 0.1, **options}
    arguments = pretraining(data, save_dir, updates=updates, **options)
    return ["fairseq-train", *arguments, "--disable-validation"]


def assert_only_the_slots_moved(before, after, slots):
    for layer, listed in slots[1].items():
        name = VALUES.format(layer)
        moved = (before[name] != after[name]).any(1).nonzero().squeeze(1).tolist()
        assert set(moved) <= set(listed)
        assert len(moved) > len(listed) / 2


def test_all_other_rows_stay_and_a_resumed_run_ends_bit_identical(data, start, slots, tmp_path):
    options = {"optimizer": "pkm_adam", "pkm-grad": "sparse", "pkm-values-weight-decay": 0.5}
    run(*train(data, start, slots, tmp_path / "whole", **options))
    before, after = load_model_state(start), load_model_state(tmp_path / "whole/checkpoint_last.pt")
    assert before.keys() == after.keys()
    assert_only_the_slots_moved(before, after, slots)
    assert not torch.equal(*(state["encoder.lm_head.bias"] for state in (before, after)))
    state = torch.load(tmp_path / "whole/checkpoint_last.pt", weights_only=True)
    moments = [of["exp_avg"] for of in state["last_optimizer_state"]["state"].values()]
    assert not any(len(moment) == 256 and moment.dim() == 2 for moment in moments)

    (tmp_path / "again").mkdir()
    half = tmp_path / "again/checkpoint_last.pt"
    shutil.copy(tmp_path / "whole/checkpoint_1_2.pt", half)
    other = tmp_path / "other.json"
    other.write_text(slots[0].read_text().replace(f"[{slots[1][0][0]}, ", "[", 1))
    for changed, message in (
        (
            {"pkm-train-slots": other},
            "is of another --pkm-train-slots or --pkm-freeze-rest: give those",
        ),
        ({"pkm-freeze-rest": None}, "give --pkm-freeze-rest and --pkm-train-slots as it was"),
    ):
        command = train(data, start, slots, half.parent, **options, **changed)
        assert message in run(*command, fails=True).splitlines()[-1]
    resumed = run(*train(data, start, slots, half.parent, **options))
    assert logged(resumed, "num_updates") == ["3", "4"]
    assert_same_state(load_model_state(half), after)


def test_with_the_rest_frozen_nothing_else_changes_whatever_the_optimizer(
    data, start, slots, tmp_path
):
    options = {"optimizer": "adam", "weight-decay": 0.5, "pkm-freeze-rest": None}
    run(*train(data, start, slots, tmp_path, **options))
    before, after = load_model_state(start), load_model_state(tmp_path / "checkpoint_last.pt")
    assert_only_the_slots_moved(before, after, slots)
    for layer in slots[1]:
        assert before.pop(VALUES.format(layer)).shape == after.pop(VALUES.format(layer)).shape
    assert any("query_norm.running_mean" in name for name in after)
    assert_same_state(after, before)


def test_what_cannot_be_listed_is_refused_in_one_line(start, data, tmp_path, capsys):
    for folder, extra, message in (
        (tmp_path, (), f"{tmp_path} is no folder of binary data"),
        (data, ("--subset", "dev"), "--subset dev cannot be read"),
        (data, ("--background", tmp_path), f"{tmp_path} is no folder of binary data"),
    ):
        with pytest.raises(SystemExit, match=f"error: {message}"):
            list_slots(start, folder, tmp_path / "slots.json", *extra)
    assert not (tmp_path / "slots.json").exists()
    with pytest.raises(RefusalError, match="no RoBERTa"):
        task_for(data, OmegaConf.create({"model": {"_name": "transformer_lm"}}))
    with pytest.raises(SystemExit):
        list_slots(start, data, tmp_path)
    assert f"--dest {tmp_path} is a folder: name a file" in capsys.readouterr().err
