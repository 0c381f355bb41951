"""How refusals leave fairseq's commands, and what else is left as it was."""

import ast
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from torch.multiprocessing import ProcessRaisedException

import pkm_fairseq
from pkm_fairseq.refusals import RefusalError, reason

COMMAND = "/somewhere/fairseq_cli/train.py"


def caught(raising, file=COMMAND):
    """Returns what a line of code, in a file of that name, raises."""
    names = {"RefusalError": RefusalError, "ProcessRaisedException": ProcessRaisedException}
    try:
        exec(compile(raising, file, "exec"), names)
    except Exception as error:
        return error


def shown(error, capfd):
    sys.excepthook(type(error), error, error.__traceback__)
    return capfd.readouterr().err


def test_a_refusal_ends_a_command_in_one_line(capfd):
    error = caught("raise RefusalError('--a 1 cannot be:\\nraise it')")
    assert shown(error, capfd) == "pkm_fairseq: --a 1 cannot be: raise it\n"


def test_the_environment_asks_for_the_traceback_as_well(capfd, monkeypatch):
    monkeypatch.setenv("PKM_TRACEBACK", "1")
    lines = shown(caught("raise RefusalError('no')"), capfd).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "pkm_fairseq: no"


@pytest.mark.parametrize(
    ("raising", "file"),
    [
        ("raise ValueError('no refusal')", COMMAND),
        ("raise RefusalError('no')", "/somewhere/program_of_a_user.py"),
    ],
)
def test_all_else_is_shown_as_before(raising, file, capfd):
    error = caught(raising, file)
    assert shown(error, capfd) == "".join(
        traceback.format_exception(type(error), error, error.__traceback__)
    )


@pytest.mark.parametrize(
    ("raised_in_the_worker", "expected"),
    [
        ("raise RefusalError('--a 1 cannot be')", "--a 1 cannot be"),
        ("raise ValueError('no refusal')", None),
        ("try:\n    raise RefusalError('no')\nfinally:\n    int('x')", None),
    ],
)
def test_what_a_worker_refuses_its_parent_says(raised_in_the_worker, expected):
    error = caught(raised_in_the_worker)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert (
        reason(ProcessRaisedException(f"\n\n-- Process 1 terminated:\n{text}", 1, 99)) == expected
    )


def test_what_the_package_refuses_is_a_refusal():
    """But for ops, which know nothing of options: theirs are errors of a program."""
    root = Path(pkm_fairseq.__file__).parent
    plain = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in root.rglob("*.py")
        if "ops" not in path.relative_to(root).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and getattr(node.exc.func, "id", None) == "ValueError"
    ]
    assert not plain, "raise a RefusalError instead"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_prints_nothing_and_leaves_a_program_its_own_errors_and_logs():
    done = run(
        """
import logging
from pkm_fairseq.config import PKMConfig
assert logging.getLogger().level == logging.WARNING and not logging.getLogger().handlers
logging.basicConfig(format="mine: %(message)s", level=logging.INFO)
logging.info("heard")
PKMConfig(pkm_layers=[9]).check(encoder_layers=2)
"""
    )
    heard, title, *_, last = done.stderr.splitlines()
    assert heard == "mine: heard"
    assert title == "Traceback (most recent call last):"
    assert "Error: --pkm-layers 9 does not exist" in last
    assert done.returncode == 1


def test_a_program_that_logs_goes_on_logging_as_it_did():
    done = run(
        """
import logging
logging.basicConfig(format="mine: %(message)s", level=logging.ERROR)
before = logging.getLogger().handlers[:]
import pkm_fairseq
assert logging.getLogger().level == logging.ERROR and logging.getLogger().handlers == before
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
