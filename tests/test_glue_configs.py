"""The GLUE configs are fairseq's own finetuning of RoBERTa, but for what they mark as ours."""

from functools import partial
from pathlib import Path

import fairseq
import pytest
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import add_defaults, hydra_init
from omegaconf import OmegaConf

import pkm_fairseq  # noqa: F401 - registers our task and criterion
from pkm_fairseq.commands.configs import load_config
from pkm_fairseq.task_data.glue import TASKS
from tests.shipped import EXAMPLES

try:
    from hydra import compose, initialize_config_dir

    initialize_config_dir = partial(initialize_config_dir, version_base="1.1")
except ImportError:  # hydra 1.0, which comes with fairseq 0.12.2
    from hydra.experimental import compose, initialize_config_dir

CONFIGS = EXAMPLES / "glue"
FAIRSEQ_CONFIGS = Path(fairseq.__file__).parent / "examples/roberta/config/finetuning"
# What every config changes of fairseq's; the rest of it must stand as it is.
OURS = {
    "common.fp16",
    "task._name",
    "criterion._name",
    "model._name",
    # Instead of these, finetune_from_model.
    "checkpoint.restore_file",
    "checkpoint.reset_optimizer",
    "checkpoint.reset_dataloader",
    "checkpoint.reset_meters",
}
OURS_TOO = {
    "cola": {"checkpoint.best_checkpoint_metric"},
    "mrpc": {"checkpoint.best_checkpoint_metric"},
    "qqp": {"checkpoint.best_checkpoint_metric"},
    "wnli": {"lr_scheduler.warmup_updates", "optimization.max_update"},
}
METRICS = {
    "cola": "mcc",
    "mrpc": "acc_and_f1",
    "qqp": "acc_and_f1",
    "sts_b": "pearson_and_spearman",
}
NAMES = {name.lower().replace("-", "_"): name for name in TASKS}


def flat(config, prefix=""):
    """Turns nested options into one dict from ``group.option`` to value."""
    options = {}
    for name, value in config.items():
        if isinstance(value, dict):
            options.update(flat(value, f"{prefix}{name}."))
        else:
            options[prefix + name] = value
    return options


def load(path):
    return flat(OmegaConf.to_container(load_config(path)))


def test_there_is_one_config_for_each_task():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - {"shared"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_differs_from_fairseqs_only_where_it_says_so(name):
    theirs = load(FAIRSEQ_CONFIGS / f"{'mrpc' if name == 'wnli' else name}.yaml")
    ours = load(CONFIGS / f"{name}.yaml")
    changed = {option for option in theirs if ours.get(option) != theirs[option]}
    assert changed == OURS | OURS_TOO.get(name, set())


@pytest.mark.parametrize("name", NAMES)
def test_the_best_checkpoint_is_chosen_by_the_official_metric(name):
    checkpoint = load_config(CONFIGS / f"{name}.yaml").checkpoint
    metric = METRICS.get(name, "accuracy")
    assert checkpoint.best_checkpoint_metric == TASKS[NAMES[name]].metric == metric
    assert checkpoint.maximize_best_checkpoint_metric


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_for_the_labels_and_splits_of_its_task(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    task = TASKS[NAMES[name]]
    assert config.task.num_classes == max(1, len(task.classes))
    assert config.criterion.regression_target == (not task.classes)
    valid = [split for split, _ in task.splits if split.startswith("valid")]
    assert config.dataset.get("valid_subset", "valid") == ",".join(valid)


@pytest.mark.parametrize("name", NAMES)
def test_fairseq_knows_every_option_of_a_config(name):
    hydra_init()
    with initialize_config_dir(config_dir=str(CONFIGS)):
        config = compose(name, overrides=["task.data=some/data", "checkpoint.save_dir=runs"])
    given = OmegaConf.to_container(config, resolve=True)
    # An option that fairseq or the plugin does not know would raise here.
    add_defaults(config)
    known = OmegaConf.merge(
        OmegaConf.structured(FairseqConfig),
        {group: config[group] for group in given if group != "hydra"},
    )
    filled = OmegaConf.to_container(known, resolve=True, enum_to_str=True)
    assert filled["task"]["_name"] == filled["criterion"]["_name"] == "pkm_sentence_prediction"
    assert filled["lr_scheduler"]["total_num_update"] == given["optimization"]["max_update"]
    assert filled["model"]["max_positions"] == 512
