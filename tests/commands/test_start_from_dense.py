"""A RoBERTa without memory, trained by stock fairseq, through every door into one with memory."""

import shutil

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.tasks.masked_lm import MaskedLMTask

from pkm_fairseq.checkpoints.conversion import BETTER_TRANSFORMER_COPIES
from pkm_fairseq.models import PKMRobertaModel
from pkm_fairseq.refusals import RefusalError
from tests.checkpoints import as_published
from tests.commands.commands import (
    MEMORY,
    MODEL,
    flags,
    load_model_state,
    logged,
    pretraining,
    run,
    run_on_two_workers,
)

DENSE = {**MODEL, "dropout": 0, "attention-dropout": 0}
# Nothing moves, so that what is saved is what was loaded.
STILL = {"arch": "pkm_roberta", **DENSE, **MEMORY, "lr": 0, "weight-decay": 0}


@pytest.fixture(scope="module")
def dense(data, tmp_path_factory):
    """A dense model's folder, and its validation loss."""
    folder = tmp_path_factory.mktemp("dense")
    options = {"arch": "roberta", **DENSE}
    output = run("fairseq-train", *pretraining(data, folder, updates=5, **options))
    return folder, logged(output, "valid_loss", "valid")[-1]


def assert_holds(folder, dense):
    """The memory model saved in ``folder`` has every tensor of the dense one."""
    state = load_model_state(folder / "checkpoint_last.pt")
    for name, tensor in load_model_state(dense / "checkpoint_last.pt").items():
        if name.split(".")[-1] not in (*BETTER_TRANSFORMER_COPIES, "version"):
            assert torch.equal(state[name], tensor), name
    assert any(".pkm." in name for name in state)


DOORS = pytest.mark.parametrize(
    "door",
    [
        lambda path: {"task": "pkm_masked_lm", "pkm-init-from": path},
        lambda path: {"finetune-from-model": path},
        lambda path: {
            "restore-file": path,
            **dict.fromkeys(["reset-optimizer", "reset-dataloader", "reset-meters"]),
            "reset-lr-scheduler": None,
        },
    ],
    ids=["pkm-init-from", "finetune-from-model", "restore-file"],
)


@DOORS
def test_training_starts_as_the_dense_model_ended(dense, data, tmp_path, door):
    folder, loss = dense
    options = {**STILL, **door(folder / "checkpoint_last.pt")}
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options))
    assert logged(output, "valid_loss", "valid") == [loss]
    assert "made fresh: the memory of layers 1" in output
    assert_holds(tmp_path, folder)


@pytest.fixture(scope="module")
def published(dense, tmp_path_factory):
    """The dense model as roberta.base was saved in 2019: a Namespace, other names, fused."""
    folder, _ = dense
    saved = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    checkpoint = {
        "args": saved["cfg"]["model"],
        "model": as_published(saved["model"], layers=2),
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}}],
        "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}},
    }
    path = tmp_path_factory.mktemp("published") / "model.pt"
    torch.save(checkpoint, path)
    return path


@DOORS
def test_a_published_checkpoint_comes_through_the_same_doors(
    dense, published, data, tmp_path, door
):
    folder, loss = dense
    options = {**STILL, **door(published)}
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options))
    assert logged(output, "valid_loss", "valid") == [loss]
    assert_holds(tmp_path, folder)


def test_a_script_gives_a_checkpoint_memories(dense, published, data, tmp_path):
    folder, loss = dense
    script = ["pkm-fairseq", "add-memory", published, "--dest", tmp_path / "new.pt"]
    for wrong, message in (
        (("--pkm-layers", 2), "error: --pkm-layers 2 does not exist"),
        (("--pkm-layers", 1, "--pkm-table-dtype", "int8"), "error: --pkm-table-dtype is for"),
    ):
        assert run(*script, *wrong, fails=True).splitlines()[-1].startswith(message)
    assert not list(tmp_path.iterdir())
    forms = {
        **{"pkm-gate": "silu", "pkm-score": "cosine", "pkm-weights": "relu"},
        "pkm-heads-merge": "concat",
    }
    assert "made fresh: the memory of layers 1" in run(*script, *flags({**MEMORY, **forms}))
    hub = PKMRobertaModel.from_pretrained(str(tmp_path), "new.pt", str(data))
    assert hub.model.memories()[1].gate is not None
    options = {**STILL, **forms, "finetune-from-model": tmp_path / "new.pt"}
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options))
    assert "made fresh" not in output
    assert logged(output, "valid_loss", "valid") == [loss]
    assert_holds(tmp_path, folder)


