import copy

import pytest
import torch

from pkm_fairseq.modules import QueryBatchNorm
from tests.tolerances import assert_close


def make_norms(dtype=torch.float32):
    """Our norm and torch's, over 2 heads of 3 numbers, with the same weights."""
    torch.manual_seed(0)
    ours, torchs = QueryBatchNorm(2, 3).to(dtype), torch.nn.BatchNorm1d(6).to(dtype)
    for norm in (ours, torchs):
        norm.weight.data = torch.linspace(0.5, 1.5, 6, dtype=dtype)
        norm.bias.data = torch.linspace(-1, 1, 6, dtype=dtype)
    return ours, torchs


def test_it_is_torchs_batch_norm_over_the_flat_queries_in_training_and_evaluation():
    ours, torchs = make_norms()
    for _ in range(5):
        x = torch.randn(7, 2, 3) * 3 + 1
        assert torch.equal(ours(x), torchs(x.flatten(1)).view_as(x))
    assert torch.equal(ours.running_mean, torchs.running_mean)
    assert torch.equal(ours.running_var, torchs.running_var)
    assert torch.equal(ours.eval()(x), torchs.eval()(x.flatten(1)).view_as(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_are_float32_in_a_half_model(dtype):
    ours, _ = make_norms()
    exact = copy.deepcopy(ours)
    ours.running_mean += 1 / 3
    before = ours.running_mean.clone()
    ours.to(dtype)
    assert ours.weight.dtype == dtype
    assert torch.equal(ours.running_mean, before), "casting the model rounded the statistics"
    ours.running_mean.copy_(exact.running_mean)
    # 1,000 + noise: half precision sums could not tell the variance.
    x = (torch.randn(500, 2, 3) + 1000).to(dtype)
    exact(x.float())
    assert ours(x).dtype == dtype
    assert_close(ours.running_var, exact.running_var)


def test_it_has_no_integer_buffer_and_saves_its_statistics():
    ours, _ = make_norms()
    assert set(ours.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    assert all(tensor.is_floating_point() for tensor in ours.state_dict().values())


def test_a_forward_pass_without_gradients_leaves_the_statistics_alone_but_normalises_alike():
    ours, _ = make_norms()
    x = torch.randn(7, 2, 3)
    with torch.no_grad():
        first = ours(x)
    assert not ours.running_mean.any()
    assert torch.equal(ours(x), first)
    assert ours.running_mean.any()


def test_one_token_alone_is_normalised_by_the_running_statistics():
    ours, _ = make_norms()
    ours(torch.randn(7, 2, 3))
    x = torch.randn(1, 2, 3)
    in_training = ours(x)
    assert torch.equal(in_training, ours.eval()(x))
