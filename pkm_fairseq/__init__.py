"""Large product-key memory for fairseq (Kim & Jung 2020, arXiv 2010.03881), as a user dir."""

import argparse
import os

import torch

# A checkpoint from a stranger must not run code. fairseq's checkpoints hold an argparse.Namespace,
# plain data that torch's safe loading must be told of; the check itself is asked of every torch and
# fairseq, those too that leave it off.
torch.serialization.add_safe_globals([argparse.Namespace])
if "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

# ruff: noqa: E402, F401 - after the above; importing registers
from . import criterions, models, tasks
