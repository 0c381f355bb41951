"""Large product-key memory for fairseq (Kim & Jung 2020, arXiv 2010.03881), as a user dir."""

import logging

# Some modules of fairseq set up logging while they are imported, at DEBUG. That of a program that
# has not set it up itself must stay as it is: they leave alone what has a handler.
_root = logging.getLogger()
_unset = not _root.handlers
if _unset:
    _root.addHandler(logging.lastResort)

# ruff: noqa: E402, F401 - after the above; importing registers
from . import fairseq_fixes, refusals
from .checkpoints import safe_reading, whole_files

refusals.install()
safe_reading.install()
whole_files.install()
fairseq_fixes.install()

from . import criterions, models, optim, tasks, text
from .models import overrides

overrides.install()
if _unset:
    _root.removeHandler(logging.lastResort)
