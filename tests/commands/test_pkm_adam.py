"""The optimizer through the real commands, with dense and with sparse gradients."""

import pytest
import torch

from pkm_fairseq.ops.gpu import triton_imports
from tests.commands.commands import (
    OURS,
    assert_same_state,
    load_model_state,
    logged,
    pretraining,
    run,
    run_on_two_workers,
    run_until,
)

SPARSE = {**OURS, "pkm-grad": "sparse"}
# Without what makes workers, or batches, differ from one big batch.
EXACT = {"dropout": 0.0, "attention-dropout": 0.0, "pkm-query-norm": "layer"}

VALID = ["--user-dir", "pkm_fairseq", "--task", "masked_lm", "--cpu", "--batch-size", "8"]
VALID += ["--skip-invalid-size-inputs-valid-test"]


def losses(output):
    return [float(loss) for loss in logged(output, "loss")]


def test_dense_it_is_adam(data, tmp_path):
    results = []
    for optimizer in ("adam", "pkm_adam"):
        options = {**OURS, "optimizer": optimizer, "weight-decay": 0.0}
        options["adam-eps"] = 1e-8  # which fairseq's Adam adds elsewhere
        output = run("fairseq-train", *pretraining(data, tmp_path, updates=6, **options))
        results.append((losses(output), list(map(float, logged(output, "gnorm")))))
        (tmp_path / "checkpoint_last.pt").unlink()
    for actual, expected in zip(*results):
        assert actual == pytest.approx(expected, rel=2e-3)


@pytest.mark.skipif(not triton_imports(), reason="triton is not installed, or too old")
def test_with_the_gpu_kernels_it_learns_the_same(data, tmp_path):
    # In triton's interpreter, which takes seconds for each update; sparse, with all its kernels.
    options = {**SPARSE, "tokens-per-sample": 16, "batch-size": 2, "pkm-value-init": "normal"}
    results = []
    for name, env in {"eager": {"PKM_KERNELS": "0"}, "triton": {"TRITON_INTERPRET": "1"}}.items():
        arguments = pretraining(data, tmp_path / name, updates=3, **options)
        output = run("fairseq-train", *arguments, "--disable-validation", **env)
        results.append((losses(output), list(map(float, logged(output, "gnorm")))))
    for actual, expected in zip(*results):
        assert actual == pytest.approx(expected, abs=2e-3)


def test_a_sparse_run_killed_and_resumed_ends_bit_identical(data, tmp_path):
    options = {**SPARSE, "save-interval-updates": 10, "keep-interval-updates": 1}
    options = {**options, "update-freq": 2, "batch-size": 4, "pkm-values-lr": 0.02}
    options = {**options, "pkm-values-weight-decay": 0.01, "pkm-values-clip-norm": 0.5}
    options = {**options, "pkm-search-lr": 0.001}
    run("fairseq-train", *pretraining(data, tmp_path / "whole", updates=30, **options))
    command = ["fairseq-train", *pretraining(data, tmp_path / "killed", updates=30, **options)]
    run_until(r'"num_updates": "17"', *command)
    assert "Loaded checkpoint" in run(*command)
    assert_same_state(
        load_model_state(tmp_path / "killed" / "checkpoint_last.pt"),
        load_model_state(tmp_path / "whole" / "checkpoint_last.pt"),
    )


@pytest.mark.parametrize("grad", ["dense", "sparse"])
def test_two_workers_train_as_one_with_twice_the_batches_and_one_can_go_on(data, tmp_path, grad):
    options = {**OURS, **EXACT, "pkm-grad": grad, "batch-size": 4}
    alone = {**options, "update-freq": 2}
    one = run("fairseq-train", *pretraining(data, tmp_path / "one", updates=8, **alone))
    two = pretraining(data, tmp_path / "two", updates=8, **options)
    two = run_on_two_workers(tmp_path / "rendezvous", *two)
    for key in ("loss", "gnorm"):
        assert list(map(float, logged(two, key))) == pytest.approx(
            list(map(float, logged(one, key))), rel=2e-3
        )
    resumed = run("fairseq-train", *pretraining(data, tmp_path / "two", updates=10, **alone))
    assert logged(resumed, "num_updates") == ["9", "10"]


def test_workers_that_split_the_values_train_as_one_and_any_others_go_on(data, tmp_path):
    options = {**OURS, **EXACT, "batch-size": 4, "total-num-update": 6}
    alone = pretraining(data, tmp_path / "one", updates=6, **{**options, "update-freq": 2})
    one = run("fairseq-train", *alone)
    split = []
    for updates, shards in ((2, 2), (4, 1), (6, 2)):
        options.update({"pkm-shards": shards})
        workers = pretraining(data, tmp_path / "two", updates=updates, **options)
        split += losses(run_on_two_workers(tmp_path / f"rendezvous{updates}", *workers))
    assert split == pytest.approx(losses(one), rel=2e-3)
    ends = [load_model_state(tmp_path / name / "checkpoint_last.pt") for name in ("one", "two")]
    validation = run(
        "fairseq-validate", data, "--path", tmp_path / "two/checkpoint_last.pt", *VALID
    )
    assert "| valid | " in validation
    for name, expected in ends[0].items():
        torch.testing.assert_close(ends[1][name], expected, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": "adam"}, "--pkm-grad sparse needs --optimizer pkm_adam"),
        ({"amp": None}, "--optimizer pkm_adam cannot be used with --amp"),
        ({"pkm-shards": 2}, "--pkm-shards 2 does not divide the number of workers, 1"),
        ({"zero-sharding": "os"}, "--optimizer pkm_adam cannot be used with --zero-sharding os"),
        ({"pkm-values-lr-scheduled": None}, "has no effect without --pkm-values-lr"),
    ],
)
def test_what_cannot_work_is_refused_before_an_update(data, tmp_path, changed, message):
    options = {**SPARSE, **changed}
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options), fails=True)
    assert message in output.splitlines()[-1]


def test_a_checkpoint_of_the_other_kind_of_gradient_is_refused(data, tmp_path):
    run("fairseq-train", *pretraining(data, tmp_path, updates=1, **OURS))
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=2, **SPARSE), fails=True)
    assert "trained with --pkm-grad dense: give that, not sparse" in output.splitlines()[-1]
    again = pretraining(data, tmp_path, updates=2, **SPARSE, reset_optimizer=None)
    assert len(losses(run("fairseq-train", *again))) == 2
