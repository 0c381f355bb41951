"""Torch's own data parallelism (fairseq's c10d) around the model, which fairseq runs on GPUs only.

``legacy_ddp`` runs through the real commands, in tests/commands/test_pkm_adam.py.
"""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.models.tiny import draw_tokens, make_memory_model
from tests.optim.test_pkm_adam import make_optimizer
from tests.two_workers import on_two_workers

STEPS = 3
BATCHES = 4  # of two micro-batches on each of two workers


def train(rank, grad, mode, share):
    """Trains on every worker's ``share`` of the batches, all of them if that is None."""
    model = make_memory_model(pkm_grad=grad, pkm_mode=mode, pkm_query_norm="layer")
    # As fairseq wraps it; the optimizer adds up the workers' gradients, and divides by the tokens.
    module = model if share is None else DistributedDataParallel(model)
    optimizer = make_optimizer(model)
    norms = []
    for step in range(STEPS):
        tokens = draw_tokens(STEPS * BATCHES, 8).view(STEPS, BATCHES, 1, 8)[step]
        batches = tokens if share is None else tokens[rank * share : (rank + 1) * share]
        optimizer.zero_grad()
        for i, batch in enumerate(batches):
            if share is not None and i + 1 < share:
                with module.no_sync():
                    module(batch)[0].square().sum().backward()
            else:
                module(batch)[0].square().sum().backward()
        optimizer.all_reduce_grads(module)
        optimizer.multiply_grads((1 if share is None else 2) / tokens.numel())
        norms.append(optimizer.clip_grad_norm(0.5))
        optimizer.step()
    return [torch.stack(norms), *(param.detach() for param in model.parameters())]


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("grad", ["dense", "sparse"])
def test_two_workers_make_the_updates_of_one_on_the_same_batches(tmp_path, grad, mode):
    one, other = on_two_workers(train, tmp_path, grad, mode, BATCHES // 2)
    for actual, twin, expected in zip(one, other, train(0, grad, mode, None)):
        assert torch.equal(actual, twin)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-5)
