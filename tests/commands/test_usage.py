"""Memory usage as the commands log it."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import usage_by_definition as definition
from tests.commands.commands import (
    MEMORY,
    MODEL,
    load_model_state,
    log_lines,
    logged,
    pretraining,
    run,
    run_on_two_workers,
    run_until,
)

# In fairseq, as it loads data.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

USAGE = {
    "task": "pkm_masked_lm",
    "criterion": "pkm_masked_lm",
    "arch": "pkm_roberta",
    **MODEL,
    **MEMORY,
    "pkm-layers": "0,1",
}
DRIFT_TOKENS = 100
SLOTS, HEADS = 256, 2
# Six digits are printed.
DIGITS = 1e-5
# Of the window, of the validation before or of the start of the run: a command that did not see
# them cannot log them.
OF_THE_RUN = ("drift", "drift_running", "moved", "moved_slots")
OF_THE_PAST = ("stale_top1", "stale_topk", "train_kl", "train_read_ratio", *OF_THE_RUN)
# That do not count slots.
OF_READS = ("read_ratio", "value_norm", "worth", "changed", "loss_with", "loss_without")


def copy_split(data, folder, source, name):
    """Copies the data, with one of its sets under the name of another as well."""
    shutil.copytree(data, folder)
    for ending in ("bin", "idx"):
        shutil.copy(data / f"{source}.{ending}", folder / f"{name}.{ending}")
    return folder


@pytest.fixture(scope="module")
def two_sets(data, tmp_path_factory):
    """The data with a second validation set."""
    return copy_split(data, tmp_path_factory.mktemp("two_sets") / "data", "train", "valid1")


def watched(data, folder, **extra):
    """A run that validates both sets after 10 and after 20 updates."""
    options = {
        **USAGE,
        "valid-subset": "valid,valid1",
        "validate-interval-updates": 10,
        "save-interval-updates": 10,
        "best-checkpoint-metric": "pkm_top1_usage",
        "maximize-best-checkpoint-metric": None,
        "pkm-usage-per-head": None,
        "pkm-drift-tokens": DRIFT_TOKENS,
        **extra,
    }
    return ["fairseq-train", *pretraining(data, folder, updates=20, **options)]


@pytest.fixture(scope="module")
def trained(two_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    return folder, run(*watched(two_sets, folder, tensorboard_logdir=folder / "tensorboard"))


def usage_of(line, subset="valid"):
    """What a printed line says of usage, as numbers by name."""
    prefix = f"{subset}_pkm_"
    return {
        name[len(prefix) :]: float(value) for name, value in line.items() if name.startswith(prefix)
    }


def without_past(figures):
    return {name: figure for name, figure in figures.items() if not name.endswith(OF_THE_PAST)}


def load(checkpoint, subset):
    """A checkpoint's model, and a validation set in batches as fairseq makes them."""
    (model,), _, task = load_model_ensemble_and_task([str(checkpoint)])
    task.load_dataset(subset)
    iterator = task.get_batch_iterator(
        task.dataset(subset),
        max_sentences=8,
        max_positions=model.max_positions(),
        ignore_invalid_inputs=True,
    )
    return model.eval(), list(iterator.next_epoch_itr(shuffle=False))


@torch.no_grad()
def read_everything(checkpoint, subset):
    """Runs a checkpoint over a validation set as fairseq does.

    Returns:
        By layer, the slots and weights of all tokens, (T, H, K); and the batches.
    """
    model, batches = load(checkpoint, subset)
    reads = {0: [], 1: []}
    for layer in reads:
        search = model.encoder.sentence_encoder.layers[layer].pkm.search
        search.register_forward_hook(lambda *call, layer=layer: reads[layer].append(call[2]))
    for batch in batches:
        model(**batch["net_input"])
    together = {
        layer: [torch.cat(parts) for parts in zip(*of_layer)] for layer, of_layer in reads.items()
    }
    return together, batches


def figures_by_definition(reads):
    """All figures of a validation set by name, without drift."""
    counts = {
        f"l{layer}_h{head}_": definition.count(slots[:, head], weights[:, head], SLOTS)
        for layer, (slots, weights) in reads.items()
        for head in range(HEADS)
    }
    for layer in reads:
        counts[f"l{layer}_"] = counts[f"l{layer}_h0_"] + counts[f"l{layer}_h1_"]
    counts[""] = np.concatenate([counts["l0_"], counts["l1_"]], 1)
    return {
        scope + name: figure
        for scope, of_scope in counts.items()
        for name, figure in definition.figures(of_scope).items()
    }


