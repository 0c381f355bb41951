"""The query norm on two workers, each with a share of the tokens."""

import pytest
import torch

from pkm_fairseq.modules import QueryBatchNorm
from tests.spawned import on_workers
from tests.tolerances import assert_close

SHARES = [(5, 2), (4, 0), (1, 1), (1, 0), (0, 0)]  # tokens of each worker


def draw_shares(tokens):
    """The queries, and the gradients of the normalised ones, of both workers."""
    torch.manual_seed(sum(tokens))
    total = sum(tokens)
    return [part.split(tokens) for part in (torch.randn(total, 2, 3) + 3, torch.randn(total, 2, 3))]


def normalise(norm, x, upstream):
    """Returns the norm's output, its gradients and its statistics after a training step."""
    x = x.clone().requires_grad_()
    norm.zero_grad()
    output = norm(x)
    output.backward(upstream)
    grads = [norm.weight.grad, norm.bias.grad]
    statistics = [norm.running_mean.clone(), norm.running_var.clone()]
    return {"each": [output.detach(), x.grad], "sums": grads, "same": statistics}


def train_together(rank):
    norm = QueryBatchNorm(2, 3, sync=True)
    return [normalise(norm, *(part[rank] for part in draw_shares(share))) for share in SHARES]


def train_apart(rank):
    norm = QueryBatchNorm(2, 3)
    for share in SHARES:
        normalise(norm, *(part[rank] for part in draw_shares(share)))
    own = norm.running_mean.clone()
    norm.average_over_workers()
    return own, norm.running_mean, norm.running_var


def test_synchronised_it_normalises_as_one_worker_with_all_tokens(tmp_path):
    results = on_workers(2, train_together, tmp_path)
    norm = QueryBatchNorm(2, 3)
    for share, *workers in zip(SHARES, *results):
        expected = normalise(norm, *(torch.cat(part) for part in draw_shares(share)))
        for actual, whole in zip(zip(*(worker["each"] for worker in workers)), expected["each"]):
            assert_close(torch.cat(actual), whole)
        for actual, whole in zip(zip(*(worker["sums"] for worker in workers)), expected["sums"]):
            assert_close(sum(actual), whole)
        for one, other, whole in zip(*(worker["same"] for worker in workers), expected["same"]):
            assert torch.equal(one, other)
            assert_close(one, whole)


def test_by_themselves_workers_share_the_mean_of_their_statistics(tmp_path):
    (own1, mean1, var1), (own2, mean2, var2) = on_workers(2, train_apart, tmp_path)
    assert not torch.allclose(own1, own2)
    assert_close(mean1, (own1 + own2) / 2)
    assert torch.equal(mean1, mean2)
    assert torch.equal(var1, var2)


@pytest.mark.parametrize("training", [True, False])
def test_synchronised_but_alone_it_is_the_same_norm(training):
    plain, sync = QueryBatchNorm(2, 3), QueryBatchNorm(2, 3, sync=True)
    x = torch.randn(7, 2, 3)
    assert torch.equal(plain.train(training)(x), sync.train(training)(x))
