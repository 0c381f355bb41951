import subprocess
import sys
from pathlib import Path

import pytest

from pkm_fairseq.ops.gpu import triton_imports

ROOT = Path(__file__).parents[2]
# What a program may have on every GPU since Ampere.
SHARED_MEMORY = 99 * 1024


@pytest.mark.skipif(not triton_imports(), reason="triton is not installed, or too old")
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_gpu_kernels_compile_and_fit(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py"), capability],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    kernels = [line.split() for line in run.stdout.splitlines()]
    names = ["sum_rows", "sum_and_multiply", "add_pieces", "move", "find_slots", "spread_gradients"]
    # Compact tables of int8 and bfloat16; then all, in bfloat16 and in float32.
    assert [name for name, _ in kernels] == 2 * names[:1] + 2 * names
    assert all(int(shared) < SHARED_MEMORY for _, shared in kernels)
