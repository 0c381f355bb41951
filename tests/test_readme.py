"""The README names every option, with the default that it has."""

import re
from pathlib import Path

from pkm_fairseq.config import OTHER_OPTIONS, PKMConfig
from pkm_fairseq.criterions import UsageConfig
from pkm_fairseq.optim import PKMAdamConfig

README = (Path(__file__).parents[1] / "README.md").read_text()


def defaults_in_readme():
    rows = re.findall(r"^\| (`--pkm-.*?) \| (.*?) \|", README, re.MULTILINE)
    return {flag: default for flags, default in rows for flag in re.findall("`(--[^`]+)`", flags)}


def test_every_option_is_in_the_table_and_nothing_else():
    options = {name for name in vars(PKMConfig()) if name.startswith("pkm_")} | OTHER_OPTIONS
    assert set(defaults_in_readme()) == {"--" + name.replace("_", "-") for name in options}


def test_the_defaults_in_the_table_are_those_of_the_options():
    words = {"[]": "none", "None": "the model's", "False": "off", "0.0": "0"}
    for name, value in {
        **vars(PKMConfig()),
        **vars(UsageConfig()),
        **vars(PKMAdamConfig()),
    }.items():
        if name.startswith("pkm_"):
            written = defaults_in_readme()["--" + name.replace("_", "-")].strip("`")
            assert written == words.get(str(value), str(value)), name
