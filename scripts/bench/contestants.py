"""The layers that bench_layer.py compares, each with the optimizer and the clipping it comes with.

T tokens, D width.
"""

from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from baseline import BaselineMemory
from measure import compare
from torch import nn

from pkm_fairseq.modules import ProductKeyMemory
from pkm_fairseq.optim import LazyAdam

BASELINE, PYPI, FFN = "baseline", "product-key-memory", "ffn"
DENSE, SPARSE = "ours, dense", "ours, sparse"
# How many times the bytes of the table each holds between steps, and at its peak.
TABLES = {BASELINE: (3, 6), PYPI: (3, 6), DENSE: (4, 4), SPARSE: (3, 3.5), FFN: (0, 0)}
MAX_NORM = 1.0
# Of the largest number: sums of some hundred products, in another order.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Work:
    """How large a layer is, and how many tokens it is given."""

    tokens: int
    dim: int
    subkeys: int
    heads: int = 4
    topk: int = 32
    key_dim: int = 256

    @property
    def memory_options(self):
        return {name: getattr(self, name) for name in ("subkeys", "heads", "topk", "key_dim")}

    def table_bytes(self, dtype):
        return self.subkeys**2 * self.dim * dtype.itemsize

    def shrunk(self):
        """Returns the work on few tokens and slots."""
        return replace(self, tokens=min(self.tokens, 32), subkeys=min(self.subkeys, 2 * self.topk))

    def __str__(self):
        return ", ".join(f"{name.replace('_', '-')} {n:,}" for name, n in asdict(self).items())


class PyPIMemory(nn.Module):
    """PyPI's ``product-key-memory``, for tokens (T, D)."""

    def __init__(self, work):
        super().__init__()
        from product_key_memory import PKM

        self.pkm = PKM(
            work.dim,
            heads=work.heads,
            num_keys=work.subkeys,
            topk=work.topk,
            dim_head=work.key_dim // 2,
        )

    def forward(self, x):
        return self.pkm(x.unsqueeze(0)).squeeze(0)


def is_installed(name):
    return name != PYPI or find_spec("product_key_memory") is not None


def make_layer(name, work):
    if name == BASELINE:
        return BaselineMemory(work.dim, **work.memory_options)
    if name == PYPI:
        return PyPIMemory(work)
    if name == FFN:
        wide = 4 * work.dim
        return nn.Sequential(nn.Linear(work.dim, wide), nn.GELU(), nn.Linear(wide, work.dim))
    grad = {DENSE: "dense", SPARSE: "sparse"}[name]
    return ProductKeyMemory(work.dim, **work.memory_options, grad=grad)


def dtype_of(name, dtype, device):
    """Returns the dtype in which a layer is measured.

    That of older torch's EmbeddingBag on CUDA cannot be bfloat16, for want of the gradient of its
    weights: float16 moves as many bytes.
    """
    if name not in (BASELINE, PYPI) or dtype != torch.bfloat16:
        return dtype
    values = torch.ones(1, 1, dtype=dtype, device=device, requires_grad=True)
    slots = torch.zeros(1, 1, dtype=torch.int64, device=device)
    try:
        F.embedding_bag(slots, values, mode="sum", per_sample_weights=values).backward()
    except NotImplementedError:
        return torch.float16
    return dtype


