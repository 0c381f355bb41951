import gc
import os
from importlib import import_module

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hypothesis import settings

from pkm_fairseq.ops.cpu import numba_imports
from pkm_fairseq.ops.gpu import triton_imports

# The same cases at each run, few of them; --hypothesis-profile many draws others, and more.
settings.register_profile("few", derandomize=True, max_examples=100, deadline=None, database=None)
settings.register_profile("many", max_examples=1000, deadline=None, database=None)
settings.load_profile("few")

# Hydra copies the store whenever a configuration is composed, and changes neither: a fifth of it.
ConfigStore.__deepcopy__ = lambda store, memo: store

# Without a GPU, the GPU kernels are tested in triton's interpreter: it has to be asked for before
# triton and the kernels are imported, and acts where the fixture ``form`` asks for it again.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if triton_imports():
        for op in ("product_key_search", "row_adam", "weighted_bag"):
            import_module(f"pkm_fairseq.ops.{op}.triton_kernels")
    del os.environ["TRITON_INTERPRET"]

IMPORTS = {"numba": numba_imports, "triton": triton_imports}


def pytest_configure(config):
    """Makes several test processes, if scripts/test.sh started them, safe and quick."""
    # They would begin with the files of most tests, and end with one that takes long. As they are
    # found those of tests/commands, which take longest, come first.
    config.option.loadscopereorder = False
    # numba may mix up what two processes compile at the same time for other types.
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        os.environ["NUMBA_CACHE_DIR"] = str(config.cache.mkdir(f"numba_{worker}"))


def pytest_collection_finish():
    """Has garbage collections leave out all that was imported: they take a tenth of the time."""
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # triton complains at the end of what was never freed


@pytest.fixture(params=["torch", "numba", "triton"])
def form(request, monkeypatch):
    """Runs a test on plain torch operations, on the CPU kernels and on the GPU kernels.

    The latter run on a GPU where there is one, and in triton's interpreter elsewhere.
    """
    form = request.param
    if form in IMPORTS and not IMPORTS[form]():
        pytest.skip(f"{form} is not installed, or too old")
    monkeypatch.setenv("PKM_KERNELS", "0" if form == "torch" else "1")
    if form != "triton":
        yield form
        return
    # Fresh memory is NaN, so that what a kernel leaves unwritten shows.
    torch.use_deterministic_algorithms(True, warn_only=True)
    if torch.cuda.is_available():
        with torch.device("cuda"):
            yield form
    else:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        yield form
    torch.use_deterministic_algorithms(False)
