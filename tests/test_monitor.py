import math
import weakref
from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pkm_fairseq.usage import monitor as of_usage
from pkm_fairseq.usage.monitor import UsageMonitor, first_examples
from pkm_fairseq.usage.observe import observe_reads
from tests import usage_by_definition as definition
from tests.models.tiny import draw_tokens, make_memory_model, make_model

PAD = 1
SLOTS = 64


class Sentences:
    """A validation set: rows of tokens, as long as they are until their padding."""

    def __init__(self, tokens, lengths=None, drift_tokens=0):
        self.tokens = tokens.clone()
        for row, length in zip(self.tokens, lengths or ()):
            row[length:] = PAD
        self.drift_tokens = drift_tokens
        # What is asked of fairseq's iterator.
        self.dataset = self
        self.frozen_batches = [range(len(tokens))]

    def __len__(self):
        return len(self.tokens)

    def num_tokens(self, index):
        return self.tokens[index].ne(PAD).sum().item()

    def batch(self, *examples):
        return {
            "id": torch.tensor(examples),
            "net_input": {"src_tokens": self.tokens[list(examples)]},
        }


def validate(monitor, model, sentences, *batches, name="valid"):
    """Validates as the task does; without batches, on one of all sentences."""
    run(monitor, model, sentences, *batches, name=name)
    figures = monitor.figures()
    monitor.end_set()
    return figures


def counts_of(monitor, model, sentences, *batches):
    """Validates and returns the counts of the memory of layer 1."""
    run(monitor, model, sentences, *batches)
    return monitor.counts()[1]


def run(monitor, model, sentences, *batches, name="valid"):
    model.eval()
    monitor.begin_set(name, first_examples(sentences, sentences.drift_tokens))
    for examples in batches or [range(len(sentences))]:
        batch = sentences.batch(*examples)
        with monitor.watch_validation(model, batch, PAD), torch.no_grad():
            model(**batch["net_input"])


def train(monitor, model, tokens, counted=True):
    """An update as the task does it, with its backward pass."""
    with monitor.watch_training(model, counted):
        model.train()(tokens)[0].sum().backward()


def reads_of(model, tokens, layer=1):
    """Runs the model on each row by itself; returns its reads, slots and weights (T, H, K)."""
    reads = []
    memory = model.memories()[layer]
    hook = memory.search.register_forward_hook(lambda module, inputs, read: reads.append(read))
    with torch.no_grad():
        for row in tokens:
            model.eval()(row[row.ne(PAD)].unsqueeze(0))
    hook.remove()
    return [torch.cat(parts) for parts in zip(*reads)]


def assert_figures(figures, slots, weights, prefix="pkm_", slots_total=SLOTS):
    """Compares with the definitions on reads, (T, H, K)."""
    counts = definition.count(slots.flatten(0, -2), weights.flatten(0, -2), slots_total)
    for name, expected in definition.figures(counts).items():
        # Weights are counted in units of 2**-24.
        assert figures[prefix + name] == pytest.approx(expected, rel=1e-5), prefix + name


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [list(getattr(module, kind)) for module in model.modules() for kind in kinds]


def run_out_of_memory(watch, model, batch):
    with watch:
        model(**batch["net_input"])
        raise RuntimeError("out of memory")


def redraw_subkeys(model, layer=1):
    with torch.no_grad():
        model.memories()[layer].subkeys.normal_()


@pytest.mark.parametrize("weights", ["softmax", "relu", "sigmoid"])
def test_figures_are_those_of_all_that_was_read_and_padding_reads_nothing(weights):
    model = make_memory_model(pkm_weights=weights, pkm_score="cosine")
    memory = model.memories()[1]
    memory.subkeys.data.abs_()  # so that some scores are below 0
    memory.query.bias.data -= 1
    sentences = Sentences(draw_tokens(6, 9), lengths=[9, 3, 1, 5, 2, 7])
    figures = validate(UsageMonitor(), model, sentences, (0, 1, 2), (3, 4), (5,))
    is_relu = weights == "relu"
    slots, weights = reads_of(model, sentences.tokens)
    assert len(slots) == 27
    assert weights.any()
    assert weights.all() != is_relu
    assert_figures(figures, slots, weights)
    assert_figures(figures, slots, weights, "pkm_l1_")


