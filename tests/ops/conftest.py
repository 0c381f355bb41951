import pytest
import torch


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
