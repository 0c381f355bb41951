"""Pretraining with memory through fairseq's stock commands."""

import os
import pickle
import resource

import pytest
import torch
from fairseq.checkpoint_utils import save_ema_as_checkpoint

from pkm_fairseq.models import PKMRobertaModel
from tests.commands.commands import (
    MEMORY,
    MODEL,
    OURS,
    TIMEOUT,
    assert_same_state,
    load_model_state,
    logged,
    pretraining,
    run,
    run_until,
    start,
)


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """A short, whole run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    options = {**OURS, "tensorboard-logdir": folder / "tensorboard"}
    return folder, run("fairseq-train", *pretraining(data, folder, updates=40, **options))


def test_the_loss_falls_and_the_memory_learns(trained):
    folder, output = trained
    losses = [float(loss) for loss in logged(output, "loss")]
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5]) - 3
    state = load_model_state(folder / "checkpoint_last.pt")
    values = state["encoder.sentence_encoder.layers.1.pkm.values.weight"]
    assert values.shape == (256, 32)
    assert values.any(1).float().mean() > 0.5, "most values have kept their initial zeros"
    assert list((folder / "tensorboard" / "train_inner").glob("events*"))


def test_fairseq_validate_gives_the_loss_that_training_gave(trained, data):
    folder, output = trained
    validated = run(
        *("fairseq-validate", data, "--user-dir", "pkm_fairseq", "--task", "masked_lm", "--cpu"),
        *("--path", folder / "checkpoint_last.pt", "--batch-size", 8, "--num-workers", 0),
        *("--skip-invalid-size-inputs-valid-test", "--log-format", "json"),
        *("--required-batch-size-multiple", 1, "--data-buffer-size", 0),
    )
    assert logged(validated, "valid_loss", "valid") == logged(output, "valid_loss", "valid")[-1:]


def test_a_checkpoint_is_evaluated_with_int8_values_and_not_trained(trained, data, tmp_path):
    folder, output = trained
    option = {"pkm_table_dtype": "int8"}
    validated = run(
        *("fairseq-validate", data, "--user-dir", "pkm_fairseq", "--task", "masked_lm", "--cpu"),
        *("--path", folder / "checkpoint_last.pt", "--batch-size", 8, "--num-workers", 0),
        *("--skip-invalid-size-inputs-valid-test", "--log-format", "json"),
        *("--required-batch-size-multiple", 1, "--data-buffer-size", 0),
        *("--model-overrides", option),
    )
    assert "256, 32, torch.int8" in validated
    losses = [logged(printed, "valid_loss", "valid")[-1] for printed in (validated, output)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=0.01)

    load = PKMRobertaModel.from_pretrained
    hub, rounded = (
        load(str(folder), "checkpoint_last.pt", str(data), **options).eval()
        for options in ({}, option)
    )
    assert rounded.model.memories()[1].values.weight.dtype == torch.int8
    tokens = hub.encode("The assert statement")
    features, of_rounded = (model.extract_features(tokens) for model in (hub, rounded))
    assert not torch.equal(of_rounded, features)
    torch.testing.assert_close(of_rounded, features, rtol=0, atol=0.05)

    options = {**OURS, "pkm-table-dtype": "int8"}
    refused = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options), fails=True)
    expected = "pkm_fairseq: --pkm-table-dtype int8 is for evaluation"
    assert refused.splitlines()[-1].startswith(expected)


def test_a_run_killed_and_resumed_ends_bit_identical_to_one_that_was_not(data, tmp_path):
    # The kill comes in the middle of the second epoch.
    options = {**OURS, "save-interval-updates": 10, "keep-interval-updates": 1}
    whole = run("fairseq-train", *pretraining(data, tmp_path / "whole", updates=60, **options))
    command = ["fairseq-train", *pretraining(data, tmp_path / "killed", updates=60, **options)]
    run_until(r'"num_updates": "47"', *command)
    # Nothing cuts this file off but other programs.
    os.truncate(tmp_path / "killed" / "checkpoint_last.pt", 1000)
    resumed = run(*command)
    assert "checkpoint_last.pt is cut off: going on from" in resumed
    assert "Loaded checkpoint" in resumed
    losses = dict(zip(logged(resumed, "num_updates"), logged(resumed, "loss")))
    assert min(map(int, losses)) == 41
    assert dict(zip(logged(whole, "num_updates"), logged(whole, "loss"))).items() >= losses.items()
    assert_same_state(
        load_model_state(tmp_path / "killed" / "checkpoint_last.pt"),
        load_model_state(tmp_path / "whole" / "checkpoint_last.pt"),
    )


def test_a_checkpoint_for_which_there_is_no_room_is_named_and_not_there(data, tmp_path):
    process = start("fairseq-train", *pretraining(data, tmp_path, updates=1, **OURS))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100 * 1024, 100 * 1024))
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    expected = f"{tmp_path}/checkpoint_best.pt cannot be written, and is as it was: [Errno 27]"
    assert output.splitlines()[-1].startswith(f"OSError: {expected}")
    assert not list(tmp_path.glob("*.pt*"))


def test_hydra_trains_the_same_update_by_update_recomputing_activations(trained, data, tmp_path):
    folder, output = trained
    model = {name.replace("-", "_"): value for name, value in {**MODEL, **MEMORY}.items()}
    model["pkm_layers"] = "[1]"
    by_hydra = run(
        *("fairseq-hydra-train", "--config-dir", "user_dir_examples/pretraining"),
        *("--config-name", "tiny", f"task.data={data}", f"checkpoint.save_dir={tmp_path}"),
        *("task.sample_break_mode=complete", "task.tokens_per_sample=32"),
        *("dataset.skip_invalid_size_inputs_valid_test=true", "dataset.batch_size=8"),
        *(
            "dataset.num_workers=0",
            "dataset.data_buffer_size=0",
            "common.seed=3",
            "lr_scheduler.warmup_updates=0",
        ),
        *("optimization.lr=[0.01]", "optimization.max_update=40"),
        *("common.log_format=json", "common.log_interval=1", "+model.checkpoint_activations=true"),
        *(f"model.{name}={value}" for name, value in model.items()),
    )
    for key in ("loss", "gnorm", "lr"):
        assert logged(by_hydra, key) == logged(output, key)
    assert_same_state(
        load_model_state(tmp_path / "checkpoint_last.pt"),
        load_model_state(folder / "checkpoint_last.pt"),
    )


def test_a_run_with_ema_key_dropout_later_forms_and_fairseqs_noises_resumes_bit_identical(
    data, tmp_path
):
    options = {
        **OURS,
        **{"task": "pkm_masked_lm", "criterion": "pkm_masked_lm", "save-interval-updates": 4},
        **{"store-ema": None, "ema-decay": 0.9, "encoder-layerdrop": 0.2},
        **{"pkm-key-dropout": 0.25, "quant-noise-pq": 0.1, "quant-noise-pq-block-size": 8},
        **{"pkm-gate": "sigmoid", "pkm-score": "cosine", "pkm-weights": "sigmoid"},
        **{"pkm-heads-merge": "concat", "num-workers": 2},
    }
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run("fairseq-train", *pretraining(data, whole, updates=8, **options))
    options["restore-file"] = whole / "checkpoint_1_4.pt"
    run("fairseq-train", *pretraining(data, resumed, updates=8, **options))
    states = []
    for folder in (whole, resumed):
        # The average as a checkpoint of its own, made by fairseq.
        save_ema_as_checkpoint(str(folder / "checkpoint_last.pt"), str(folder / "ema.pt"))
        states += [load_model_state(folder / name) for name in ("checkpoint_last.pt", "ema.pt")]
    trained, average, *of_resumed = states
    assert_same_state(of_resumed[0], trained)
    assert_same_state(of_resumed[1], average)
    values = "encoder.sentence_encoder.layers.1.pkm.values.weight"
    assert average[values].any()
    assert not torch.equal(average[values], trained[values])
    hub = PKMRobertaModel.from_pretrained(str(whole), "ema.pt", str(data))
    assert torch.equal(hub.model.state_dict()[values], average[values])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pkm-layers": "1,2"}, "pkm_fairseq: --pkm-layers 2 does not exist"),
        ({"pkm-topk": 17}, "pkm_fairseq: topk=17 exceeds subkeys=16"),
        (
            {"task": "pkm_masked_lm", "max-positions": 16},
            "pkm_fairseq: --max-positions 16 is below --tokens-per-sample 32: raise the one or",
        ),
        (
            {"task": "pkm_masked_lm", "criterion": "cross_entropy"},
            "pkm_fairseq: --criterion cross_entropy is not of masked tokens: give pkm_masked_lm",
        ),
        ({"pkm-mode": "beside"}, "error: argument --pkm-mode: invalid choice: 'beside'"),
    ],
)
def test_bad_options_are_refused_before_any_data_is_loaded(data, tmp_path, changed, message):
    options = {**OURS, **changed}
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options), fails=True)
    assert output.splitlines()[-1].split("fairseq-train: ")[-1].startswith(message)
    assert "loaded" not in output


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("pkm_top_k=3", "unknown model option pkm_top_k: known are"),
        ("encoder_layerz=3", "unknown model option encoder_layerz: do you mean encoder_layers?"),
    ],
)
def test_a_misspelt_option_in_hydra_is_refused(data, tmp_path, option, message):
    output = run(
        *("fairseq-hydra-train", "--config-dir", "user_dir_examples/pretraining"),
        *("--config-name", "tiny", f"task.data={data}", f"checkpoint.save_dir={tmp_path}"),
        f"+model.{option}",
        fails=True,
        HYDRA_FULL_ERROR="0",  # as it is for a user
    )
    assert output.splitlines()[-1].startswith(f"pkm_fairseq: {message}")
    assert "Traceback" not in output
    assert "loaded" not in output


def test_resuming_with_another_memory_is_refused_naming_the_option(trained, data, tmp_path):
    folder, _ = trained
    options = {**OURS, "pkm-subkeys": 12, "restore-file": folder / "checkpoint_last.pt"}
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options), fails=True)
    expected = "the checkpoint's memory was made with --pkm-subkeys 16 (not 12)"
    last = output.splitlines()[-1]
    assert last.startswith("pkm_fairseq: Cannot load model parameters from checkpoint ")
    assert last.endswith(f"checkpoint_last.pt: {expected}")


class Code:
    """Runs when a pickle that holds it is loaded without a check."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_that_carries_code_is_refused_and_the_code_not_run(trained, data, tmp_path):
    folder, _ = trained
    state = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    state["extra_state"]["code"] = Code(tmp_path / "ran")
    torch.save(state, tmp_path / "hostile.pt", pickle_module=pickle)
    options = {**OURS, "restore-file": tmp_path / "hostile.pt"}
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options), fails=True)
    refused = f"pkm_fairseq: checkpoint {tmp_path}/hostile.pt cannot be read: UnpicklingError: "
    assert output.splitlines()[-1].startswith(refused)
    assert not (tmp_path / "ran").exists()


def test_all_options_are_printed_by_one_command():
    from pkm_fairseq.config import PKMConfig

    printed = run("pkm-fairseq", "options")
    for name in vars(PKMConfig()):
        if name.startswith("pkm_"):
            assert "--" + name.replace("_", "-") in printed
    assert "--pkm-init-from" in printed