def test_counts_with_padding_are_those_without():
    model = make_memory_model()
    sentences = Sentences(draw_tokens(4, 9), lengths=[4, 4, 4, 4])
    padded = counts_of(UsageMonitor(), model, sentences)
    plain = counts_of(UsageMonitor(), model, Sentences(sentences.tokens[:, :4]))
    # The weights may differ by rounding: their sums are of other shapes.
    assert torch.equal(plain[:2], padded[:2])
    torch.testing.assert_close(plain[2] / 2**24, padded[2] / 2**24)


def test_a_batch_that_repeats_examples_is_not_counted():
    model = make_memory_model()
    sentences = Sentences(draw_tokens(4, 5))
    monitor = UsageMonitor()
    once = counts_of(monitor, model, sentences, (0, 1), (2, 3))
    figures = monitor.figures()
    twice = counts_of(monitor, model, sentences, (0, 1), (2, 3), (0, 1), (3,))
    assert monitor.figures() == figures
    assert torch.equal(twice, once)


def test_the_filling_of_a_shard_that_another_worker_counts_is_not_counted():
    model = make_memory_model().eval()
    sentences = Sentences(draw_tokens(4, 5))
    monitor = UsageMonitor()
    expected = validate(monitor, model, sentences, (2, 3))
    monitor.begin_set("valid", others=[0, 1])
    for examples in ((2, 3), (0, 1)):
        batch = sentences.batch(*examples)
        with monitor.watch_validation(model, batch, PAD):
            model(**batch["net_input"])
    assert monitor.figures() == expected


def test_examples_count_again_in_the_next_validation_and_in_another_set():
    model = make_memory_model()
    sentences = Sentences(draw_tokens(4, 5))
    monitor = UsageMonitor()
    first = validate(monitor, model, sentences)
    assert validate(monitor, model, sentences) == first
    assert validate(monitor, model, sentences, name="valid1") == first


def test_a_layer_whose_reads_are_not_counted_has_counts_of_zero():
    # Workers add up their counts layer by layer: all must have the same layers.
    model = make_memory_model(pkm_layers=[0, 2])
    sentences = Sentences(draw_tokens(2, 5))
    monitor = UsageMonitor()
    monitor.begin_set("valid")
    batch = sentences.batch(0, 1)
    with monitor.watch_validation(model.eval(), batch, PAD):
        pass
    assert list(monitor.counts()) == [0, 2]
    assert not any(counts.any() for counts in monitor.counts().values())


def test_an_update_that_is_not_counted_leaves_the_window_as_it_was():
    model = make_memory_model(pkm_query_norm="layer")
    tokens = draw_tokens(2, 5)
    expected, monitor = UsageMonitor(), UsageMonitor()
    train(expected, model, tokens[:1])
    train(monitor, model, tokens[1:], counted=False)
    train(monitor, model, tokens[:1])
    expected.end_window()
    monitor.end_window()
    assert monitor.figures() == expected.figures() != {}


def test_a_window_of_nothing_counted_has_no_figures():
    monitor = UsageMonitor()
    train(monitor, make_memory_model(), draw_tokens(2, 5), counted=False)
    monitor.end_window()
    assert monitor.figures() == {}


def test_the_window_has_the_reads_of_its_updates_and_the_next_begins_anew():
    model = make_memory_model(pkm_query_norm="layer")
    tokens = draw_tokens(6, 5)
    monitor = UsageMonitor()
    for window in (tokens[:4], tokens[4:]):
        for row in window:
            train(monitor, model, row.unsqueeze(0))
        monitor.end_window()
        slots, weights = (part.flatten(0, -2) for part in reads_of(model, window))
        expected = definition.figures(definition.count(slots, weights, SLOTS))
        for prefix in ("pkm_", "pkm_l1_"):
            figures = monitor.figures()
            assert figures[f"{prefix}stale_top1"] == pytest.approx(1 - expected["top1_usage"])
            assert figures[f"{prefix}stale_topk"] == pytest.approx(1 - expected["topk_usage"])
            assert figures[f"{prefix}train_kl"] == pytest.approx(expected["kl"], rel=1e-5)
    monitor.end_window()
    assert monitor.figures() == {}


