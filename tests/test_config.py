from argparse import Namespace

import pytest
from omegaconf import OmegaConf

from pkm_fairseq.config import PKMConfig


def rebuild(**options):
    return PKMConfig.from_args(Namespace(**options))


def test_both_command_lines_give_the_same_typed_options():
    given = {"pkm_layers": [1, 2], "pkm_mode": "replace", "pkm_query_dropout": 0, "pkm_heads": 2}
    from_flags = PKMConfig.from_args(Namespace(arch="pkm_roberta", dropout=0.1, **given))
    from_yaml = PKMConfig.from_args(OmegaConf.create({"_name": "pkm_roberta", **given}))
    assert from_flags == from_yaml
    assert from_flags.pkm_layers == [1, 2]
    assert type(from_flags.pkm_layers) is list
    assert type(from_flags.pkm_mode) is str
    assert type(from_flags.pkm_query_dropout) is float
    assert from_flags.pkm_topk == PKMConfig.pkm_topk


def test_none_means_the_default():
    assert rebuild(pkm_layers=[0], pkm_value_dim=None, pkm_topk=None) == rebuild(pkm_layers=[0])


def test_what_it_returns_it_takes():
    config = rebuild(pkm_layers=[3], pkm_value_init="zero", pkm_share_values=False)
    assert rebuild(**vars(config)) == config


def test_a_misspelt_key_of_a_yaml_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown model option pkm_top_k: known are .*pkm_topk"):
        rebuild(pkm_layers=[0], pkm_top_k=3)


def test_options_of_other_rooms_on_the_flat_command_line_are_left_alone():
    assert rebuild(arch="pkm_roberta", pkm_init_from="dense.pt") == PKMConfig()
    with pytest.raises(ValueError, match="unknown model option pkm_init_from"):
        rebuild(pkm_layers=[0], pkm_init_from="dense.pt")
    with pytest.raises(ValueError, match="unknown model option pkm_top_k"):
        rebuild(arch="pkm_roberta", pkm_layers=[0], pkm_top_k=3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("pkm_subkeys", "many"),
        ("pkm_subkeys", 2.5),
        ("pkm_mode", "beside"),
        ("pkm_query_dropout", "often"),
        ("pkm_layers", "first"),
        ("pkm_layers", [1, "x"]),
        ("pkm_share_values", "perhaps"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_in_one_line_that_names_it(option, value):
    with pytest.raises(ValueError, match="cannot be") as caught:
        rebuild(**{"pkm_layers": [0], option: value})
    message = str(caught.value)
    assert "--" + option.replace("_", "-") in message
    assert str(value) in message
    assert "\n" not in message


def test_memory_options_without_a_memory_are_refused():
    with pytest.raises(ValueError, match="--pkm-heads has no effect.*--pkm-layers"):
        rebuild(pkm_heads=2)
    assert rebuild(pkm_layers=[], pkm_heads=2).pkm_layers == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pkm_layers": [4]}, "--pkm-layers 4 does not exist: the encoder has layers 0 to 3"),
        ({"pkm_layers": [-1]}, "--pkm-layers -1 does not exist"),
        ({"pkm_layers": [1, 2, 1]}, "--pkm-layers 1,2,1 names a layer twice"),
        ({"pkm_layers": [1], "pkm_share_values": True}, "--pkm-share-values has no effect"),
        ({"pkm_layers": [], "pkm_table_dtype": "bf16"}, "--pkm-table-dtype bf16 has no effect"),
        ({"pkm_layers": [1], "pkm_topk": 600}, "topk=600 exceeds subkeys=512.*--pkm-topk"),
        ({"pkm_layers": [1], "pkm_key_dim": 3}, "key_dim=3 is odd.*--pkm-key-dim"),
        ({"pkm_layers": [1], "pkm_key_dropout": 0.95}, "keeps 26 of .*lower --pkm-key-dropout"),
        ({"pkm_layers": [1], "pkm_value_dropout": 1.0}, r"\[0, 1\).*--pkm-value-dropout"),
        (
            {"pkm_layers": [1], "pkm_heads_merge": "concat", "pkm_heads": 1},
            "--pkm-heads-merge concat has no effect with one head: .*--pkm-heads$",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_with_what_to_change(options, message):
    with pytest.raises(ValueError, match=message):
        rebuild(**options).check(encoder_layers=4)
