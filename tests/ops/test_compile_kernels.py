import subprocess
import sys
from pathlib import Path

import pytest

from pkm_fairseq.ops.gpu import triton_imports

ROOT = Path(__file__).parents[2]
# What a program may have on every GPU since Ampere.
SHARED_MEMORY = 99 * 1024


@pytest.mark.skipif(not triton_imports(), reason="triton is not installed, or too old")
@pytest.mark.parametrize("arguments", ["80 int8 float32", "90 bfloat16 bfloat16"])
def test_the_gpu_kernels_compile_and_fit(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py"), *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    kernels = [line.split() for line in run.stdout.splitlines()]
    names = ["sum_rows", "sum_and_multiply", "add_pieces", "move", "find_slots", "spread_gradients"]
    # Of a compact table, then all.
    assert [name for name, _ in kernels] == names[:1] + names
    assert all(int(shared) < SHARED_MEMORY for _, shared in kernels)