def test_each_set_is_logged_with_the_window_before_the_validation():
    model = make_memory_model()
    monitor = UsageMonitor()
    train(monitor, model, draw_tokens(2, 5))
    monitor.end_window()
    sentences = Sentences(draw_tokens(2, 5))
    first = validate(monitor, model, sentences, name="valid")
    second = validate(monitor, model, sentences, name="valid1")
    assert first["pkm_stale_top1"] == second["pkm_stale_top1"]


def test_a_memory_that_gives_all_slots_no_weight_is_all_stale():
    model = make_memory_model(pkm_weights="relu", pkm_query_norm="none")
    memory = model.memories()[1]
    memory.subkeys.data.abs_()
    memory.query.bias.data -= 100
    monitor = UsageMonitor()
    train(monitor, model, draw_tokens(2, 5))
    monitor.end_window()
    figures = validate(monitor, model, Sentences(draw_tokens(2, 5)))
    assert figures["pkm_stale_top1"] == figures["pkm_stale_topk"] == 1


def test_validating_does_not_count_into_the_window_nor_training_into_the_set():
    model = make_memory_model()
    sentences = Sentences(draw_tokens(4, 5))
    monitor = UsageMonitor()
    counts = counts_of(monitor, model, sentences).clone()
    monitor.end_window()
    assert "pkm_stale_top1" not in monitor.figures()
    train(monitor, model, draw_tokens(3, 7))
    assert torch.equal(monitor.counts()[1], counts)
    monitor.end_set()
    assert monitor.counts() == {}, "they are let go of"


def test_counters_take_24_bytes_a_slot_and_memory_at_any_time(monkeypatch):
    alive, sizes, make_counts = weakref.WeakSet(), [], of_usage.make_counts

    def make(*args):
        counts = make_counts(*args)
        alive.add(counts)
        sizes.append(sum(counts.nbytes for counts in alive))
        return counts

    monkeypatch.setattr(of_usage, "make_counts", make)
    model = make_memory_model(pkm_layers=[0, 1])
    monitor = UsageMonitor()
    for _ in range(2):
        train(monitor, model, draw_tokens(2, 5))
        monitor.end_window()
        validate(monitor, model, Sentences(draw_tokens(2, 5)))
    assert sizes == [24 * SLOTS, 48 * SLOTS] * 4


def test_activation_checkpointing_counts_each_read_once():
    tokens = draw_tokens(3, 7)
    figures = []
    for checkpointed in (False, True):
        model = make_memory_model(checkpoint_activations=checkpointed)
        monitor, runs = UsageMonitor(), []
        model.memories()[1].search.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        with monitor.watch_training(model), observe_reads(model.memories()) as reads:
            model.train()(tokens)[0].sum().backward()
        assert len(runs) == 1 + checkpointed
        assert [len(of_layer) for of_layer in reads.values()] == [1]
        monitor.end_window()
        figures.append(monitor.figures())
    assert figures[0] == figures[1] != {}


