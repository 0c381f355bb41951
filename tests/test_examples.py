"""The shipped configs are complete: each names every option of the memory and builds its model."""

import pytest
import torch
from fairseq.dataclass.configs import CommonConfig
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.optim.fp16_optimizer import FP16Optimizer
from omegaconf import OmegaConf, open_dict

import pkm_fairseq.models  # noqa: F401 - registers the architectures
from pkm_fairseq.commands.configs import load_config
from pkm_fairseq.config import PKMConfig
from pkm_fairseq.criterions import UsageConfig
from pkm_fairseq.optim import PKMAdamConfig
from pkm_fairseq.tasks.masked_lm import PKMMaskedLMConfig
from tests.shipped import CONFIGS, EXAMPLES

OPTIONS = {"model": PKMConfig, "task": PKMMaskedLMConfig, "criterion": UsageConfig}


def pkm_options(names):
    return {name for name in names if name.startswith("pkm_")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_a_config_names_every_option_and_they_work_together(path):
    config = load_config(path)
    config.task.data = "some/data"
    model = config.model
    given = dict(OPTIONS)
    if config.optimizer._name == "pkm_adam":
        given["optimizer"] = PKMAdamConfig
    for part, options in given.items():
        # Training has no use for one of them.
        expected = pkm_options(vars(options())) - {"pkm_table_dtype"}
        assert pkm_options(config[part]) == expected, part
    options = PKMConfig.from_args(model)
    # Outside fairseq's whole config nothing says what ${task.tokens_per_sample} is.
    with open_dict(model):
        model.pop("max_positions")
        ARCH_CONFIG_REGISTRY[model._name](model)
    options.check(model.encoder_layers)
    assert options.pkm_layers


def test_every_config_gives_each_job_of_a_sweep_a_folder_and_reads_from_where_it_was_started():
    for path in CONFIGS:
        config = OmegaConf.to_container(load_config(path))
        assert config["hydra"]["sweep"]["subdir"] == "${hydra.runtime.cwd}", path
        assert config["hydra"]["job"]["id"] == "", path
        assert config["checkpoint"]["save_dir"].endswith("${hydra:job.id}"), path


@pytest.mark.parametrize("name", ["base", "large"])
def test_a_full_size_config_has_the_memory_of_its_architecture(name):
    model = load_config(EXAMPLES / "pretraining" / f"{name}.yaml").model
    given = PKMConfig.from_args(model)
    preset = OmegaConf.create({"max_positions": 512})
    ARCH_CONFIG_REGISTRY[model._name](preset)
    assert given == PKMConfig.from_args(preset)


@pytest.mark.parametrize("name", ["base", "large"])
def test_a_full_size_config_trains_in_a_half_precision_that_its_optimizer_takes(name, monkeypatch):
    given = load_config(EXAMPLES / "pretraining" / f"{name}.yaml")
    outside = {"amp": False, "zero_sharding": "none", "store_ema": False, "use_bmuf": False}
    optimizer = {**OmegaConf.to_container(given.optimizer), **outside, "lr": given.optimization.lr}
    common = {**vars(CommonConfig()), **OmegaConf.to_container(given.common)}
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # for want of a GPU
    groups = ("pkm_values", "pkm_search")
    params = [torch.nn.Parameter(torch.ones(3, 2, dtype=torch.half)) for _ in groups]
    for param, group in zip(params, groups):
        param.param_group = group

    def build(**changes):
        config = {
            "common": {**common, **changes},
            "optimizer": optimizer,
            "optimization": given.optimization,
            "distributed_training": {"distributed_world_size": 1},
        }
        return FP16Optimizer.build_optimizer(OmegaConf.create(config), params)

    rates = [group["lr"] for group in build().fp32_optimizer.param_groups]
    assert rates == pytest.approx([rates[0], 10 * rates[0]])
    with pytest.raises(ValueError, match="--fp16-no-flatten-grads"):
        build(fp16_no_flatten_grads=False)
    optimizer.update(pkm_values_lr=None, pkm_values_lr_scheduled=False)
    with pytest.raises(RuntimeError, match="--fp16-no-flatten-grads"):
        build(fp16_no_flatten_grads=False)


@pytest.mark.parametrize("name", ["base", "large"])
def test_a_full_size_config_trains_on_batches_of_1024_sentences(name):
    config = load_config(EXAMPLES / "pretraining" / f"{name}.yaml")
    gpus = 8
    assert gpus * config.dataset.batch_size * config.optimization.update_freq[0] == 1024


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_no_key_stands_in_a_config_and_in_what_it_shares(path):
    # The order of the two is not to matter: fairseq merges its own defaults with the first.
    config = OmegaConf.load(path)
    for name in config.pop("defaults", []):
        if name != "_self_":
            shared = OmegaConf.load(path.with_name(f"{name}.yaml"))
            for group in config.keys() & shared.keys():
                assert not config[group].keys() & shared[group].keys(), group