def test_a_run_started_from_a_dense_model_resumes_with_its_own_memory(dense, data, tmp_path):
    folder, _ = dense
    options = {
        **STILL,
        "task": "pkm_masked_lm",
        "pkm-init-from": shutil.copy(folder / "checkpoint_last.pt", tmp_path / "dense.pt"),
        "lr": 0.01,
        "save-interval-updates": 2,
    }
    run("fairseq-train", *pretraining(data, tmp_path, updates=2, **options))
    (tmp_path / "dense.pt").unlink()  # it is not read again
    before = load_model_state(tmp_path / "checkpoint_last.pt")
    run("fairseq-train", *pretraining(data, tmp_path, updates=4, **options))
    whole = load_model_state(tmp_path / "checkpoint_1_2.pt")
    assert all(torch.equal(before[name], whole[name]) for name in before)


@pytest.fixture(scope="module")
def dense_by_hydra(data, tmp_path_factory):
    """A dense model that fairseq-hydra-train made: its folder, and its validation loss."""
    folder = tmp_path_factory.mktemp("dense_by_hydra")
    sizes = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64}
    output = run(
        *("fairseq-hydra-train", "--config-dir", "user_dir_examples/pretraining"),
        *("--config-name", "tiny", f"task.data={data}", f"checkpoint.save_dir={folder}"),
        *("common.log_format=json", "dataset.num_workers=0", "dataset.data_buffer_size=0"),
        *("optimization.max_update=2", "model._name=roberta"),
        *(f"model.{name}={size}" for name, size in sizes.items()),
    )
    return folder, logged(output, "valid_loss", "valid")[-1]


OVERRIDES = {"pkm_layers": [1], "pkm_subkeys": 16, "pkm_topk": 8, "pkm_value_init": "zero"}


@pytest.mark.parametrize(
    ("trained_by", "task"), [("published", "masked_lm"), ("dense_by_hydra", "pkm_masked_lm")]
)
def test_fairseq_validate_gives_a_dense_checkpoint_a_memory(trained_by, task, data, dense, request):
    made = request.getfixturevalue(trained_by)
    path, loss = (made, dense[1]) if trained_by == "published" else (made[0], made[1])
    output = run(
        *("fairseq-validate", data, "--user-dir", "pkm_fairseq", "--task", task, "--cpu"),
        *("--path", path / "checkpoint_last.pt" if path.is_dir() else path),
        *("--batch-size", 8, "--num-workers", 0, "--model-overrides", OVERRIDES),
        *("--skip-invalid-size-inputs-valid-test", "--log-format", "json"),
        *("--required-batch-size-multiple", 1, "--data-buffer-size", 0),
    )
    assert "made fresh: the memory of layers 1" in output
    assert logged(output, "valid_loss", "valid") == [loss]


@pytest.mark.parametrize(
    "overrides",
    [
        OVERRIDES,
        {"model": {**OVERRIDES, "_name": "pkm_roberta"}},
        {
            **{"_name": "pkm_roberta", **OVERRIDES, "model": {"_name": "pkm_roberta", **OVERRIDES}},
            **{"task": {"_name": "masked_lm"}, "criterion": {"_name": "masked_lm"}},
        },
    ],
    ids=["flat", "nested", "both"],
)
@pytest.mark.parametrize("options", ["all in args", "the model's a Namespace", "as Hydra has them"])
def test_overrides_give_a_memory_however_the_options_were_saved(
    dense, published, data, tmp_path, options, overrides
):
    path = published
    if options != "all in args":
        saved = torch.load(dense[0] / "checkpoint_last.pt", weights_only=True)
        if options == "as Hydra has them":
            of_all = {"task", "criterion", "optimizer", "lr_scheduler"}
            model = vars(saved["cfg"]["model"])
            saved["cfg"]["model"] = {name: model[name] for name in model.keys() - of_all}
        path = tmp_path / "checkpoint.pt"
        torch.save(saved, path)
    (model,), cfg, task = load_model_ensemble_and_task(
        [str(path)], {"data": str(data), "dropout": 0.25, **overrides}
    )
    assert list(model.memories()) == [1]
    assert model.memories()[1].values.weight.shape == (256, 32)
    assert model.args.dropout == 0.25
    assert isinstance(task, MaskedLMTask)
    assert cfg.criterion._name == "masked_lm"


def test_what_is_no_roberta_gets_no_memory(dense, data, tmp_path):
    saved = torch.load(dense[0] / "checkpoint_last.pt", weights_only=True)
    saved["cfg"]["model"]._name = "transformer_lm"
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(RefusalError, match="of --arch transformer_lm: only a RoBERTa can have"):
        load_model_ensemble_and_task([str(tmp_path / "checkpoint.pt")], OVERRIDES)