@pytest.mark.parametrize("training", [True, False])
def test_an_exception_counts_nothing_and_leaves_nothing_behind(training):
    model = make_memory_model()
    sentences = Sentences(draw_tokens(4, 5))
    batch = sentences.batch(0, 1, 2, 3)
    hooks, monitor = hooks_of(model), UsageMonitor()
    monitor.begin_set("valid")
    watch = (
        monitor.watch_training(model) if training else monitor.watch_validation(model, batch, PAD)
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        run_out_of_memory(watch, model.train(training), batch)
    assert hooks_of(model) == hooks
    monitor.end_window()
    assert monitor.figures() == {}


def test_a_batch_tried_again_after_an_exception_is_counted():
    model = make_memory_model().eval()
    sentences = Sentences(draw_tokens(4, 5))
    batch = sentences.batch(0, 1, 2, 3)
    monitor = UsageMonitor()
    expected = validate(monitor, model, sentences)
    monitor.begin_set("valid")
    with pytest.raises(RuntimeError, match="out of memory"):
        run_out_of_memory(monitor.watch_validation(model, batch, PAD), model, batch)
    with monitor.watch_validation(model, batch, PAD):
        model(**batch["net_input"])
    assert monitor.figures() == expected


def test_a_batch_tried_again_after_an_exception_in_the_drift_counts_once():
    model = make_memory_model().eval()
    sentences = Sentences(draw_tokens(4, 5), drift_tokens=20)
    batch = sentences.batch(0, 1, 2, 3)
    forward, calls = model.forward, count()

    def fail_once(*args, **options):
        if next(calls) == 1:  # the pass after that of the validation
            raise RuntimeError("out of memory")
        return forward(*args, **options)

    monitor = UsageMonitor()
    monitor.begin_set("valid", first_examples(sentences, 20))
    model.forward = fail_once
    watch = monitor.watch_validation(model, batch, PAD)
    with pytest.raises(RuntimeError, match="out of memory"), watch:
        model(**batch["net_input"])
    with monitor.watch_validation(model, batch, PAD):
        model(**batch["net_input"])
    (counts,) = monitor.counts().values()
    assert counts[1].sum() == 20 * model.memories()[1].heads * model.memories()[1].search.topk


def test_watching_leaves_nothing_on_the_model_and_does_not_change_what_it_computes():
    model = make_memory_model()
    names, hooks, tokens = set(model.state_dict()), hooks_of(model), draw_tokens(3, 7)
    alone = make_memory_model()
    alone.train()(tokens)[0].sum().backward()
    monitor = UsageMonitor(per_head=True)
    train(monitor, model, tokens)
    monitor.end_window()
    validate(monitor, model, Sentences(tokens, drift_tokens=100))
    assert hooks_of(model) == hooks
    assert set(model.state_dict()) == names
    for name, parameter in alone.named_parameters():
        watched = dict(model.named_parameters())[name]
        assert (parameter.grad is None) == (watched.grad is None), name
        assert parameter.grad is None or torch.equal(watched.grad, parameter.grad), name
    assert torch.equal(model.eval()(tokens)[0], alone.eval()(tokens)[0])


def test_the_first_validation_has_no_drift_and_the_same_model_again_none_at_all():
    model = make_memory_model()
    sentences = Sentences(draw_tokens(5, 6), [6, 2, 4, 1, 5], drift_tokens=100)
    monitor = UsageMonitor()
    assert not [name for name in validate(monitor, model, sentences) if "drift" in name]
    figures = validate(monitor, model, sentences)
    assert figures["pkm_drift"] == figures["pkm_l1_drift"] == 0
    # In other batches, with other padding.
    figures = validate(monitor, model, sentences, (4, 0), (1, 3), (2,))
    assert figures["pkm_drift_running"] == figures["pkm_l1_drift_running"] == 0


def test_weights_that_stand_still_have_no_drift_though_running_statistics_wander():
    model = make_memory_model(pkm_layers=[0, 2])
    sentences = Sentences(draw_tokens(8, 10), drift_tokens=60)
    monitor = UsageMonitor()
    batches = (0, 1, 2), (3, 4, 5), (6, 7)
    validate(monitor, model, sentences, *batches)
    for row in draw_tokens(20, 6):
        model.train()(row.unsqueeze(0))
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    figures = validate(monitor, model, sentences, *batches)
    assert figures["pkm_drift"] == figures["pkm_l0_drift"] == figures["pkm_l2_drift"] == 0
    assert figures["pkm_l0_drift_running"] > 0.1
    assert figures["pkm_l2_drift_running"] > 0.1
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, statistics[name]), name


def test_a_scale_of_queries_that_batch_norm_takes_out_is_no_drift():
    model = make_memory_model()
    sentences = Sentences(draw_tokens(8, 10), drift_tokens=100)
    monitor = UsageMonitor()
    validate(monitor, model, sentences)
    with torch.no_grad():
        model.memories()[1].query.weight.mul_(4)
        model.memories()[1].query.bias.add_(1)
    figures = validate(monitor, model, sentences)
    assert figures["pkm_drift"] < 0.01
    assert figures["pkm_drift_running"] > 0.3


