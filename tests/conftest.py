import pytest
from hypothesis import settings

from pkm_fairseq.ops.cpu import numba_imports

# The same cases at each run, few of them; --hypothesis-profile many draws others, and more.
settings.register_profile("few", derandomize=True, max_examples=100, deadline=None, database=None)
settings.register_profile("many", max_examples=1000, deadline=None, database=None)
settings.load_profile("few")


@pytest.fixture(params=["torch", "numba"])
def form(request, monkeypatch):
    """Runs a test on plain torch operations and on the CPU kernels."""
    if request.param == "numba" and not numba_imports():
        pytest.skip("numba is not installed")
    monkeypatch.setenv("PKM_KERNELS", "1" if request.param == "numba" else "0")
    return request.param
