"""Misspelt options of RoBERTa are refused, and none of those that it has."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import fairseq
import pytest
from omegaconf import OmegaConf

from pkm_fairseq.models import PKMRobertaModel
from pkm_fairseq.models.option_names import check_names, known_names
from pkm_fairseq.refusals import RefusalError
from tests.models.tiny import make_args

CONFIGS = [
    *Path(__file__).parents[2].glob("user_dir_examples/*/*.yaml"),
    *Path(fairseq.__file__).parent.glob("examples/roberta/config/**/*.yaml"),
]


def test_every_option_of_the_shipped_configs_and_of_fairseqs_own_is_known():
    names = {name for path in CONFIGS for name in OmegaConf.load(path).get("model", {})}
    assert {"dropout", "encoder_layers", "pkm_layers"} <= names
    assert names <= known_names(PKMRobertaModel)


def test_every_option_that_a_checkpoint_has_is_known():
    assert set(vars(make_args("pkm_roberta_base"))) <= known_names(PKMRobertaModel)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder_layerz", "unknown model option encoder_layerz: do you mean encoder_layers"),
        ("drop_out", "unknown model option drop_out: do you mean dropout"),
        ("xyz", "unknown model option xyz: remove it"),
    ],
)
def test_a_name_that_no_part_has_is_refused(name, message):
    with pytest.raises(RefusalError, match=f"^{message}"):
        check_names(PKMRobertaModel, OmegaConf.create({"_name": "pkm_roberta", name: 3}))


def test_what_a_parser_made_is_known_already():
    check_names(PKMRobertaModel, Namespace(of_the_task=1))


def test_a_sample_must_find_a_position_for_each_token():
    args = OmegaConf.create({"_name": "pkm_roberta", "max_positions": 32})

    def check(tokens, mode):
        cfg = SimpleNamespace(tokens_per_sample=tokens, sample_break_mode=mode)
        PKMRobertaModel.check_training(args, SimpleNamespace(cfg=cfg))

    check(32, "complete")
    check(64, "eos")
    with pytest.raises(RefusalError, match="^--max-positions 32 is below --tokens-per-sample 64"):
        check(64, "none")