@pytest.mark.parametrize("norm", ["layer", "none", "frozen"])
def test_without_statistics_that_wander_drift_is_that_of_what_is_read(norm):
    model = make_memory_model(pkm_query_norm="batch" if norm == "frozen" else norm)
    if norm == "frozen":
        model.freeze_rest()
    sentences = Sentences(draw_tokens(8, 10), drift_tokens=100)
    monitor, runs = UsageMonitor(), []
    model.register_forward_hook(lambda *_: runs.append(1))
    validate(monitor, model, sentences)
    before, _ = reads_of(model, sentences.tokens)
    with torch.no_grad():
        model.memories()[1].subkeys.add_(0.1 * torch.randn(2, 2, 8, 4))
    after, _ = reads_of(model, sentences.tokens)
    runs.clear()
    figures = validate(monitor, model, sentences)
    changed = (before[..., 0] != after[..., 0]).double().mean().item()
    assert figures["pkm_drift"] == pytest.approx(changed)
    assert "pkm_drift_running" not in figures
    assert len(runs) == 1


def test_a_worker_reads_again_when_another_has_examples_to_compare():
    # Those who split a table would otherwise wait for it.
    model = make_memory_model().eval()
    sentences = Sentences(draw_tokens(4, 5))
    monitor, runs = UsageMonitor(), []
    model.register_forward_hook(lambda *_: runs.append(1))
    monitor.begin_set("valid", drift_steps=2)
    for example in range(4):
        batch = sentences.batch(example)
        with monitor.watch_validation(model, batch, PAD):
            model(**batch["net_input"])
    assert len(runs) == 4 + 2


def test_drift_is_nearly_all_after_the_subkeys_are_drawn_anew():
    model = make_memory_model()
    sentences = Sentences(draw_tokens(8, 10), drift_tokens=100)
    monitor = UsageMonitor()
    validate(monitor, model, sentences)
    redraw_subkeys(model)
    assert validate(monitor, model, sentences)["pkm_drift"] > 0.9


@pytest.mark.parametrize(("drift_tokens", "examples"), [(1, 1), (4, 1), (5, 2), (7, 3), (99, 5)])
def test_drift_is_of_the_first_tokens_in_whole_examples_wherever_they_stand(drift_tokens, examples):
    model = make_memory_model()
    sentences = Sentences(draw_tokens(5, 10), [4, 2, 10, 3, 8], drift_tokens)
    first = sentences.tokens[:examples]
    monitor = UsageMonitor()
    validate(monitor, model, sentences, (3, 1, 0), (4, 2))
    before, _ = reads_of(model, first)
    with torch.no_grad():
        model.memories()[1].subkeys.add_(0.1 * torch.randn(2, 2, 8, 4))
    after, _ = reads_of(model, first)
    changed = (before[..., 0] != after[..., 0]).float().mean().item()
    figures = validate(monitor, model, sentences, (2, 3, 0), (1, 4))
    assert figures["pkm_drift_running"] == figures["pkm_l1_drift_running"] == pytest.approx(changed)


def test_drift_of_several_memories_is_of_all_their_tokens_together():
    model = make_memory_model(pkm_layers=[0, 2])
    sentences = Sentences(draw_tokens(5, 6), drift_tokens=100)
    monitor = UsageMonitor()
    validate(monitor, model, sentences)
    redraw_subkeys(model, layer=2)
    figures = validate(monitor, model, sentences)
    assert figures["pkm_l0_drift"] == 0
    assert figures["pkm_l2_drift"] > 0.9
    assert figures["pkm_drift"] == figures["pkm_l2_drift"] / 2


def test_drift_of_no_tokens_is_not_measured():
    model, monitor = make_memory_model(), UsageMonitor()
    sentences = Sentences(draw_tokens(2, 5))
    validate(monitor, model, sentences)
    assert "pkm_drift" not in validate(monitor, model, sentences)


