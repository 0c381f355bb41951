import pytest
import torch

from pkm_fairseq.ops.cpu import numba_imports
from pkm_fairseq.ops.gpu import triton_imports

IMPORTS = {"numba": numba_imports, "triton": triton_imports}


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


@pytest.fixture
def with_threads(form):
    """Calls a function with one thread, and with as many as there are."""
    threads = torch.get_num_threads()
    if form == "numba":
        import numba

        most = numba.config.NUMBA_NUM_THREADS
    else:
        most = max(threads, 2)
    if most == 1:
        pytest.skip("NUMBA_NUM_THREADS allows one thread only")

    def call(function):
        results = []
        for count in (1, most):
            torch.set_num_threads(count)
            results.append(function())
        return results

    yield call
    torch.set_num_threads(threads)