def test_from_python_a_dense_checkpoint_gets_a_memory_and_works(dense, data):
    folder, _ = dense
    plain, remembering = (
        PKMRobertaModel.from_pretrained(str(folder), "checkpoint_last.pt", str(data), **options)
        for options in (
            {},
            {"pkm_layers": [1], "pkm_subkeys": 16, "pkm_topk": 4, "pkm_value_init": "zero"},
        )
    )
    assert not plain.model.memories()
    assert len(remembering.model.memories()) == 1
    tokens = plain.encode("The assert statement")
    features = [hub.eval().extract_features(tokens) for hub in (plain, remembering)]
    torch.testing.assert_close(*features, rtol=0, atol=1e-6)
    assert plain.decode(tokens) == "The assert statement"
    (filled, *_) = remembering.fill_mask("The <mask> statement", topk=2)
    assert filled[0].endswith("statement")


def test_from_python_a_misspelt_option_and_missing_files_are_refused(dense, data, tmp_path):
    folder, _ = dense
    load = PKMRobertaModel.from_pretrained
    with pytest.raises(ValueError, match="unknown model option pkm_layer: known are"):
        load(str(folder), "checkpoint_last.pt", str(data), pkm_layer=[1])
    with pytest.raises(ValueError, match="there is no checkpoint .*none.pt"):
        load(str(folder), "none.pt", str(data))
    with pytest.raises(ValueError, match="found no files .*: give gpt2_encoder_json="):
        load(str(folder), "checkpoint_last.pt", str(data), bpe="gpt2")
    with pytest.raises(ValueError, match="bpe=bytes is not sentencepiece or gpt2"):
        load(str(folder), "checkpoint_last.pt", str(data), bpe="bytes")


def test_from_python_token_ids_need_no_files_of_an_encoding(dense, data, tmp_path):
    folder, _ = dense
    checkpoint = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    checkpoint["cfg"]["bpe"] = {"_name": "gpt2", "gpt2_encoder_json": "https://nowhere.example"}
    torch.save(checkpoint, tmp_path / "model.pt")
    shutil.copy(data / "dict.txt", tmp_path)
    with_files = PKMRobertaModel.from_pretrained(str(tmp_path), data_name_or_path=str(data)).eval()
    hub = PKMRobertaModel.from_pretrained(str(tmp_path)).eval()
    tokens = with_files.encode("The assert statement")
    assert with_files.decode(tokens) == "The assert statement"
    assert torch.equal(hub.extract_features(tokens), with_files.extract_features(tokens))
    for call in (
        lambda: hub.encode("The"),
        lambda: hub.decode(tokens),
        lambda: hub.fill_mask("The <mask>"),
    ):
        with pytest.raises(ValueError, match="give sentencepiece_model= or gpt2_encoder_json="):
            call()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder-ffn-embed-dim": 48}, "use --encoder-ffn-embed-dim 64"),
        ({"encoder-attention-heads": 4}, "has --encoder-attention-heads 2 (not 4)"),
        ({"pkm-init-from": "nowhere.pt"}, "--pkm-init-from nowhere.pt does not exist"),
        (
            {"pkm-init-from": False, "restore-file": "nowhere.pt", "reset-optimizer": None},
            "--restore-file nowhere.pt does not exist",
        ),
        (
            {"pkm-init-from": False, "finetune-from-model": "scripts"},
            "--finetune-from-model scripts is a folder: name the checkpoint in it",
        ),
        ({"arch": "roberta"}, "--pkm-init-from needs a model of pkm_fairseq: --arch pkm_roberta"),
    ],
)
def test_a_start_that_cannot_be_is_refused(dense, data, tmp_path, changed, message):
    folder, _ = dense
    options = {
        **STILL,
        "task": "pkm_masked_lm",
        "pkm-init-from": folder / "checkpoint_last.pt",
        **changed,
    }
    if options["arch"] == "roberta":
        options = {name: value for name, value in options.items() if name not in MEMORY}
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options), fails=True)
    assert output.splitlines()[-1].startswith("pkm_fairseq: ")
    assert message in output.splitlines()[-1]


def test_it_starts_alike_on_each_of_two_workers(dense, data, tmp_path):
    folder, loss = dense
    options = {
        **STILL,
        "task": "pkm_masked_lm",
        "pkm-init-from": folder / "checkpoint_last.pt",
        "batch-size": 4,
    }
    output = run_on_two_workers(
        tmp_path / "rendezvous", *pretraining(data, tmp_path, updates=1, **options)
    )
    # Each worker validates half of the set: the loss tells of both.
    assert logged(output, "valid_loss", "valid") == [loss]
    assert_holds(tmp_path, folder)