def test_drift_is_not_measured_between_memories_of_different_sizes():
    sentences = Sentences(draw_tokens(2, 5), drift_tokens=100)
    monitor = UsageMonitor()
    validate(monitor, make_memory_model(pkm_layers=[0, 1]), sentences)
    figures = validate(monitor, make_memory_model(pkm_layers=[1, 2]), sentences)
    names = {name for name in figures if name.endswith("drift")}
    assert names == {"pkm_drift", "pkm_l1_drift"}
    for other in ({"pkm_heads": 4}, {"pkm_subkeys": 9}, {"pkm_layers": [0]}):
        figures = validate(monitor, make_memory_model(**other), sentences)
        assert not [name for name in figures if "drift" in name], other


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_watching_an_update_on_a_gpu_waits_for_nothing():
    model, monitor = make_memory_model().cuda(), UsageMonitor(per_head=True)
    tokens = draw_tokens(3, 7).cuda()
    model.train()(tokens)[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(monitor, model, tokens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    monitor.end_window()
    assert monitor.figures()["pkm_stale_topk"] < 1


def test_each_validation_set_has_its_own_figures_and_drift():
    model = make_memory_model()
    monitor = UsageMonitor()
    one = Sentences(draw_tokens(4, 8), drift_tokens=100)
    other = Sentences(draw_tokens(1, 3), drift_tokens=100)
    first = validate(monitor, model, one, name="valid")
    redraw_subkeys(model)
    second = validate(monitor, model, other, name="valid1")
    assert "pkm_drift" not in second
    assert first["pkm_top1_usage"] != second["pkm_top1_usage"]
    assert validate(monitor, model, one, name="valid")["pkm_drift"] > 0.8
    assert validate(monitor, model, other, name="valid1") == {
        **second,
        **{f"pkm_{scope}drift{kind}": 0 for scope in ("", "l1_") for kind in ("", "_running")},
    }


def test_the_figures_of_each_head_are_those_of_its_reads():
    model = make_memory_model()
    sentences = Sentences(draw_tokens(4, 6))
    figures = validate(UsageMonitor(per_head=True), model, sentences)
    slots, weights = reads_of(model, sentences.tokens)
    assert_figures(figures, slots, weights, "pkm_l1_")
    for head in range(2):
        assert_figures(figures, slots[:, head], weights[:, head], f"pkm_l1_h{head}_")
    sentences.drift_tokens = 100
    monitor = UsageMonitor(per_head=True)
    validate(monitor, model, sentences)
    redraw_subkeys(model)
    after, _ = reads_of(model, sentences.tokens)
    changed = (slots[..., 0] != after[..., 0]).double().mean(0).tolist()
    figures = validate(monitor, model, sentences)
    of_heads = [figures[f"pkm_l1_h{head}_drift_running"] for head in range(2)]
    assert of_heads == pytest.approx(changed)
    figures = validate(UsageMonitor(per_head=True), model, sentences)
    without = validate(UsageMonitor(), model, sentences)
    assert without.items() < figures.items()
    assert not [name for name in without if "_h" in name]


@pytest.mark.parametrize("shared", [False, True])
def test_memories_together_are_figured_by_the_rows_of_values_they_have(shared):
    model = make_memory_model(pkm_layers=[0, 2], pkm_share_values=shared)
    sentences = Sentences(draw_tokens(4, 6))
    figures = validate(UsageMonitor(), model, sentences)
    reads = {layer: reads_of(model, sentences.tokens, layer) for layer in (0, 2)}
    for layer, (slots, weights) in reads.items():
        assert_figures(figures, slots, weights, f"pkm_l{layer}_")
    (slots0, weights0), (slots2, weights2) = reads.values()
    slots = torch.cat([slots0, slots2 if shared else slots2 + SLOTS])
    assert_figures(
        figures, slots, torch.cat([weights0, weights2]), slots_total=SLOTS if shared else 2 * SLOTS
    )


def squares_by_hand(model, sentences, layer):
    """Sums of squares over all tokens that are no padding: of what is read, and of its base."""
    module = model.encoder.sentence_encoder.layers[layer]
    seen = {}

    def keep_input(memory, inputs):
        seen["x"] = inputs[0]

    with module.pkm.register_forward_pre_hook(keep_input):
        for row in sentences.tokens:
            model.eval()(row[row.ne(PAD)].unsqueeze(0))
            x = seen["x"]
            if module.replace:
                base = x
            else:
                hidden = module.activation_fn(module.fc1(x))
                base = F.linear(hidden, module.fc2.weight, module.fc2.bias)
            yield torch.stack([module.pkm(x).square().sum(), base.square().sum()]).double()


@pytest.mark.parametrize("mode", ["residual", "replace"])
def test_the_read_ratio_is_of_norms_over_all_tokens_but_padding(mode):
    model = make_memory_model(pkm_layers=[0, 2], pkm_mode=mode, pkm_query_norm="layer")
    sentences = Sentences(draw_tokens(6, 9), lengths=[9, 3, 1, 5, 2, 7])
    monitor = UsageMonitor()
    figures = validate(monitor, model, sentences, (0, 1, 2), (3, 4), (5,))
    for examples in ([0, 1], [2, 3, 4, 5]):
        train(monitor, model, sentences.tokens[examples])
    monitor.end_window()
    in_training = monitor.figures()
    with torch.no_grad():
        sums = {layer: sum(squares_by_hand(model, sentences, layer)) for layer in (0, 2)}
    sums = {"": sums[0] + sums[2], "l0_": sums[0], "l2_": sums[2]}
    for scope, (read, base) in sums.items():
        ratio = (read / base).sqrt().item()
        assert 0.01 < ratio < 100
        assert figures[f"pkm_{scope}read_ratio"] == pytest.approx(ratio, rel=1e-5)
        assert in_training[f"pkm_{scope}train_read_ratio"] == pytest.approx(ratio, rel=1e-5)


def test_values_of_zero_have_a_read_ratio_of_zero():
    model = make_memory_model(pkm_value_init="zero")
    assert validate(UsageMonitor(), model, Sentences(draw_tokens(2, 5)))["pkm_read_ratio"] == 0


def test_large_tables_are_sorted_once(monkeypatch):
    sorts, sort = [], np.sort
    monkeypatch.setattr(np, "sort", lambda *args: sorts.append(1) or sort(*args))
    validate(UsageMonitor(), make_memory_model(), Sentences(draw_tokens(2, 5)))
    assert len(sorts) == 1


@pytest.mark.parametrize("model", [make_model(), torch.nn.Linear(2, 2)])
def test_a_model_without_memory_has_no_figures(model):
    sentences = Sentences(draw_tokens(2, 5))
    batch = sentences.batch(0, 1)
    monitor = UsageMonitor(per_head=True)
    with monitor.watch_training(model):
        pass
    monitor.end_window()
    for _ in range(2):
        monitor.begin_set("valid")
        with monitor.watch_validation(model, batch, PAD):
            pass
        assert monitor.figures() == {}
        assert monitor.counts() == {}
        monitor.end_set()


def test_a_layer_that_layer_drop_skips_reads_nothing_and_is_all_stale():
    model = make_memory_model(pkm_layers=[0, 2], encoder_layerdrop=0.5).train()
    tokens = draw_tokens(2, 5)
    for seed in count():
        torch.manual_seed(seed)
        with observe_reads(model.memories()) as reads:
            model(tokens)
        if reads[0] and not reads[2]:
            break
    monitor = UsageMonitor()
    torch.manual_seed(seed)
    train(monitor, model, tokens)
    monitor.end_window()
    figures = monitor.figures()
    assert figures["pkm_l2_stale_top1"] == figures["pkm_l2_stale_topk"] == 1
    assert math.isnan(figures["pkm_l2_train_kl"])
    assert 0 < figures["pkm_l0_stale_topk"] < 1
    assert figures["pkm_stale_topk"] == pytest.approx((1 + figures["pkm_l0_stale_topk"]) / 2)
    everything = validate(monitor, model, Sentences(tokens))
    assert 0 < everything["pkm_l2_top1_usage"] < 1
