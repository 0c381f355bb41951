"""Large product-key memory for fairseq (Kim & Jung 2020, arXiv 2010.03881), as a user dir."""

import argparse
import os
from collections import defaultdict
from typing import Any

import torch
from fairseq.distributed.utils import _TensorPlaceholder
from omegaconf import AnyNode, DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata

# A checkpoint from a stranger must not run code: torch's safe loading is asked of every torch and
# fairseq, those too that leave it off. It must be told of the plain data that fairseq stores, an
# argparse.Namespace, and of what it sends to other workers, the same options as OmegaConf.
if "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
torch.serialization.add_safe_globals(
    [
        *(argparse.Namespace, AnyNode, DictConfig, ListConfig, ContainerMetadata, Metadata),
        *(_TensorPlaceholder, defaultdict, dict, list, int),
        # Has a name from Python 3.10 on; before, only runs of one worker can load a checkpoint.
        *([Any] if hasattr(Any, "__qualname__") else []),
    ]
)

# ruff: noqa: E402, F401 - after the above; importing registers
from . import checkpoint_files, fairseq_fixes

checkpoint_files.install()
fairseq_fixes.install()
from . import criterions, models, optim, tasks, text
