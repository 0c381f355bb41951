"""Large product-key memory for fairseq (Kim & Jung 2020, arXiv 2010.03881), as a user dir."""

# ruff: noqa: E402, F401 - importing registers
from . import checkpoint_files, checkpoint_reading, refusals

refusals.install()
checkpoint_reading.install()
checkpoint_files.install()

from . import criterions, models, optim, tasks
