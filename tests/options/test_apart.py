"""Options of fairseq whose work takes more than a training to show."""

import sys
from pathlib import Path
from string import Template
from types import ModuleType

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.initialize import hydra_init
from fairseq.tasks import TASK_REGISTRY
from fairseq_cli import hydra_train
from fairseq_cli import train as command

from pkm_fairseq.commands.cli import main
from pkm_fairseq.config import OTHER_OPTIONS, PKMConfig
from pkm_fairseq.finetuning.slot_lists import write_slots
from pkm_fairseq.models import PKMRobertaModel
from tests.options import training
from tests.test_glue_configs import compose, initialize_config_dir

EXAMPLES = Path(__file__).parents[2] / "user_dir_examples"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two folders of the same tokens."""
    folder = tmp_path_factory.mktemp("data")
    for seed in (1, 2):
        training.make_text(folder / f"text{seed}", str, seed)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The options of a training over both, one an epoch, that saved at each update."""
    both = f"{data / 'text1'}:{data / 'text2'}"
    given = {"max_update": 6, "save_interval_updates": 1, "no_epoch_checkpoints": True}
    folder = tmp_path_factory.mktemp("trained")
    cfg = training.parse(both, folder, {**training.PRETRAINING, **given})
    training.train(cfg)
    return cfg


def test_an_epoch_reads_one_of_several_folders_and_the_next_another(trained, monkeypatch):
    read = []
    task = TASK_REGISTRY["pkm_masked_lm"]
    load = task._load_dataset_split

    def load_and_note(self, split, epoch, combine):
        read.append((split, epoch))
        return load(self, split, epoch, combine)

    monkeypatch.setattr(task, "_load_dataset_split", load_and_note)
    training.train(trained, max_update=9)
    assert read == [("valid", 1), ("train", 2), ("train", 3)]
    checkpoint, _ = training.read(trained)
    assert checkpoint["extra_state"]["train_iterator"]["epoch"] == 3


def test_the_report_reads_several_folders_as_validations_do(trained, data, tmp_path):
    reports = []
    for name, folders in (("both", trained.task.data), ("first", data / "text1")):
        run = [folders, trained.checkpoint.save_dir, "--dest", tmp_path / name, "--cpu"]
        main(["report", *run])
        reports.append((tmp_path / name / "report.json").read_text())
    assert reports[0].replace(str(trained.task.data), "") == reports[1].replace(
        str(data / "text1"), ""
    )


def test_slots_of_several_folders_are_refused_saying_how_to_name_them(trained, data, tmp_path):
    for new, background in ((trained.task.data, data / "text1"), (data / "text1", "a:b")):
        run = [trained.checkpoint.save_dir, "--data", new, "--background", background]
        run += ["--count", 3, "--dest", tmp_path / "slots.json", "--cpu"]
        with pytest.raises(SystemExit, match="several folders"):
            main(["slots", *run])


def test_the_average_of_checkpoints_opens(trained):
    # As fairseq's scripts/average_checkpoints.py makes it.
    folder = Path(trained.checkpoint.save_dir)
    files = [folder / f"checkpoint_1_{update}.pt" for update in (1, 2, 3)]
    states = [torch.load(file, weights_only=True)["model"] for file in files]
    average = torch.load(files[0], weights_only=True)
    average["model"] = {
        name: sum(state[name].float() for state in states) / len(states) for name in states[0]
    }
    torch.save(average, folder / "average.pt")
    ((model,), _, _) = checkpoint_utils.load_model_ensemble_and_task([str(folder / "average.pt")])
    assert isinstance(model, PKMRobertaModel)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, average["model"][name]), name


def test_without_the_optimizers_state_a_training_begins_anew(data, tmp_path):
    given = {**training.PRETRAINING, "no_save_optimizer_state": True}
    cfg = training.parse(data / "text1", tmp_path, given)
    training.train(cfg)
    checkpoint, _ = training.read(cfg)
    assert "last_optimizer_state" not in checkpoint
    training.train(cfg, max_update=3)
    checkpoint, updates = training.read(cfg)
    assert (updates, checkpoint["extra_state"]["train_iterator"]["epoch"]) == (3, 2)


def test_checkpoints_are_not_written_meanwhile(data, tmp_path, monkeypatch, caplog):
    given = {**training.PRETRAINING, "write_checkpoints_asynchronously": True}
    cfg = training.parse(data / "text1", tmp_path, given)
    monkeypatch.setitem(sys.modules, "iopath", None)
    training.train(cfg)  # fairseq itself ends before it has asked for anything of ours
    assert "pip install iopath" in caplog.text
    monkeypatch.setitem(sys.modules, "iopath", ModuleType("iopath"))
    with pytest.raises(ValueError, match="--write-checkpoints-asynchronously writes no .*: remove"):
        training.train(cfg)


