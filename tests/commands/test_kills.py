"""A training that is killed again and again: ``pytest -m slow tests/commands/test_kills.py``."""

import os
import random
import re
import signal
import time
import zipfile

import pytest

from tests.commands.commands import (
    MEMORY,
    MODEL,
    TIMEOUT,
    assert_same_state,
    load_model_state,
    logged,
    pretraining,
    run,
    start,
)

KILLS = 20
UPDATES = 240
# Every other kill is aimed at the writing of a checkpoint.
MOMENTS = [r'"num_updates": ', "Preparing to save checkpoint"]


def run_and_kill(command, pattern, lines, delay):
    """Runs a command until ``pattern`` came so often, and for so many seconds; what it printed."""
    process = start(*command)
    printed = []
    for line in process.stdout:
        printed.append(line)
        lines -= bool(re.search(pattern, line))
        if lines < 0:
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGKILL)
            break
    rest, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGKILL, "".join(printed)
    return "".join(printed) + rest


def losses_by_update(output):
    return dict(zip(logged(output, "num_updates"), logged(output, "loss")))


@pytest.mark.slow
def test_a_training_killed_twenty_times_loses_nothing(data, tmp_path):
    options = {
        **{"arch": "pkm_roberta", **MODEL, **MEMORY},
        # As many slots as make a checkpoint take a while to write.
        "pkm-subkeys": 96,
        "save-interval-updates": 4,
        "keep-interval-updates": 1,
        "max-valid-steps": 2,
    }
    whole = run("fairseq-train", *pretraining(data, tmp_path / "whole", updates=UPDATES, **options))
    expected = losses_by_update(whole)
    killed = tmp_path / "killed"
    command = ["fairseq-train", *pretraining(data, killed, updates=UPDATES, **options)]
    draw = random.Random(1)
    seen, while_writing = {}, 0
    for kill in range(KILLS):
        pattern = MOMENTS[kill % 2]
        lines = draw.randrange(24) if kill % 2 == 0 else draw.randrange(6)
        resumes = (killed / "checkpoint_last.pt").exists()
        output = run_and_kill(command, pattern, lines, draw.uniform(0, 0.05))
        assert ("Loaded checkpoint" in output) == resumes, output
        seen.update(losses_by_update(output))
        while_writing += bool(list(killed.glob("*.tmp")))
        for file in killed.glob("*.pt"):
            assert zipfile.is_zipfile(file), f"{file} is not whole after kill {kill}"
    output = run(*command)
    seen.update(losses_by_update(output))
    print(f"{KILLS} kills survived, {while_writing} of them while a checkpoint was written")
    assert seen.items() <= expected.items()
    assert losses_by_update(output)[str(UPDATES)] == expected[str(UPDATES)]
    assert logged(output, "valid_loss", "valid")[-1] == logged(whole, "valid_loss", "valid")[-1]
    assert_same_state(
        load_model_state(killed / "checkpoint_last.pt"),
        load_model_state(tmp_path / "whole" / "checkpoint_last.pt"),
    )
