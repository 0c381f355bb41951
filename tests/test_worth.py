"""What a loss owes to memories: compared with models whose values are zero."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pkm_fairseq.usage.worth import Worth, spread_batches
from tests.models.tiny import draw_tokens, make_memory_model, make_model

BATCHES = draw_tokens(4, 3, 6)  # (batches, sentences, length)


def make_run(model, tokens, runs=None):
    """Runs a model on a batch as a criterion does; returns its loss and the sample size."""

    def run():
        if runs is not None:
            runs.append(tokens)
        with torch.no_grad():
            logits = model.eval()(tokens)[0]
        # Each word is to be told from itself: a model that knows something does better.
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")
        return loss, tokens.numel(), {}

    return run


def measure(model, batches=BATCHES, chosen=None, **of_worker):
    worth = Worth()
    worth.begin_set(set(range(len(batches))) if chosen is None else chosen, **of_worker)
    for tokens in batches:
        run = make_run(model, tokens)
        assert worth.measure(model, run, run)[0] == run()[0]
    return worth.figures()


def score(model, batches=BATCHES):
    """Loss a token, in bits, and the best words."""
    with torch.no_grad():
        logits = model.eval()(batches.flatten(0, 1))[0].double()
    loss = F.cross_entropy(logits.flatten(0, 1), batches.flatten())
    return loss.item() / math.log(2), logits.argmax(-1)


def emptied(model, layers):
    """A model that differs in that the values of the memories at these layers are zero."""
    model = copy.deepcopy(model)
    for layer in layers:
        memory = model.memories()[layer]
        memory.values = copy.deepcopy(memory.values)  # which another memory may share
        memory.values.weight.data.zero_()
    return model


def make_large(**options):
    """A model whose memories say much."""
    model = make_memory_model(**options)
    for memory in model.memories().values():
        memory.values.weight.data.mul_(50 if memory.values.weight.is_floating_point() else 1)
        if getattr(memory.values, "scales", None) is not None:
            memory.values.scales.mul_(50)
    return model


FORMS = [
    {},
    {"pkm_mode": "replace"},
    {"pkm_gate": "silu", "pkm_heads_merge": "concat"},
    {"pkm_gate": "sigmoid", "pkm_value_dim": 6},
    {"pkm_weights": "relu", "pkm_score": "cosine"},
    {"pkm_weights": "sigmoid", "pkm_query_norm": "layer", "pkm_share_values": True},
    {"pkm_table_dtype": "int8"},
    {"pkm_table_dtype": "bf16", "pkm_mode": "replace", "pkm_share_values": True},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_worth_is_what_the_loss_gains_with_values_of_zero(form):
    model = make_large(pkm_layers=[0, 2], **form)
    figures = measure(model)
    loss, words = score(model)
    assert figures["pkm_loss_with"] == pytest.approx(loss, rel=1e-5)
    for scope, layers in {"": [0, 2], "l0_": [0], "l2_": [2]}.items():
        without, words_without = score(emptied(model, layers))
        assert abs(without - loss) > 1e-4
        assert figures[f"pkm_{scope}worth"] == pytest.approx(without - loss, abs=1e-5)
        changed = (words_without != words).double().mean().item()
        assert figures[f"pkm_{scope}changed"] == pytest.approx(changed)
    gained = figures["pkm_loss_without"] - figures["pkm_loss_with"]
    assert gained == pytest.approx(figures["pkm_worth"])
    assert figures["pkm_changed"] > 0


def test_values_of_zero_are_worth_nothing_to_the_last_digit():
    figures = measure(make_memory_model(pkm_layers=[0, 2], pkm_value_init="zero"))
    assert figures["pkm_worth"] == figures["pkm_l0_worth"] == figures["pkm_l2_changed"] == 0


def test_a_single_memory_is_all_and_is_left_out_once():
    model, runs = make_large(), []
    worth = Worth()
    worth.begin_set({0})
    run = make_run(model, BATCHES[0], runs)
    worth.measure(model, run, run)
    assert len(runs) == 2
    figures = worth.figures()
    assert figures["pkm_l1_worth"] == figures["pkm_worth"] != 0
    assert figures["pkm_l1_changed"] == figures["pkm_changed"]


def test_chosen_batches_alone_count_and_the_others_are_run_once():
    model = make_large()
    figures = measure(model, chosen={1, 3})
    assert figures == pytest.approx(measure(model, BATCHES[[1, 3]]))
    assert figures != pytest.approx(measure(model))
    runs = []
    worth = Worth()
    worth.begin_set({1})
    for tokens in BATCHES:
        run = make_run(model, tokens, runs)
        worth.measure(model, run, run)
    assert [tokens.tolist() for tokens in runs].count(BATCHES[1].tolist()) == 2
    assert len(runs) == 5


def test_workers_run_together_and_count_their_own():
    model, runs = make_large(), []
    worth = Worth()
    # Of two workers the second, with the batches 1 and 3, and a filling for batch 5.
    worth.begin_set({0, 3}, worker=1, workers=2)
    for tokens in BATCHES[[1, 3, 0]]:
        run = make_run(model, tokens, runs)
        worth.measure(model, run, run)
    assert len(runs) == 2 + 2 + 1
    assert worth.figures() == pytest.approx(measure(model, BATCHES[[3]]))


def test_without_tokens_without_a_memory_or_before_the_first_batch_there_are_no_figures():
    assert measure(make_memory_model(), chosen=set()) == {}
    assert measure(make_model()) == {}
    assert Worth().figures() == {}


def test_numbers_have_no_predictions_that_change():
    model = make_memory_model()
    model.register_classification_head("head", num_classes=1)
    worth = Worth()
    worth.begin_set({0})

    def run():
        with torch.no_grad():
            numbers, _ = model.eval()(
                BATCHES[0], features_only=True, classification_head_name="head"
            )
        return numbers.square().sum(), len(numbers), {}

    worth.measure(model, run, run)
    figures = worth.figures()
    assert figures["pkm_worth"] != 0
    assert not [name for name in figures if "changed" in name]


def test_what_fails_leaves_nothing_behind_and_is_tried_again():
    model = make_large().eval()
    hooks = [list(module._forward_hooks) for module in model.modules()]
    worth, tries = Worth(), []
    worth.begin_set({0})
    run = make_run(model, BATCHES[0])

    def again():
        tries.append(worth.repeating)
        if len(tries) == 1:
            raise RuntimeError("out of memory")
        return run()

    with pytest.raises(RuntimeError, match="out of memory"):
        worth.measure(model, run, again)
    assert not worth.repeating
    assert [list(module._forward_hooks) for module in model.modules()] == hooks
    worth.measure(model, run, again)
    assert tries == [True, True]
    assert worth.figures() == measure(model, BATCHES[:1])


class Sizes:
    """A validation set as fairseq's iterator gives it: batches of sentences of these lengths."""

    def __init__(self, *batches):
        self.frozen_batches = [[f"{b} {s}" for s in range(len(of))] for b, of in enumerate(batches)]
        self.dataset = SimpleNamespace(
            num_tokens=lambda name: batches[int(name.split()[0])][int(name.split()[1])]
        )


def test_batches_are_chosen_from_all_over_a_set_until_they_hold_the_tokens():
    batches = Sizes(*[[length, length + 1] for length in range(1, 101)])
    chosen = spread_batches(batches, 1000)
    assert chosen == spread_batches(batches, 1000)
    held = sum(2 * number + 3 for number in chosen)
    assert 1000 <= held < 1000 + 203
    assert 25 < sum(chosen) / len(chosen) < 75
    assert spread_batches(batches, 900) < chosen
    assert spread_batches(batches, 0) == set()
    assert spread_batches(batches, 10**9) == set(range(100))
    assert spread_batches(batches, 10**9, within=7) == set(range(7))
    assert spread_batches(Sizes(), 5) == set()