@pytest.mark.parametrize(
    ("flag", "kind", "message"),
    [
        ("--use-plasma-view", ImportError, "pip install pyarrow to use --use_plasma_view"),
        pytest.param(
            *("--profile", ValueError, "--profile needs a GPU: remove it"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can be profiled"),
        ),
    ],
)
def test_what_is_missing_is_named_before_the_training(
    flag, kind, message, data, tmp_path, monkeypatch
):
    flags = training.flags(data / "text1", tmp_path, training.PRETRAINING)
    monkeypatch.setattr(sys, "argv", ["fairseq-train", "--user-dir", "pkm_fairseq", *flags, flag])
    monkeypatch.setattr(command, "main", lambda cfg: pytest.fail("trains"))
    with pytest.raises(kind, match=message):
        command.cli_main()


# Values that are not the defaults, for a YAML that names all options of the plugin.
BY_HYDRA = [
    {
        **{"model.pkm_layers": "[0,1]", "model.pkm_mode": "replace", "model.pkm_subkeys": 5},
        **{"model.pkm_heads": 2, "model.pkm_topk": 3, "model.pkm_key_dim": 4},
        **{"model.pkm_value_dim": 8, "model.pkm_query_norm": "layer", "model.pkm_score": "cosine"},
        **{"model.pkm_query_dropout": 0.1, "model.pkm_value_dropout": 0.1},
        **{"model.pkm_key_dropout": 0.3, "model.pkm_weights": "relu", "model.pkm_gate": "silu"},
        **{"model.pkm_heads_merge": "concat", "model.pkm_value_init": "zero"},
        **{"model.pkm_share_values": "true", "model.pkm_grad": "sparse"},
        **{"task.pkm_freeze_rest": "true", "criterion.pkm_usage_per_head": "true"},
        **{"criterion.pkm_drift_tokens": 9, "criterion.pkm_worth_tokens": 9},
        **{"model.pkm_layer_norm_eps": 1e-12, "optimizer.pkm_values_lr": 0.1},
        **{"optimizer.pkm_values_lr_scheduled": "true", "optimizer.pkm_values_clip_norm": 0.5},
        "optimizer.pkm_values_weight_decay": 0.1,
    },
    {
        **{"model.pkm_sync_query_norm": "true", "model.pkm_query_norm": "batch"},
        **{"model.pkm_weights": "sigmoid", "model.pkm_gate": "sigmoid", "model.pkm_shards": 1},
        **{"task.pkm_init_from": "$dense", "task.pkm_train_slots": "$slots"},
        "optimizer.pkm_search_lr": 0.1,
    },
]


def test_the_values_by_hydra_are_of_all_options():
    given = {name.split(".")[1] for values in BY_HYDRA for name in values}
    # Of which the one is not for training.
    assert given | {"pkm_table_dtype"} >= {*OTHER_OPTIONS, *vars(PKMConfig())} - {"_name"}


@pytest.mark.parametrize("values", BY_HYDRA, ids=["most", "others"])
def test_hydra_changes_every_option_of_the_plugin(values, data, tmp_path):
    dense = {**training.PRETRAINING, **dict.fromkeys(training.MEMORY), "max_update": 1}
    training.train(training.parse(data / "text1", tmp_path / "dense", dense))
    write_slots(tmp_path / "slots.json", {(1,): torch.tensor([0, 3, 7])}, {(1,): 36})
    places = {"dense": tmp_path / "dense/checkpoint_last.pt", "slots": tmp_path / "slots.json"}
    given = {
        **{f"model.{name}": value for name, value in {**training.MODEL, **training.MEMORY}.items()},
        **{"model.pkm_layers": "[1]", "task.data": data / "text1", "task.tokens_per_sample": 16},
        **{"checkpoint.save_dir": tmp_path / "run", "optimization.max_update": 2},
        **{name: Template(str(value)).substitute(places) for name, value in values.items()},
    }
    hydra_init("tiny")
    with initialize_config_dir(config_dir=str(EXAMPLES / "pretraining")):
        cfg = compose("tiny", overrides=[f"{name}={value}" for name, value in given.items()])
    hydra_train._hydra_main(cfg)
    model = torch.load(tmp_path / "run/checkpoint_last.pt", weights_only=True)["cfg"]["model"]
    for name, value in values.items():
        part, name = name.split(".")
        if part == "model" and name != "pkm_shards":
            assert str(model[name]).lower().replace(" ", "") == str(value), name