@pytest.mark.parametrize("subset", ["valid", "valid1"])
def test_training_logs_the_usage_that_the_definitions_give_for_its_checkpoint(trained, subset):
    folder, output = trained
    for line, checkpoint in zip(
        log_lines(output, subset), ("checkpoint_1_10.pt", "checkpoint_last.pt")
    ):
        reads, _ = read_everything(folder / checkpoint, subset)
        figures = without_past(usage_of(line, subset))
        figures = {name: figures[name] for name in figures if not name.endswith(OF_READS)}
        assert figures == pytest.approx(figures_by_definition(reads), rel=DIGITS)


def best_of_first_tokens(checkpoint):
    """By layer, the best slots of the first tokens of the validation set, (T, H)."""
    reads, batches = read_everything(checkpoint, "valid")
    examples, lengths = [], []
    for batch in batches:
        tokens = batch["net_input"]["src_tokens"]
        # As memories get them: all first tokens, then all second, without padding.
        rows = torch.arange(len(tokens)).repeat(tokens.shape[1], 1)[tokens.t().ne(1)]
        examples.append(batch["id"][rows])
        lengths += zip(batch["id"].tolist(), tokens.ne(1).sum(1).tolist())
    kept, tokens = [], 0
    for example, length in lengths:
        if tokens < DRIFT_TOKENS:
            kept.append(example)
            tokens += length
    first = torch.isin(torch.cat(examples), torch.tensor(kept))
    return {layer: slots[first][..., 0] for layer, (slots, _) in reads.items()}


def test_drift_is_the_share_of_best_slots_that_changed_between_two_checkpoints(trained):
    folder, output = trained
    first, second = (usage_of(line) for line in log_lines(output, "valid"))
    assert not [name for name in first if "drift" in name]
    before = best_of_first_tokens(folder / "checkpoint_1_10.pt")
    after = best_of_first_tokens(folder / "checkpoint_last.pt")
    changed = {layer: (before[layer] != after[layer]).double().mean().item() for layer in (0, 1)}
    assert 0 < changed[1] < 1
    for layer in (0, 1):
        assert second[f"l{layer}_drift_running"] == pytest.approx(changed[layer], rel=DIGITS)
    assert second["drift_running"] == pytest.approx(sum(changed.values()) / 2, rel=DIGITS)
    assert 0 < second["drift"] < 1


@torch.no_grad()
def losses(checkpoint, subset, emptied=()):
    """A checkpoint's loss on a validation set, in bits, and what it predicts, masked words alone.

    Args:
        checkpoint: its file.
        subset: the set.
        emptied: layers whose memories' values are set to zero.
    """
    model, batches = load(checkpoint, subset)
    for layer in emptied:
        model.memories()[layer].values.weight.zero_()
    loss, words = 0, []
    for batch in batches:
        logits = model(**batch["net_input"])[0]
        masked = batch["target"].ne(1)
        loss += F.cross_entropy(logits[masked], batch["target"][masked], reduction="sum").item()
        words += logits[masked].argmax(-1).tolist()
    return loss / len(words) / math.log(2), np.array(words)


def test_worth_is_what_the_loss_of_its_checkpoint_gains_with_values_of_zero(trained):
    folder, output = trained
    figures = usage_of(log_lines(output, "valid")[-1])
    checkpoint = folder / "checkpoint_last.pt"
    loss, words = losses(checkpoint, "valid")
    assert figures["loss_with"] == pytest.approx(loss, rel=DIGITS)
    for scope, emptied in {"": (0, 1), "l0_": (0,), "l1_": (1,)}.items():
        without, words_without = losses(checkpoint, "valid", emptied)
        assert figures[f"{scope}worth"] == pytest.approx(without - loss, abs=2e-5)
        assert figures[f"{scope}changed"] == pytest.approx(
            (words != words_without).mean(), abs=DIGITS
        )
    assert abs(figures["worth"]) > 1e-3
    assert figures["loss_without"] == pytest.approx(loss + figures["worth"], rel=DIGITS)


