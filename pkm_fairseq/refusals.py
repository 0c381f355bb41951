"""Refusals of what cannot be, which end fairseq's commands in one line and not in a traceback."""

import os
import sys
import traceback
from pathlib import Path

from hydra._internal import utils as hydra_utils
from torch.multiprocessing import ProcessRaisedException


class RefusalError(ValueError):
    """Says in one line what a user asked for, why it cannot be, and what to change."""


def install():
    """Has fairseq's commands end in the line of a refusal, below the traceback if that is wanted.

    All else, refusals that leave a user's own program among it, is shown as before.
    """
    show = sys.excepthook

    def show_refusal(kind, error, trace):
        refused = reason(error) if _is_of_command(trace) else None
        if refused is None or traceback_wanted():
            show(kind, error, trace)
        if refused is not None:
            print(f"pkm_fairseq: {refused}", file=sys.stderr)

    sys.excepthook = show_refusal
    # Hydra shows errors itself and exits, unless this says that it is to raise them.
    if hasattr(hydra_utils, "_is_env_set"):
        is_set = hydra_utils._is_env_set
        hydra_utils._is_env_set = lambda name: reason(sys.exc_info()[1]) or is_set(name)


def reason(error):
    """Returns what a refusal says, in one line; None for any other exception."""
    if not isinstance(error, (RefusalError, ProcessRaisedException)):
        return None
    # What workers raise comes with their tracebacks before it, as text.
    name = f"{RefusalError.__module__}.{RefusalError.__qualname__}: "
    _, found, text = f"\n{error}".rpartition(f"\n{name}")
    of_worker = isinstance(error, ProcessRaisedException)
    if of_worker and (not found or "\nTraceback" in text):
        return None
    return " ".join((text if found else str(error)).split("\n")).strip()


def traceback_wanted():
    """Tells whether the environment asks for tracebacks of refusals, too."""
    return os.environ.get("PKM_TRACEBACK") == "1"


def _is_of_command(trace):
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))
    return any(Path(file).parent.name == "fairseq_cli" for file in files)
