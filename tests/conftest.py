import os

import pytest
from hypothesis import settings

# The same cases at each run, few of them; --hypothesis-profile many draws others, and more.
settings.register_profile("few", derandomize=True, max_examples=100, deadline=None, database=None)
settings.register_profile("many", max_examples=1000, deadline=None, database=None)
settings.load_profile("few")


def pytest_configure(config):
    """Makes several test processes, if scripts/test.sh started them, safe and quick."""
    # They would begin with the files of most tests, and end with one that takes long. As they are
    # found those of tests/commands, which take longest, come first.
    config.option.loadscopereorder = False
    # numba may mix up what two processes compile at the same time for other types.
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        os.environ["NUMBA_CACHE_DIR"] = str(config.cache.mkdir(f"numba_{worker}"))


@pytest.fixture(params=["torch", "numba"])
def form(request, monkeypatch):
    """Runs a test on plain torch operations and on the CPU kernels."""
    # Here, since the process that only hands out tests has no need of fairseq.
    from pkm_fairseq.ops.cpu import numba_imports

    if request.param == "numba" and not numba_imports():
        pytest.skip("numba is not installed")
    monkeypatch.setenv("PKM_KERNELS", "1" if request.param == "numba" else "0")
    return request.param