def test_values_move_and_what_they_read_has_a_size(trained):
    _, output = trained
    first, second = (usage_of(line) for line in log_lines(output, "valid"))
    # They began as zero: how far they have moved is how long they are.
    assert 0 < first["moved"] < second["moved"] == second["value_norm"]
    # Longer values need not be read more, which the text decides.
    assert min(first["read_ratio"], second["read_ratio"], second["train_read_ratio"]) > 0


def test_the_best_checkpoint_can_be_the_one_with_the_largest_usage(trained):
    folder, output = trained
    usages = [float(value) for value in logged(output, "valid_pkm_top1_usage", "valid")]
    best = log_lines(output, "valid")[-1]["valid_best_pkm_top1_usage"]
    assert float(best) == max(usages)
    state = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    assert state["extra_state"]["val_loss"] == pytest.approx(max(usages), rel=DIGITS)


def test_checkpoints_hold_nothing_of_usage_but_the_best_metric(trained):
    folder, _ = trained
    state = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    assert not [name for name in state["model"] if "count" in name or "usage" in name]
    assert "pkm_" not in str(state["extra_state"]["metrics"])


def test_fairseq_validate_logs_the_usage_that_training_logged(trained, two_sets):
    folder, output = trained
    validated = run(
        *("fairseq-validate", two_sets, "--user-dir", "pkm_fairseq", "--task", "pkm_masked_lm"),
        *("--path", folder / "checkpoint_last.pt", "--valid-subset", "valid,valid1", "--cpu"),
        *("--batch-size", 8, "--num-workers", 0, "--skip-invalid-size-inputs-valid-test"),
        *("--log-format", "json", "--required-batch-size-multiple", 1, "--data-buffer-size", 0),
    )
    for subset in ("valid", "valid1"):
        (line,) = log_lines(validated, subset)
        (*_, expected) = log_lines(output, subset)
        usage = {name: value for name, value in line.items() if "pkm" in name}
        assert usage == {
            name: value
            for name, value in without_past(expected).items()
            if "_pkm_" in name and "best" not in name
        }
        scopes = 1 + 2
        # Counts by head, too; worth, changed, read_ratio and value_norm; and the pair of losses.
        assert len(usage) == 7 * (scopes + 2 * HEADS) + 4 * scopes + 2


def test_tensorboard_gets_the_figures_as_scalars_and_a_picture_of_each_memory(trained):
    folder, output = trained
    for subset in ("valid", "valid1"):
        scalars = EventAccumulator(str(folder / "tensorboard" / subset)).Reload()
        for line_at, line in enumerate(log_lines(output, subset)):
            for name, figure in usage_of(line, subset).items():
                entries = {entry.step: entry.value for entry in scalars.Scalars(f"pkm_{name}")}
                assert entries[10 * (line_at + 1)] == pytest.approx(figure, rel=DIGITS), name
        pictures = EventAccumulator(
            str(folder / "tensorboard" / subset / "memory"), size_guidance={"images": 0}
        ).Reload()
        assert pictures.Tags()["images"] == ["pkm_l0", "pkm_l1"]
        for tag in ("pkm_l0", "pkm_l1"):
            assert [picture.step for picture in pictures.Images(tag)] == [10, 20]
            assert pictures.Images(tag)[0].width > pictures.Images(tag)[0].height > 0


def test_a_run_killed_and_resumed_logs_the_usage_of_one_that_was_not_but_no_drift(
    trained, two_sets, tmp_path
):
    _, output = trained
    command = watched(two_sets, tmp_path)
    run_until(r'"num_updates": "14"', *command)
    resumed = run(*command)
    assert "Loaded checkpoint" in resumed
    for subset in ("valid", "valid1"):
        (line,) = log_lines(resumed, subset)
        expected = usage_of(log_lines(output, subset)[-1], subset)
        assert "drift" in expected
        figures = usage_of(line, subset)
        assert 0 < figures["moved"] < expected["moved"], "since it was resumed"
        compared = [name for name in expected if not name.endswith(OF_THE_RUN)]
        assert [name for name in figures if not name.endswith(OF_THE_RUN)] == compared
        assert not [name for name in figures if "drift" in name]
        for name in compared:
            assert figures[name] == expected[name], name


