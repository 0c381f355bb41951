import copy

import pytest
import torch

from pkm_fairseq.modules import ProductKeyMemory, ValueTable
from pkm_fairseq.usage.observe import observe_reads
from tests.tolerances import assert_close

OPTIONS = [
    {},
    {"query_norm": "layer"},
    {"query_norm": "none"},
    {"value_dim": 5},
    {"value_init": "zero"},
    {"subkeys": 1, "topk": 1},
    {"subkeys": 7, "topk": 7, "heads": 1},
    {"subkeys": 13, "topk": 6, "heads": 3, "key_dim": 10, "value_dim": 9},
]
# The later forms of the memory, each by itself and with others.
ALL_FORMS = {"heads_merge": "concat", "gate": "silu", "score": "cosine", "weights": "relu"}
LATER_FORMS = [
    {"gate": "silu"},
    {"gate": "silu", "value_dim": 5},
    {"gate": "sigmoid"},
    {"score": "cosine"},
    {"score": "cosine", "query_norm": "none", "key_dim": 6},
    {"weights": "relu"},
    {"weights": "sigmoid"},
    {"heads_merge": "concat"},
    {"heads_merge": "concat", "heads": 5, "value_dim": 3},
    ALL_FORMS,
    {"heads_merge": "concat", "gate": "sigmoid", "score": "cosine", "weights": "sigmoid"},
    {"gate": "silu", "weights": "relu", "query_norm": "layer", "grad": "sparse"},
]


def make_memory(input_dim=12, **options):
    torch.manual_seed(0)
    sizes = {"subkeys": 6, "heads": 2, "topk": 3, "key_dim": 8}
    memory = ProductKeyMemory(input_dim, **{**sizes, **options}).double()
    # Norm weights that are not 1 and 0, and statistics that are not those of a new norm.
    for name, tensor in [*memory.query_norm.named_parameters(), *memory.query_norm.named_buffers()]:
        tensor.data = 0.5 + torch.rand_like(tensor) if "bias" not in name else tensor + 0.1
    # Gates and temperatures as after some training.
    for part in (memory.gate, memory.search.cosine):
        for parameter in part.parameters() if part else ():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return memory


