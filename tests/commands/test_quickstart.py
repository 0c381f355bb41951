"""The README's first command, with fewer updates."""

import re

from tests.commands.commands import ROOT, run, run_until


def test_the_quickstart_goes_on_after_a_kill_and_says_what_it_made(environment, tmp_path):
    command = ["bash", ROOT / "scripts/quickstart.sh"]
    env = {"RUNS": str(tmp_path), "UPDATES": "25", "VENV": str(environment), "SETUP": "skip"}
    run_until("Training memory", *command, **env)
    output = run(*command, **env)
    assert "data is there already" in output
    assert re.search(r"Training dense.*\n   done already", output)
    assert re.search(r"update 25  loss [\d.]+", output)
    assert re.search(r"validation at update 25 .* top-1 usage 0\.\d+\n", output)
    assert re.search(r"perplexity of the model without memory +[\d.]+\n", output)
    assert re.search(r"perplexity with memory, after as many updates +[\d.]+\n", output)
    assert re.search(r"best Matthews correlation on the task, in percent +-?[\d.]+\n", output)
    for name in ("dense", "memory", "cola"):
        assert (tmp_path / name / "checkpoint_best.pt").exists()
        assert list((tmp_path / name / "tensorboard").rglob("events*"))
    assert (tmp_path / "submission" / "CoLA.tsv").exists()
    assert (tmp_path / "report" / "report.html").exists()