@pytest.fixture(scope="module")
def small_set(data, tmp_path_factory):
    """The validation set also to train on: an epoch of few updates."""
    return copy_split(data, tmp_path_factory.mktemp("small") / "data", "valid", "train")


def test_two_workers_log_what_one_logs_also_where_their_last_batches_are_uneven(
    small_set, tmp_path
):
    options = {
        **{**USAGE, "dropout": 0, "attention-dropout": 0, "pkm-query-norm": "layer"},
        "pkm-value-init": "normal",  # so that there is a worth
        "batch-size": 4,
        "max-epoch": 1,
        "pkm-worth-tokens": 300,  # of some batches, not of the first
        # The last window is one update, for which the second worker has nothing to train on.
        "validate-interval-updates": 5,
        # As with plain gradient descent, rounding stays as small as it is.
        **{"adam-eps": 0.1, "lr": 1, "clip-norm": 0, "warmup-updates": 0},
    }

    def arguments(folder, **extra):
        return pretraining(small_set, tmp_path / folder, updates=100, **options, **extra)

    alone = run("fairseq-train", *arguments("one", update_freq=2))
    together = run_on_two_workers(tmp_path / "rendezvous", *arguments("two"))
    expected = [usage_of(line) for line in log_lines(alone, "valid")]
    actual = [usage_of(line) for line in log_lines(together, "valid")]
    assert logged(alone, "num_updates")[-1] == "6"
    assert len(actual) == len(expected) == 2
    for figures, of_one in zip(actual, expected):
        assert figures == pytest.approx(of_one, rel=DIGITS, abs=DIGITS)
    assert expected[-1]["drift"] > 0
    assert abs(expected[-1]["worth"]) > 10 * DIGITS


def test_figures_do_not_change_what_is_trained(two_sets, trained, tmp_path):
    folder, output = trained
    options = {
        **{**USAGE, "criterion": "masked_lm", "validate-interval-updates": 10},
        "ignore-unused-valid-subsets": None,
    }
    stock = run("fairseq-train", *pretraining(two_sets, tmp_path, updates=20, **options))
    assert logged(stock, "loss") == logged(output, "loss")
    assert not [name for line in log_lines(stock, "valid") for name in line if "pkm" in name]
    assert len(log_lines(stock, "valid")) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "masked_lm"}, "--criterion pkm_masked_lm needs --task pkm_masked_lm"),
        ({"pkm-drift-tokens": -1}, "--pkm-drift-tokens -1 is below 0"),
        (
            {"pkm-worth-tokens": 0, "best-checkpoint-metric": "pkm_l1_worth"},
            "--best-checkpoint-metric pkm_l1_worth is not there with --pkm-worth-tokens 0",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(data, tmp_path, changed, message):
    options = {**USAGE, **changed}
    output = run("fairseq-train", *pretraining(data, tmp_path, updates=1, **options), fails=True)
    assert output.splitlines()[-1].startswith(f"pkm_fairseq: {message}")


def test_usage_is_logged_in_bfloat16(small_set, tmp_path):
    # On the other command line fairseq takes bfloat16 for a TPU's.
    output = run(
        *("fairseq-hydra-train", "--config-dir", "user_dir_examples/pretraining"),
        *("--config-name", "tiny", f"task.data={small_set}", f"checkpoint.save_dir={tmp_path}"),
        *("task.sample_break_mode=complete", "task.tokens_per_sample=32"),
        *("common.memory_efficient_bf16=true", "common.bf16=true", "common.log_format=json"),
        *("dataset.batch_size=8", "dataset.num_workers=0", "optimization.max_update=2"),
        *("dataset.skip_invalid_size_inputs_valid_test=true", "criterion.pkm_drift_tokens=0"),
        "criterion.pkm_worth_tokens=0",
        "criterion.pkm_usage_per_head=true",
    )
    state = load_model_state(tmp_path / "checkpoint_last.pt")
    values = state["encoder.sentence_encoder.layers.1.pkm.values.weight"]
    assert torch.equal(values, values.bfloat16().float())
    (line,) = log_lines(output, "valid")
    figures = usage_of(line)
    assert 0 < figures["top1_usage"] <= figures["topk_usage"] <= 1
    assert figures["kl"] > 0
    assert [name for name in figures if "_h0_" in name]
    assert not [name for name in figures if "drift" in name or "worth" in name]