def naive_read(memory, tokens, kept=None):
    """The layer as the paper defines it, token by token and head by head, over all slots.

    ``kept`` may give the sub-keys of each head's halves that alone are there.
    """
    heads, _, subkeys, half = memory.subkeys.shape
    projected = tokens @ memory.query.weight.T + memory.query.bias
    norm = memory.query_norm
    if type(norm).__name__ == "QueryBatchNorm":
        batch = memory.training and len(tokens) > 1
        mean = projected.mean(0) if batch else norm.running_mean
        var = projected.var(0, unbiased=False) if batch else norm.running_var
        projected = (projected - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
    mean = torch.tensor(1 / memory.search.topk)  # in float32, as a checkpoint has it
    weigh = {
        "softmax": lambda scores: scores.softmax(0),
        "relu": lambda scores: mean * scores.clamp(min=0),
        "sigmoid": lambda scores: mean / (1 + (-scores).exp()),
    }[memory.search.weights]
    cosine = memory.search.cosine
    outputs = []
    for token, projected_token in zip(tokens, projected):
        reads = []
        for head in range(heads):
            query = projected_token[head * 2 * half : (head + 1) * 2 * half]
            if isinstance(norm, torch.nn.LayerNorm):
                query = (query - query.mean()) / (query.var(unbiased=False) + norm.eps).sqrt()
                query = query * norm.weight + norm.bias
            if cosine:
                temperature = (half / 3) ** 0.5 * cosine.log_temperature[head].exp()
            scores = {}
            first, second = kept[head] if kept else (range(subkeys), range(subkeys))
            for i in first:
                for j in second:
                    key = torch.cat((memory.subkeys[head, 0, i], memory.subkeys[head, 1, j]))
                    if cosine:
                        both = zip(query.split(half), key.split(half))
                        scores[i * subkeys + j] = temperature * sum(cos(q, c) for q, c in both)
                    else:
                        scores[i * subkeys + j] = query @ key
            best = sorted(scores, key=scores.get, reverse=True)[: memory.search.topk]
            weights = weigh(torch.stack([scores[slot] for slot in best]))
            reads.append(sum(w * memory.values.weight[s] for w, s in zip(weights, best)))
        read = torch.cat(reads) if memory.concat else sum(reads)
        if memory.gate:
            gate = memory.gate.projection.weight @ token
            if memory.gate.projection.bias is None:
                read = read * gate / (1 + (-gate).exp())
            else:
                read = read / (1 + (-gate - memory.gate.projection.bias).exp())
        outputs.append(memory.output(read))
    return torch.stack(outputs)


def cos(a, b):
    """The cosine of two vectors, 0 of a vector of no length."""
    return a @ b / ((a @ a + 1e-6) * (b @ b + 1e-6)).sqrt()


def gradients_of(memory, x, output):
    upstream = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    gradients = torch.autograd.grad(output, [x, *memory.parameters()], upstream)
    return [gradient.to_dense() for gradient in gradients]


def assert_naive(memory, x, actual, kept=None):
    """Compares an output and all its gradients with the naive memory's."""
    expected = naive_read(memory, x, kept)
    assert_close(actual, expected)
    names = ["x", *dict(memory.named_parameters())]
    pairs = zip(gradients_of(memory, x, actual), gradients_of(memory, x, expected))
    for name, (ours, theirs) in zip(names, pairs):
        assert_close(ours, theirs, lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize("options", OPTIONS + LATER_FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_it_matches_the_naive_memory_in_output_and_every_gradient(options, training):
    memory = make_memory(**options).train(training)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    assert_naive(memory, x, memory(x))


@pytest.mark.parametrize("options", LATER_FORMS)
def test_every_form_matches_the_naive_memory_on_every_kernel_path(form, options):
    input_dim = options.get("heads", 2) * 6
    memory = make_memory(input_dim, **options).float()
    x = torch.randn(4, input_dim, requires_grad=True)
    assert_naive(memory, x, memory(x))


@pytest.mark.parametrize("options", [{}, ALL_FORMS])
def test_it_passes_gradcheck(options):
    memory = make_memory(**options)
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in memory.named_parameters()]

    def read(x, *parameters):
        return torch.func.functional_call(memory, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(read, (x, *memory.parameters()))


@pytest.mark.parametrize(
    "options", [{"query_norm": "batch"}, {"query_norm": "layer"}, {"query_norm": "none"}, ALL_FORMS]
)
def test_padding_changes_nothing_for_the_real_tokens(options):
    memory = make_memory(**options)
    unpadded = copy.deepcopy(memory)
    x = torch.randn(4, 3, 12, dtype=torch.float64)
    padding = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    x[padding] = float("nan")  # whatever stands there must not matter
    x.requires_grad_()
    output = memory(x, padding)
    expected = unpadded(x[~padding])
    assert torch.equal(output[~padding], expected)
    assert torch.equal(output[padding], torch.zeros(6, 12, dtype=torch.float64))
    for name, buffer in memory.named_buffers():
        assert torch.equal(buffer, dict(unpadded.named_buffers())[name]), name
    ours = gradients_of(memory, x, output)
    assert torch.equal(ours[0][padding], torch.zeros(6, 12, dtype=torch.float64))


@pytest.mark.parametrize(
    "options", [{"query_norm": "batch"}, {"query_norm": "layer"}, {"query_norm": "none"}, ALL_FORMS]
)
@pytest.mark.parametrize("training", [True, False])
def test_no_tokens_and_nothing_but_padding_read_nothing(options, training):
    memory = make_memory(**options).train(training)
    before = {name: buffer.clone() for name, buffer in memory.named_buffers()}
    assert memory(torch.zeros(0, 3, 12, dtype=torch.float64)).shape == (0, 3, 12)
    x = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    output = memory(x, torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(output, torch.zeros_like(x))
    for gradient in gradients_of(memory, x, output):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    for name, buffer in memory.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_it_does_not_change_its_input():
    x = torch.randn(4, 12, dtype=torch.float64)
    before = x.clone()
    make_memory(value_dropout=0.5, query_dropout=0.5)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("option", ["query_dropout", "value_dropout"])
def test_dropout_acts_in_training_only(option):
    memory = make_memory(**{option: 0.5}, query_norm="none")
    x = torch.randn(50, 12, dtype=torch.float64)
    assert not torch.equal(memory(x), memory(x))
    memory.eval()
    assert_close(memory(x), naive_read(memory, x))


def test_query_dropout_drops_numbers_of_the_normalised_query():
    memory = make_memory(query_dropout=0.25)
    query = memory._query(torch.randn(400, 12, dtype=torch.float64))
    assert (query == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)


def test_value_dropout_drops_numbers_of_the_read():
    memory = make_memory(value_dropout=0.25)
    read = memory(torch.randn(400, 12, dtype=torch.float64))
    assert (read == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)


def draw_kept(memory, seed):
    """The sub-keys that a training pass after ``seed`` reads: two lists for each head."""
    x = torch.randn(200, memory.query.in_features).to(memory.subkeys)
    torch.manual_seed(seed)
    with observe_reads({0: memory}) as reads:
        memory(x)
    ((slots, _),) = reads[0]  # (T, H, K)
    n = memory.subkeys.shape[2]
    return [
        [half.unique().tolist() for half in (of_head // n, of_head % n)]
        for of_head in slots.unbind(1)
    ]


@pytest.mark.parametrize(
    ("dropout", "dtype"), [(0.25, torch.float32), (0.5, torch.float64), (0.7, torch.float32)]
)
def test_key_dropout_trains_the_memory_of_the_sub_keys_it_keeps(form, dropout, dtype):
    memory = make_memory(subkeys=11, key_dropout=dropout, query_norm="layer").to(dtype)
    kept = draw_kept(memory, seed=5)
    sizes = {len(half) for of_head in kept for half in of_head}
    assert sizes == {{0.25: 8, 0.5: 6, 0.7: 3}[dropout]}
    x = torch.randn(5, 12, dtype=dtype, requires_grad=True)
    torch.manual_seed(5)
    assert_naive(memory, x, memory(x), kept)
    names = ["x", *dict(memory.named_parameters())]
    learning = gradients_of(memory, x, memory(x))[names.index("subkeys")].any(-1)  # (H, 2, N)
    assert learning.sum(-1).max() <= max(sizes)


def test_key_dropout_draws_anew_for_each_pass_head_and_half_and_each_sub_key_alike():
    memory = make_memory(subkeys=8, topk=6, key_dropout=0.25)
    passes = [draw_kept(memory, seed) for seed in range(200)]
    assert draw_kept(memory, 0) == passes[0]
    halves = [half for of_pass in passes for of_head in of_pass for half in of_head]
    assert {len(half) for half in halves} == {6}
    # Two draws of 6 of 8 agree once in 28 times.
    for one, other in ((0, 1), (0, 2), (1, 2), (0, 4)):
        together = [a == b for a, b in zip(halves[one::4], halves[other::4])]
        assert sum(together) < 0.1 * len(together)
    times = torch.tensor([number for half in halves for number in half]).bincount()
    assert (times / len(halves) - 0.75).abs().max() < 0.06


def test_without_key_dropout_and_in_evaluation_nothing_is_drawn():
    x = torch.randn(5, 12, dtype=torch.float64)
    for memory in (make_memory(), make_memory(key_dropout=0.5).eval()):
        before = torch.get_rng_state()
        assert_close(memory(x), naive_read(memory, x))
        assert torch.equal(torch.get_rng_state(), before)


def test_key_dropout_makes_a_token_read_other_slots():
    memories = [make_memory(subkeys=8, key_dropout=p, query_norm="layer") for p in (0, 0.5)]
    x = torch.randn(1, 12, dtype=torch.float64)
    used = []
    for memory in memories:
        with observe_reads({0: memory}) as reads:
            for _ in range(100):
                memory(x)
        used.append(len(torch.cat([slots for slots, _ in reads[0]]).unique()))
    assert used[0] <= 6  # 3 for each head
    assert used[1] > 5 * used[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_softmax_and_the_query_statistics_keep_float32_in_a_half_model(dtype, monkeypatch):
    memory = make_memory().to(dtype)
    seen = []
    monkeypatch.setattr(
        "pkm_fairseq.modules.value_table.weighted_bag",
        lambda values, slots, weights, _: seen.append(weights) or values[slots[:, 0]],
    )
    output = memory(torch.randn(5, 12, dtype=dtype))
    assert output.dtype == dtype
    assert seen[0].dtype == torch.float32
    total = seen[0].view(5, 2, 3).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
    assert memory.query_norm.running_mean.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [ALL_FORMS, {**ALL_FORMS, "gate": "sigmoid", "weights": "sigmoid"}]
)
def test_in_half_precision_the_later_forms_read_as_in_full(form, options, dtype):
    memory = make_memory(query_norm="none", **options).to(dtype)
    exact = copy.deepcopy(memory).double()
    x = torch.randn(20, 12, dtype=dtype, requires_grad=True)
    with observe_reads({0: memory, 1: exact}) as reads:
        output, expected = memory(x), exact(x.double())
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in memory.parameters())
    ((slots, weights),), ((exact_slots, exact_weights),) = reads.values()
    assert output.dtype == dtype
    assert weights.dtype == torch.float32
    same = (slots == exact_slots).flatten(1).all(1)  # (T,), whose order no rounding has changed
    assert same.sum() > 10
    error = {"rtol": 0, "atol": 16 * torch.finfo(dtype).eps}
    torch.testing.assert_close(weights[same].double(), exact_weights[same], **error)
    torch.testing.assert_close(output[same].double(), expected[same], **error)


def test_cosines_are_of_length_one_whatever_the_lengths_and_a_zero_vector_scores_zero():
    options = {"score": "cosine", "weights": "sigmoid", "query_norm": "none"}
    memory = make_memory(**options, query_dropout=0.5, topk=4)
    temperature = (4 / 3) ** 0.5 * memory.search.cosine.log_temperature.exp()  # (H,)
    query = torch.randn(7, 2, 2, 4, dtype=torch.float64)
    query[0] = 0
    query.requires_grad_()
    for scale in (0.1, 1e4):
        slots, weights = memory.search(query * scale, memory.subkeys * scale)
        scores = (4 * weights).logit()
        assert_close(scores[0], torch.zeros_like(scores[0]))
        assert (scores.abs() <= 2 * temperature.unsqueeze(1)).all()
        expected = memory.search(query, memory.subkeys)
        assert torch.equal(slots[1:], expected[0][1:])
        torch.testing.assert_close(weights, expected[1], rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(weights.sum(), query)
    assert gradient.isfinite().all()
    # The square of such a length is no number of half precision.
    _, weights = memory.half().search(300 * query.half(), memory.subkeys)
    torch.testing.assert_close(weights.double(), expected[1], rtol=0, atol=2e-3)


@pytest.mark.parametrize("weights", ["relu", "sigmoid"])
def test_weights_by_themselves_are_the_same_with_another_topk(weights):
    memory, other = (make_memory(weights=weights, topk=topk).eval() for topk in (3, 2))
    other.load_state_dict(memory.state_dict())
    query = torch.randn(5, 2, 2, 4, dtype=torch.float64)
    (slots, expected), found = (of.search(query, of.subkeys) for of in (memory, other))
    assert torch.equal(found[0], slots[..., :2])
    assert_close(found[1], expected[..., :2])


@pytest.mark.parametrize("options", [{}, {"heads_merge": "concat", "gate": "silu"}])
def test_relu_reads_nothing_where_no_score_is_positive(options):
    memory = make_memory(weights="relu", **options)
    memory.subkeys.data.abs_()
    query = -torch.rand(3, 2, 2, 4, dtype=torch.float64)
    _, weights = memory.search(query, memory.subkeys)
    assert not weights.any()
    memory._query = lambda tokens: query
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    output = memory(x)
    assert torch.equal(output, torch.zeros_like(output))
    output.sum().backward()
    assert not memory.values.weight.grad.any()


def test_new_parameters_have_the_scale_the_paper_gives_them():
    torch.manual_seed(0)
    memory = ProductKeyMemory(64, subkeys=32, key_dim=48, value_dim=100, topk=8)
    bound = 24**-0.5
    assert memory.subkeys.abs().max() <= bound
    assert memory.subkeys.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert memory.values.weight.std().item() == pytest.approx(0.1, rel=0.01)
    assert not ProductKeyMemory(64, subkeys=8, topk=2, value_init="zero").values.weight.any()


class Shift(torch.nn.Module):
    """A part of a query network that has only a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.by = torch.nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x):
        return x + self.by


class OwnQueryMemory(ProductKeyMemory):
    def build_query(self, input_dim, query_dim):
        norm = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.GELU())
        first = torch.nn.Linear(input_dim, 8, bias=False)
        return torch.nn.Sequential(first, norm, Shift(), torch.nn.Linear(8, query_dim))


def test_a_query_network_of_any_parts_is_reset_part_by_part():
    memory = OwnQueryMemory(400, subkeys=8, topk=2)
    for parameter in memory.query.parameters():
        parameter.data.fill_(3)
    memory.reset_parameters()
    first, norm, shift, last = memory.query
    assert first.weight.std().item() == pytest.approx(400**-0.5, rel=0.05)
    assert last.weight.std().item() == pytest.approx(8**-0.5, rel=0.05)
    assert not last.bias.any()
    assert torch.equal(norm[0].weight, torch.ones(8))
    assert not norm[0].bias.any()
    assert torch.equal(shift.by, torch.full((8,), 3.0))
    assert memory(torch.randn(5, 400)).isfinite().all()


def test_new_memories_read_at_one_scale_whatever_the_weights_scores_and_merge():
    torch.manual_seed(1)
    # As a LayerNorm leaves tokens.
    tokens = torch.nn.functional.layer_norm(torch.randn(512, 64), (64,))

    def scale_of_read(**options):
        torch.manual_seed(0)
        with torch.no_grad():
            return ProductKeyMemory(64, subkeys=64, **options)(tokens).std().item()

    usual = scale_of_read()
    assert scale_of_read(score="cosine") == pytest.approx(usual, rel=0.05)
    assert scale_of_read(heads_merge="concat") == pytest.approx(usual, rel=0.05)
    assert scale_of_read(gate="sigmoid") == pytest.approx(0.88 * usual, rel=0.05)
    assert scale_of_read(gate="silu") == pytest.approx(0.6 * usual, rel=0.05)
    for score in ("dot", "cosine"):
        for weights, ratio in (("sigmoid", 0.87), ("relu", 2.13)):
            scale = scale_of_read(score=score, weights=weights)
            assert scale == pytest.approx(ratio * usual, rel=0.05)


@pytest.mark.parametrize("options", LATER_FORMS[:-1])
def test_a_memory_of_values_zero_reads_zero(options):
    memory = ProductKeyMemory(20, subkeys=8, topk=3, value_init="zero", **options)
    output = memory(torch.randn(9, 20))
    assert torch.equal(output, torch.zeros_like(output))


def test_without_other_wishes_it_is_the_memory_of_the_paper():
    memory = ProductKeyMemory(300, value_dim=16)
    assert list(memory.state_dict()) == [  # what checkpoints have held from the beginning
        *("subkeys", "query.weight", "query.bias", "query_norm.weight", "query_norm.bias"),
        *("query_norm.running_mean", "query_norm.running_var", "values.weight", "output.weight"),
    ]
    assert memory.subkeys.shape == (4, 2, 512, 128)
    assert memory.values.weight.shape == (262_144, 16)
    assert memory.search.topk == 32
    assert type(memory.query_norm).__name__ == "QueryBatchNorm"


def test_memories_can_share_their_values():
    for width, merge in ((12, "sum"), (3, "concat")):
        table = ValueTable(36, width, "normal")
        options = {"subkeys": 6, "topk": 2, "heads_merge": merge, "values": table}
        memories = [ProductKeyMemory(12, **options) for _ in range(2)]
        assert memories[0].values.weight is memories[1].values.weight
    table = ValueTable(36, 12, "normal")
    with pytest.raises(ValueError, match=r"\(36, 12\).*\(49, 12\)"):
        ProductKeyMemory(12, subkeys=7, topk=2, values=table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 7}, "topk=7 exceeds subkeys=6: lower --pkm-topk or raise --pkm-subkeys"),
        ({"key_dim": 7}, "key_dim=7 is odd.*--pkm-key-dim"),
        ({"heads": 0}, "heads=0 must be at least 1.*--pkm-heads"),
        ({"topk": 0}, "topk=0 must be at least 1.*--pkm-topk"),
        ({"subkeys": -1}, "subkeys=-1 must be at least 1.*--pkm-subkeys"),
        ({"key_dim": 0}, "key_dim=0 must be at least 1.*--pkm-key-dim"),
        ({"value_dim": 0}, "value_dim=0 must be at least 1.*--pkm-value-dim"),
        ({"query_dropout": 1.0}, r"query_dropout=1.0 is not in \[0, 1\).*--pkm-query-dropout"),
        ({"key_dropout": 1.0}, r"key_dropout=1.0 is not in \[0, 1\).*--pkm-key-dropout"),
        (
            {"key_dropout": 0.6},
            "key_dropout=0.6 keeps 2 of subkeys=6, fewer than topk=3: lower --pkm-key-dropout",
        ),
        ({"key_dropout": 0.05}, "key_dropout=0.05 has no effect.*raise --pkm-key-dropout"),
        ({"value_dropout": -0.1}, r"value_dropout=-0.1 is not in \[0, 1\)"),
        ({"value_dropout": float("nan")}, r"value_dropout=nan is not in \[0, 1\)"),
        ({"query_norm": "group"}, "query_norm=group.*--pkm-query-norm"),
        ({"value_init": "one"}, "value_init=one.*--pkm-value-init"),
        ({"score": "l2"}, "score=l2 is not dot or cosine: change --pkm-score"),
        ({"weights": "gelu"}, "weights=gelu is not softmax or relu or sigmoid.*--pkm-weights"),
        ({"heads_merge": "max"}, "heads_merge=max is not sum or concat: change --pkm-heads-merge"),
        ({"gate": "tanh"}, "gate=tanh is not none or silu or sigmoid: change --pkm-gate"),
        ({"heads_merge": "concat", "heads": 1}, "concat has no effect with one head.*--pkm-heads"),
        (
            {"heads_merge": "concat", "heads": 5},
            "the width 12 cannot be divided among heads=5: give --pkm-value-dim",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_change(options, message):
    with pytest.raises(ValueError, match=message):
        make_memory(**options)


def test_a_mask_that_is_not_of_the_tokens_is_refused():
    with pytest.raises(ValueError, match=r"padding_mask is \(3, 2\), but x has tokens \(2, 3\)"):
        make_memory()(torch.zeros(2, 3, 12).double(), torch.zeros(3, 2, dtype=torch.bool))
