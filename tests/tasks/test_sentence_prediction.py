"""The command line of the task that finetunes."""

import pytest
from fairseq import options

FIXED = ["data", "--user-dir", "pkm_fairseq", "--task", "pkm_sentence_prediction"]
FIXED += ["--num-classes", "2", "--batch-size", "3"]


def parse(*args):
    return options.parse_args_and_arch(options.get_validation_parser(), [*FIXED, *args])


@pytest.mark.parametrize("given", [(), ("--criterion", "cross_entropy")])
def test_a_criterion_without_a_head_is_refused_in_one_line(given, capsys):
    with pytest.raises(SystemExit):
        parse(*given)
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            "error: argument --criterion: cross_entropy has no classification head: "
            "give pkm_sentence_prediction"
        )
    )


@pytest.mark.parametrize("name", ["sentence_prediction", "pkm_sentence_prediction"])
def test_those_with_a_head_are_taken(name):
    assert parse("--criterion", name).criterion == name
