"""How far two ways to compute the same may lie apart, by dtype; one table for all tests."""

import torch

TOLERANCES = {
    # Sums of some hundred terms of order 1, in another order.
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    # Accumulated in float32 and rounded once: the last bit may differ.
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5},
    torch.float16: {"rtol": 2**-10, "atol": 1e-5},
}


def assert_close(actual, expected, message=None):
    torch.testing.assert_close(actual, expected, **TOLERANCES[expected.dtype], msg=message)