class Contestant:
    """A layer at work, with its optimizer.

    Args:
        layer: the layer.
        work: its ``Work``.
        device, dtype: of its parameters and of the tokens.
        adam: options of Adam.
    """

    def __init__(self, layer, work, device="cpu", dtype=torch.float32, **adam):
        self.layer = layer.to(device, dtype)
        self.is_ours = isinstance(layer, ProductKeyMemory)
        optimizer = LazyAdam if self.is_ours else torch.optim.Adam
        # Where 1e-8 is zero, rows that were not read would become 0 / 0.
        eps = max(1e-8, torch.finfo(dtype).tiny)
        adam = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": eps, **adam}
        self.optimizer = optimizer(self.layer.parameters(), **adam)
        self.x = torch.empty(work.tokens, work.dim, device=device, dtype=dtype, requires_grad=True)
        self.upstream = torch.empty_like(self.x, requires_grad=False)
        self.draw(0)

    def draw(self, seed):
        """Draws tokens, (T, D), and the gradient of what is read for them: the same for all."""
        generator = torch.Generator(self.x.device).manual_seed(seed)
        for tensor in (self.x.data, self.upstream):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, device=tensor.device))

    def forward(self):
        """Reads the memory as a trained model does: without gradients, in evaluation mode."""
        with torch.no_grad():
            return self.layer.eval()(self.x)

    def backward(self):
        self.layer.train()(self.x).backward(self.upstream)

    def update(self):
        """Clips the gradients and moves the parameters."""
        if self.is_ours:
            norm = self.optimizer.grad_norm()
            self.optimizer.step(scale=(norm / MAX_NORM).clamp(min=1))
        else:
            nn.utils.clip_grad_norm_(self.layer.parameters(), MAX_NORM)
            self.optimizer.step()

    def step(self):
        """Does all that an update takes: forward, backward, clipping, optimizer, clearing."""
        self.backward()
        self.update()
        self.optimizer.zero_grad()
        self.x.grad = None

    def state(self):
        """Returns the parameters and buffers of the layer, and all that the optimizer keeps."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.layer.parameters(), *self.layer.buffers(), *kept]

    def bytes_expected(self):
        """Returns the bytes of the parameters and buffers and of Adam's two moments."""
        moments = [
            state[name]
            for state in self.optimizer.state.values()
            for name in ("exp_avg", "exp_avg_sq")
        ]
        tensors = [*self.layer.parameters(), *self.layer.buffers(), *moments]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check(name, work, device="cpu"):
    """Compares what a layer reads, its gradients and an update with the baseline's.

    Raises:
        ValueError: where they differ.
    """
    torch.manual_seed(1)
    layer = make_layer(name, work)
    baseline = make_layer(BASELINE, work)
    if name == PYPI:
        # It normalises each half of a query by itself, and its queries have no bias.
        halves = (2 * work.heads, work.key_dim // 2)
        baseline.query_norm = nn.Sequential(
            nn.Unflatten(1, halves), nn.LayerNorm(halves[1]), nn.Flatten()
        )
        baseline.query.bias.requires_grad_(False).zero_()
    baseline.load_state_dict(in_baseline_form(layer, lambda p: p.detach()), strict=False)
    # With such an eps an update is nearly proportional to its gradient, rounding errors too.
    ours, expected = (
        Contestant(layer, work, device, eps=1.0, lr=1.0) for layer in (layer, baseline)
    )

    def compare_here(what, result, other):
        compare(f"{name} differs from the baseline: {what}, at {work}", result, other, TOLERANCE)

    def compare_all(what, read):
        others = in_baseline_form(baseline, read)
        for parameter, result in in_baseline_form(layer, read).items():
            compare_here(f"{what} of {parameter}", result, others[parameter])

    compare_here("what is read", ours.forward(), expected.forward())
    for contestant in (ours, expected):
        contestant.backward()
    compare_here("the gradient of the tokens", ours.x.grad, expected.x.grad)
    compare_all("the gradient", lambda p: p.grad.to_dense())
    before = in_baseline_form(baseline, lambda p: p.detach().clone())
    for contestant in (ours, expected):
        contestant.update()
    results, others = (in_baseline_form(each, lambda p: p.detach()) for each in (layer, baseline))
    for parameter, result in results.items():
        start = before[parameter]
        compare_here(f"the update of {parameter}", result - start, others[parameter] - start)


def in_baseline_form(layer, read):
    """Returns ``read`` of each parameter that is trained, under the baseline's name and shape."""
    tensors = {
        name: read(parameter)
        for name, parameter in layer.named_parameters()
        if parameter.requires_grad
    }
    if not isinstance(layer, PyPIMemory):
        return tensors
    heads = len(tensors["pkm.keys"])
    queries = tensors["pkm.to_queries.weight"].unflatten(0, (2, heads, -1))
    return {
        "query.weight": queries.transpose(0, 1).flatten(0, 2),
        "query_norm.1.weight": tensors["pkm.norm.weight"],
        "query_norm.1.bias": tensors["pkm.norm.bias"],
        "subkeys": tensors["pkm.keys"].transpose(1, 2),
        "values.weight": tensors["pkm.values.weight"],
    }
