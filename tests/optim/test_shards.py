"""Tables that workers split by columns, against one process with the whole table."""

import pytest
import torch

from pkm_fairseq.modules.value_table import ValueTable
from tests.models.tiny import make_memory_model, make_model
from tests.optim.test_pkm_adam import make_optimizer
from tests.optim.test_workers import GRADIENTS, SENTENCES, train
from tests.spawned import on_workers

SLOTS, VALUE_DIM, READS = 40, 12, 5
TOKENS = [3, 0, 6, 2]  # of each worker
UPDATES = 15
OPTIONS = {"pkm_query_norm": "layer", "pkm_value_dim": 8}
# name: sentences of each worker, batches they come in, shards, options of the model
CASES = {
    "2 of 2": ([3, 3], 1, 2, {}),
    "2 of 2, one without sentences": ([6, 0], 1, 2, {"filler": "sentences"}),
    "2 of 2, listed slots": ([4, 2], 2, 2, {"slots": torch.arange(0, 64, 3)}),
    "4 of 4": ([2, 1, 2, 1], 1, 4, {"pkm_layers": [0, 2], "pkm_share_values": True}),
    "2 of 4": ([2, 1, 1, 2], 1, 2, {"pkm_heads_merge": "concat"}),
}


def draw_reads():
    generator = torch.Generator().manual_seed(0)
    tokens = sum(TOKENS)
    slots = torch.randint(SLOTS, (tokens, READS), generator=generator)
    numbers = torch.randn(tokens, READS + VALUE_DIM, generator=generator)
    return slots, numbers[:, :READS], numbers[:, READS:]


def make_table(shards, grad):
    torch.manual_seed(0)
    return ValueTable(SLOTS, VALUE_DIM, "normal", grad, shards=shards).double()


def read(rank, shards, grad, split=TOKENS):
    """Reads this worker's tokens, and returns what it read and all gradients."""
    slots, weights, grad_output = (part.split(split)[rank] for part in draw_reads())
    weights = weights.double().requires_grad_()
    table = make_table(shards, grad)
    output = table(slots, weights)
    output.backward(grad_output.double())
    values = table.weight.grad.to_dense() if table.weight.grad.is_sparse else table.weight.grad
    return {"output": output.detach(), "weights": weights.grad, "values": values}


def make_values_beside(dense, shards):
    """Loads a model without memory into one with shards, and returns the values it has then."""
    model = make_memory_model(pkm_shards=shards)
    model.load_state_dict(dense)
    with model.whole_tables(make_optimizer(model)):
        return model.state_dict()["encoder.sentence_encoder.layers.1.pkm.values.weight"]


def work(rank, workers):
    """Reads in every way and trains all cases of so many workers."""
    reads = [(grad, shards) for grad in GRADIENTS for shards in (2, 4) if workers == 4]
    trained = {
        name: {
            grad: train(
                rank,
                shares,
                batches,
                updates=UPDATES,
                pkm_grad=grad,
                pkm_shards=shards,
                **{**OPTIONS, **options},
            )
            for grad in GRADIENTS
        }
        for name, (shares, batches, shards, options) in CASES.items()
        if len(shares) == workers
    }
    read_so = {(grad, shards): read(rank, shards, grad) for grad, shards in reads}
    fresh = make_values_beside(make_model().state_dict(), 2)
    return {"fresh": fresh, "read": read_so, "trained": trained}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return {
        workers: on_workers(workers, work, tmp_path_factory.mktemp("workers"), workers)
        for workers in (2, 4)
    }


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("grad", GRADIENTS)
def test_a_split_table_reads_as_a_whole_one(results, grad, shards):
    reads = [worker["read"][grad, shards] for worker in results[4]]
    together = [
        {name: torch.cat([worker[name] for worker in group]) for name in part}
        for group in (reads[first : first + shards] for first in range(0, 4, shards))
        for part in [("output", "weights")]
    ]
    whole = read(0, 1, grad, split=[sum(TOKENS)])
    for name in ("output", "weights"):
        torch.testing.assert_close(torch.cat([group[name] for group in together]), whole[name])
    # Each group has the gradient of its own tokens.
    values = sum(
        torch.cat([worker["values"] for worker in reads[first : first + shards]], 1)
        for first in range(0, 4, shards)
    )
    torch.testing.assert_close(values, whole["values"])


def test_a_model_without_memory_gets_the_same_values(results):
    values = make_memory_model().memories()[1].values.weight
    assert torch.equal(results[2][0]["fresh"], values)


@pytest.mark.parametrize("grad", GRADIENTS)
@pytest.mark.parametrize("case", CASES)
def test_workers_with_shards_make_the_updates_of_one_process(results, case, grad):
    shares, _, _, options = CASES[case]
    alone = train(0, [SENTENCES], 1, updates=UPDATES, pkm_grad=grad, **{**OPTIONS, **options})
    saved = results[len(shares)][0]["trained"][case][grad]
    assert saved.keys() == alone.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(saved[name], expected, rtol=1e-4, atol=1e-5, msg=name)
