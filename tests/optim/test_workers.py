"""Torch's own data parallelism (fairseq's c10d) around the model, which fairseq runs on GPUs only.

``legacy_ddp`` runs through the real commands, in tests/commands/test_pkm_adam.py.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.models.tiny import draw_tokens, make_memory_model
from tests.optim.test_pkm_adam import make_optimizer
from tests.spawned import on_workers

UPDATES = 3
SENTENCES, LENGTH = 6, 8  # of each update
PAD = 1


def train(rank, shares, batches, filler="pads", updates=UPDATES, slots=None, **options):
    """Trains on this worker's share of each update's sentences, in so many batches.

    A worker without sentences runs, as in fairseq, a batch that counts nothing: of ``filler``,
    pads alone or sentences of the first update.
    """
    model = make_memory_model(**options)
    if slots is not None:
        model.train_slots(dict.fromkeys(model.tables(), slots))
    module = DistributedDataParallel(model) if len(shares) > 1 else model
    optimizer = make_optimizer(model)
    norms = []
    drawn = draw_tokens(updates * SENTENCES, LENGTH).split(SENTENCES)
    for sentences in drawn:
        share = sentences.split(shares)[rank]
        counted = float(len(share) > 0)
        if not counted:
            pads = torch.full((batches, LENGTH), PAD)
            share = pads if filler == "pads" else drawn[0][:batches]
        optimizer.zero_grad()
        for i, batch in enumerate(share.chunk(batches), 1):
            module.require_backward_grad_sync = i == batches
            with nullcontext() if counted else model.not_counting():
                output, _ = module(batch)
            optimizer.backward(counted * output.square().sum())
        optimizer.all_reduce_grads(module)
        optimizer.multiply_grads(len(shares) / sentences.numel())
        norms.append(optimizer.clip_grad_norm(0.5))
        optimizer.step()
    with model.whole_tables(optimizer):
        return {"norms": torch.stack(norms), **model.state_dict()}


# name: sentences of each worker, batches they come in, options of the model
CASES = {
    "synchronised": ([3, 3], 1, {"pkm_query_norm": "batch", "pkm_sync_query_norm": True}),
    "only pads": ([6, 0], 1, {"pkm_query_norm": "batch", "pkm_sync_query_norm": True}),
    "sentences that do not count": (
        *([6, 0], 1),
        {"pkm_query_norm": "layer", "pkm_subkeys": 64, "filler": "sentences"},
    ),
    "synchronised, sentences that do not count": (
        *([6, 0], 1),
        {"pkm_query_norm": "batch", "pkm_sync_query_norm": True, "filler": "sentences"},
    ),
    "replace": ([4, 2], 2, {"pkm_query_norm": "layer", "pkm_mode": "replace"}),
    "shared values": (
        *([2, 4], 2),
        {"pkm_query_norm": "none", "pkm_layers": [0, 2], "pkm_share_values": True},
    ),
}
GRADIENTS = ["dense", "sparse"]


def train_every_case(rank):
    return {
        name: {grad: train(rank, shares, batches, pkm_grad=grad, **options) for grad in GRADIENTS}
        for name, (shares, batches, options) in CASES.items()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return on_workers(2, train_every_case, tmp_path_factory.mktemp("workers"))


@pytest.mark.parametrize("grad", GRADIENTS)
@pytest.mark.parametrize("case", CASES)
def test_two_workers_make_the_updates_of_one(trained, case, grad):
    _, batches, options = CASES[case]
    alone = train(0, [SENTENCES], batches, pkm_grad=grad, **options)
    for name, expected in alone.items():
        one, other = (worker[case][grad][name] for worker in trained)
        assert torch.equal(one, other), name
        # A norm over the batch takes out what this bias adds: its gradient is rounding alone.
        if not ("query.bias" in name and options["pkm_query_norm"] == "batch"):
            torch.testing.assert_close(one, expected, rtol=1e-3, atol=2e-5, msg=name)
