"""A memory that makes no queries reads what one that makes them reads."""

import copy

import pytest
import torch

from pkm_fairseq.modules import ProductKeyMemory
from pkm_fairseq.modules.folded_queries import can_fold
from pkm_fairseq.ops.cpu import numba_imports
from tests.tolerances import assert_close

DIM, TOKENS = 8, 100
pytestmark = pytest.mark.skipif(not numba_imports(), reason="numba is not installed")


@pytest.fixture(autouse=True)
def with_kernels(monkeypatch):
    monkeypatch.setenv("PKM_KERNELS", "1")


def make_memory(**options):
    """A memory with wide queries, whose norm is not as it was when new."""
    torch.manual_seed(0)
    sizes = {"subkeys": 9, "heads": 2, "topk": 3, "key_dim": 64}
    memory = ProductKeyMemory(DIM, **{**sizes, **options})
    for tensor in [*memory.query_norm.parameters(), *memory.query_norm.buffers()]:
        tensor.data += 0.5 * torch.rand_like(tensor)
    torch.nn.init.normal_(memory.query.bias)
    return memory


def draw_tokens():
    torch.manual_seed(1)
    return (2 * torch.randn(TOKENS, DIM) + 1).requires_grad_()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"weights": "relu"}, {"heads_merge": "concat", "gate": "silu"}, {"key_dropout": 0.3}],
    ids=str,
)
def test_reads_gradients_and_statistics_are_those_of_the_queries(options, training, monkeypatch):
    folded = make_memory(**options).train(training)
    plain = copy.deepcopy(folded)
    results = []
    for memory, kernels in ((folded, "1"), (plain, "0")):
        monkeypatch.setenv("PKM_KERNELS", kernels)
        x = draw_tokens()
        assert can_fold(memory, x) == (kernels == "1")
        read = memory(x)
        upstream = torch.linspace(-1, 1, read.numel()).view(read.shape)
        gradients = torch.autograd.grad(read, [x, *memory.parameters()], upstream)
        results.append([read, *(gradient.to_dense() for gradient in gradients), *memory.buffers()])
    names = ["read", "x", *dict(folded.named_parameters()), *dict(folded.named_buffers())]
    for name, actual, expected in zip(names, *results):
        # Sums of a hundred terms of order 10.
        largest = max(1.0, expected.abs().max().item())
        assert_close(
            actual / largest, expected / largest, lambda text, name=name: f"{name}: {text}"
        )
    assert_changed = torch.equal if not training else lambda *pair: not torch.equal(*pair)
    assert assert_changed(
        folded.query_norm.running_var, make_memory(**options).query_norm.running_var
    )


def test_what_is_not_to_be_counted_leaves_the_statistics_alone():
    memory, x = make_memory(), draw_tokens()
    before = memory.query_norm.running_mean.clone()
    with torch.no_grad():
        memory(x)
    memory.query_norm.update_stats = False
    memory(x)
    assert torch.equal(memory.query_norm.running_mean, before)
    memory.query_norm.update_stats = True
    memory(x)
    assert not torch.isclose(memory.query_norm.running_mean, before).any()


def test_tokens_that_are_all_alike_have_no_variance():
    memory = make_memory()
    x = torch.full((TOKENS, DIM), 1000 / 3)
    assert can_fold(memory, x)
    assert memory(x).isfinite().all()


class OwnQuery(ProductKeyMemory):
    def build_query(self, input_dim, query_dim):
        return torch.nn.Sequential(torch.nn.Linear(input_dim, query_dim), torch.nn.Tanh())


class QueryWithoutBias(ProductKeyMemory):
    def build_query(self, input_dim, query_dim):
        return torch.nn.Linear(input_dim, query_dim, bias=False)


def test_queries_that_others_see_or_change_are_made():
    x = draw_tokens()
    assert can_fold(make_memory(), x)
    assert can_fold(make_memory(query_dropout=0.1).eval(), x)
    for options in ({"query_dropout": 0.1}, {"score": "cosine"}, {"query_norm": "layer"}):
        assert not can_fold(make_memory(**options), x)
    for options in ({"sync_query_norm": True}, {"key_dim": 4}):
        assert not can_fold(make_memory(**options), x)
    for own in (OwnQuery, QueryWithoutBias):
        memory = own(DIM, subkeys=9, heads=2, topk=3, key_dim=64)
        assert not can_fold(memory, x)
        assert memory(x).shape == x.shape
    assert not can_fold(make_memory().double(), x.double())
    assert not can_fold(make_memory(), x[:1])
    for part in ("query", "query_norm"):
        seen = make_memory()
        getattr(seen, part).register_forward_hook(lambda *call: None)
        assert not can_fold(seen, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fold(make_memory(), x)
