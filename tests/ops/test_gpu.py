import pytest
import torch

from pkm_fairseq.ops.gpu import power_of_two, triton_imports, use_gpu_kernels


@pytest.mark.skipif(not triton_imports(), reason="triton is not installed, or too old")
@pytest.mark.parametrize(
    ("kernels", "interpret", "dtype", "expected"),
    [
        (None, None, torch.float32, False),  # a table on the CPU
        (None, "1", torch.float32, True),
        (None, "1", torch.float16, True),
        (None, "1", torch.bfloat16, True),
        (None, "1", torch.float64, False),
        ("0", "1", torch.float32, False),
    ],
)
def test_where_the_kernels_run(kernels, interpret, dtype, expected, monkeypatch):
    for name, value in (("PKM_KERNELS", kernels), ("TRITON_INTERPRET", interpret)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert use_gpu_kernels(torch.zeros(1, dtype=dtype)) == expected


@pytest.mark.parametrize(
    ("number", "least", "expected"), [(1, 1, 1), (5, 1, 8), (8, 1, 8), (0, 1, 1), (3, 16, 16)]
)
def test_powers_of_two(number, least, expected):
    assert power_of_two(number, least) == expected
