"""Finetuning with the shipped configs, scoring, and the files for GLUE's leaderboard."""

import csv
import math
import random
import shlex

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from pkm_fairseq.commands import predict as predicting
from pkm_fairseq.commands.cli import parse_args
from pkm_fairseq.models import PKMRobertaModel
from tests.commands.commands import (
    MEMORY,
    MODEL,
    flags,
    logged,
    pretraining,
    run,
    run_on_two_workers,
)

SIZES = {name.replace("-", "_"): value for name, value in MODEL.items() if name != "max-positions"}
ROWS = {"train": 64, "dev": 33, "test": 5}  # 33: with batches of 8, the last one is a single row


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    options = {"arch": "pkm_roberta", **MODEL, **MEMORY}
    run("fairseq-train", *pretraining(data, folder, updates=2, **options))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def glue(text, data, tmp_path_factory):
    """Small tasks in GLUE's layout that can be learned: folders of official and of binary files."""
    folder = tmp_path_factory.mktemp("glue")
    chance = random.Random(0)
    words = sorted(set((text / "train.txt").read_text().split()))
    words = [word for word in words if word.isalpha() and len(word) < 6]

    def sentence():
        return " ".join(chance.sample(words, 4))

    def write(path, header, rows):
        path.parent.mkdir(exist_ok=True)
        lines = [header, *rows] if header else rows
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in lines))

    for split, count in ROWS.items():
        rows = [sentence() for _ in range(count)]
        cola = [("x", i % 2, "", f"{'yes ' * 4 * (i % 2)}{row}") for i, row in enumerate(rows)]
        header = ("index", "sentence") if split == "test" else None
        test = [(i, row[3]) for i, row in enumerate(cola)]
        write(folder / "CoLA" / f"{split}.tsv", header, test if split == "test" else cola)

        pairs = [(i, row, sentence()) for i, row in enumerate(rows)]
        header = ("index", "sentence1", "sentence2")
        scored = [(*pair, 5 * chance.random()) for pair in pairs]
        if split == "test":
            write(folder / "STS-B" / "test.tsv", header, pairs)
        else:
            write(folder / "STS-B" / f"{split}.tsv", (*header, "score"), scored)

        classes = ("contradiction", "entailment", "neutral")
        judged = [(*pair, classes[pair[0] % 3]) for pair in pairs]
        for kind in ("",) if split == "train" else ("_matched", "_mismatched"):
            path = folder / "MNLI" / f"{split}{kind}.tsv"
            write(path, header, pairs) if split == "test" else write(
                path, (*header, "gold_label"), judged
            )
    run(
        *("pkm-fairseq", "prepare-task", "--glue", folder, "--dest", folder),
        *("--dict", data / "dict.txt", "--workers", 1),
        *("--sentencepiece-model", data / "sentencepiece.bpe.model"),
    )
    return folder


def finetune(name, task, glue, pretrained, save_dir, *extra, updates=80):
    """The command that finetunes with a shipped config, made small."""
    memory = {key.replace("-", "_"): value for key, value in MEMORY.items()}
    model = {"_name": "pkm_roberta", **memory, "pkm_layers": "[1]"}
    return [
        *("fairseq-hydra-train", "--config-dir", "user_dir_examples/glue", "--config-name", name),
        f"task.data={glue / f'{task}-bin'}",
        *("task.max_positions=32", f"checkpoint.finetune_from_model={pretrained}"),
        *(f"checkpoint.save_dir={save_dir}", "common.cpu=true", "common.log_interval=1"),
        *("dataset.batch_size=8", "dataset.num_workers=0", "optimization.lr=[0.005]"),
        *(f"optimization.max_update={updates}", "optimization.max_epoch=0"),
        *("lr_scheduler.warmup_updates=0",),
        *(f"model.{key}={value}" for key, value in model.items()),
        *(f"+model.{key}={value}" for key, value in SIZES.items() if key != "dropout"),
        *extra,
    ]


def predict(glue, task, checkpoint, dest, data=None, *more, **options):
    return run(
        *("pkm-fairseq", "predict", "--cpu", "--batch-size", 2),
        *("--data", glue / f"{data or task}-bin", "--checkpoint", checkpoint, "--dest", dest),
        *(("--task", task) if task else ()),
        *more,
        **options,
    )


def dev_rows(glue, task):
    lines = (glue / task / "dev.tsv").read_text().splitlines()
    return [line.split("\t") for line in lines]


def load_hub(folder, task, glue, data, checkpoint="checkpoint_best.pt"):
    return PKMRobertaModel.from_pretrained(
        str(folder),
        checkpoint,
        str(glue / f"{task}-bin"),
        sentencepiece_model=str(data / "sentencepiece.bpe.model"),
    ).eval()


@torch.no_grad()
def answer(hub, rows):
    """Asks a finetuned model about each row of sentences, one at a time, for its logits."""
    head = "sentence_classification_head"
    return [hub.predict(head, hub.encode(*row), return_logits=True) for row in rows]


@pytest.fixture(scope="module")
def cola(glue, pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cola")
    return folder, run(*finetune("cola", "CoLA", glue, pretrained, folder))


def test_cola_is_learned_and_scored_over_the_whole_validation_set(cola, glue, data):
    folder, output = cola
    reported = [float(value) for value in logged(output, "valid_mcc", "valid")]
    assert max(reported) > 50
    rows = dev_rows(glue, "CoLA")
    answers = answer(load_hub(folder, "CoLA", glue, data), [row[3:] for row in rows])
    predictions = [logits.argmax().item() for logits in answers]
    # The label dictionary is in the order of the official labels.
    expected = matthews_corrcoef([int(row[1]) for row in rows], predictions)
    assert max(reported) == pytest.approx(100 * expected, rel=1e-4)


def validate(checkpoint, glue):
    """Returns what fairseq-validate prints of a checkpoint on CoLA."""
    return run(
        *("fairseq-validate", glue / "CoLA-bin", "--user-dir", "pkm_fairseq", "--cpu"),
        *("--task", "pkm_sentence_prediction", "--num-classes", 2, "--log-format", "json"),
        *("--criterion", "pkm_sentence_prediction", "--num-workers", 0, "--batch-size", 8),
        *("--path", checkpoint, "--max-positions", 32),
    )


def test_worth_is_what_the_loss_of_a_checkpoint_gains_with_values_of_zero(
    cola, glue, data, tmp_path
):
    state = torch.load(cola[0] / "checkpoint_last.pt", weights_only=True)
    # A memory that counts, as so short a training makes none.
    torch.manual_seed(0)
    state["model"]["encoder.sentence_encoder.layers.1.pkm.values.weight"].normal_(std=10)
    torch.save(state, tmp_path / "checkpoint.pt")
    output = validate(tmp_path / "checkpoint.pt", glue)
    rows = dev_rows(glue, "CoLA")
    targets = torch.tensor([int(row[1]) for row in rows])
    hub = load_hub(tmp_path, "CoLA", glue, data, "checkpoint.pt")
    found = []
    for emptied in (False, True):
        if emptied:
            hub.model.memories()[1].values.weight.data.zero_()
        logits = torch.cat(answer(hub, [row[3:] for row in rows]))
        loss = F.cross_entropy(logits, targets).item() / math.log(2)
        found.append((loss, logits.argmax(-1)))
    (loss, classes), (loss_without, classes_without) = found
    figures = {
        name: float(logged(output, f"valid_pkm_{name}", "valid")[-1])
        for name in ("loss_with", "loss_without", "worth", "l1_worth", "changed")
    }
    changed = (classes != classes_without).double().mean().item()
    expected = {"loss_with": loss, "loss_without": loss_without, "changed": changed}
    worth = loss_without - loss
    assert abs(worth) > 1e-3
    assert figures == pytest.approx({**expected, "worth": worth, "l1_worth": worth}, abs=1e-4)


def test_fairseq_validate_gives_the_same_score(cola, glue):
    folder, output = cola
    validated = validate(folder / "checkpoint_last.pt", glue)
    keys = ("valid_mcc", "valid_loss", "valid_pkm_top1_usage", "valid_pkm_l1_kl", "valid_pkm_worth")
    for key in keys:
        assert logged(validated, key, "valid") == logged(output, key, "valid")[-1:]


def test_nothing_of_the_predictions_is_left_in_checkpoints_and_they_resume(cola, glue, pretrained):
    folder, _ = cola
    state = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    assert "mcc" not in str(state["extra_state"]["metrics"]["valid"])
    resumed = run(*finetune("cola", "CoLA", glue, pretrained, folder, updates=82))
    assert "Loaded checkpoint" in resumed
    assert logged(resumed, "valid_mcc", "valid")


MOODS = "bad", "good", "so so"


@pytest.fixture(scope="module")
def moods(text, data, tmp_path_factory):
    """A task of three classes that is not GLUE's: its folder, and the command that finetunes."""
    folder = tmp_path_factory.mktemp("moods")
    chance = random.Random(0)
    words = [*filter(str.isalpha, (text / "train.txt").read_text().split())]
    for split, count in (("train", 66), ("valid", 22), ("test", 5)):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["", "text", "mood"])
            for i in range(count):
                # The validation set lacks one of the classes.
                mood = i % (2 if split == "valid" else 3)
                said = " ".join(chance.sample(words, 2) + ["yes"] * 3 * mood)
                label = "" if split == "test" else MOODS[mood]
                table.writerow(["", f'"{said}",\tsaid', label])
    output = run(
        *("pkm-fairseq", "prepare-task", "--dest", folder / "own-bin"),
        *("--workers", 1, "--train", folder / "train.csv", "--valid", folder / "valid.csv"),
        *("--test", folder / "test.csv", "--sentences", "text", "--label", "mood"),
        *("--kind", "classes", "--metric", "f1_macro", "--dict", data / "dict.txt"),
        *("--sentencepiece-model", data / "sentencepiece.bpe.model"),
    )
    return folder, shlex.split(output.splitlines()[-1].partition("finetune on it by: ")[2])


def test_a_task_of_one_s_own_is_finetuned_and_predicted(moods, pretrained, data, tmp_path):
    folder, command = moods
    small = finetune("finetune", "", folder, pretrained, tmp_path, updates=40)
    # What makes it small, without the configuration and the data.
    output = run(*command, *small[6:])
    own = (folder, None, tmp_path / "checkpoint_best.pt", tmp_path, "own")
    predict(*own, "--split", "valid", "test")
    read = {
        split: [*csv.reader((tmp_path / f"{split}.tsv").open(newline=""), delimiter="\t")]
        for split in ("valid", "test")
    }
    labels = [MOODS[i % 2] for i in range(22)]
    expected = f1_score(labels, [row[1] for row in read["valid"][1:]], average="macro")
    reported = max(map(float, logged(output, "valid_f1_macro", "valid")))
    assert reported == pytest.approx(100 * expected, rel=1e-4)
    header, *rows = read["test"]
    assert header == ["index", "prediction", *(f"probability of {name}" for name in MOODS)]
    hub = load_hub(tmp_path, "own", folder, data)
    with open(folder / "test.csv", newline="") as file:
        asked = [row[1:2] for row in csv.reader(file)][1:]
    for place, (row, logits) in enumerate(zip(rows, answer(hub, asked))):
        assert row[:2] == [str(place), MOODS[logits.argmax().item()]]
        shares = [float(share) for share in row[2:]]
        assert shares == pytest.approx(logits.softmax(-1).view(-1).tolist(), abs=1e-4)


def test_two_workers_report_what_one_reports(glue, pretrained, tmp_path):
    options = {
        "user-dir": "pkm_fairseq",
        "task": "pkm_sentence_prediction",
        "criterion": "pkm_sentence_prediction",
        "arch": "pkm_roberta",
        **{**MODEL, **MEMORY, "dropout": 0, "attention-dropout": 0},
        "pkm-query-norm": "batch",
        "num-classes": 2,
        "init-token": 0,
        "separator-token": 2,
        "shorten-method": "truncate",
        "finetune-from-model": pretrained,
        "optimizer": "adam",
        "lr": 0,
        "max-update": 1,
        "cpu": None,
        "log-format": "json",
        "num-workers": 0,
        "seed": 2,
        "best-checkpoint-metric": "mcc",
        "maximize-best-checkpoint-metric": None,
    }
    common = [glue / "CoLA-bin", *flags(options)]
    alone = run("fairseq-train", *common, "--batch-size", 8, "--save-dir", tmp_path / "one")
    together = run_on_two_workers(
        tmp_path / "rendezvous", *common, "--batch-size", 4, "--save-dir", tmp_path / "two"
    )
    for key in ("valid_mcc", "valid_f1", "valid_accuracy"):
        assert logged(together, key, "valid") == logged(alone, key, "valid"), key


def test_a_regression_is_scored_by_its_correlations(glue, pretrained, data, tmp_path):
    output = run(*finetune("sts_b", "STS-B", glue, pretrained, tmp_path, updates=16))
    rows = dev_rows(glue, "STS-B")[1:]
    hub = load_hub(tmp_path, "STS-B", glue, data, "checkpoint_last.pt")
    predictions = [logits.item() for logits in answer(hub, [row[1:3] for row in rows])]
    scores = [float(row[3]) for row in rows]
    for key, function in (("valid_pearson", pearsonr), ("valid_spearman", spearmanr)):
        reported = float(logged(output, key, "valid")[-1])
        assert reported == pytest.approx(100 * function(predictions, scores)[0], rel=1e-3), key
    predict(glue, "STS-B", tmp_path / "checkpoint_best.pt", tmp_path / "submission")
    lines = (tmp_path / "submission" / "STS-B.tsv").read_text().splitlines()
    assert all(0 <= float(line.split("\t")[1]) <= 5 for line in lines[1:])


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("rte", "STS-B", "holds scores (train.label) and no classes (dict.txt): give --regression"),
        ("sts_b", "CoLA", "holds classes (dict.txt) and no scores (train.label): remove --regr"),
        ("mnli", "CoLA", "--num-classes 3 does not fit the 2 classes of"),
    ],
)
def test_a_config_for_other_labels_is_refused(glue, pretrained, tmp_path, name, task, message):
    output = run(*finetune(name, task, glue, pretrained, tmp_path), fails=True)
    assert message in output.splitlines()[-1]


def test_mnli_has_two_validation_sets_and_two_files_to_submit(glue, pretrained, tmp_path):
    output = run(*finetune("mnli", "MNLI", glue, pretrained, tmp_path, updates=8))
    assert len(logged(output, "valid_accuracy", "valid")) == 1
    assert len(logged(output, "valid1_accuracy", "valid1")) == 1
    predict(glue, "MNLI", tmp_path / "checkpoint_best.pt", tmp_path / "submission")
    for file in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        header, *lines = (tmp_path / "submission" / file).read_text().splitlines()
        assert header == "index\tprediction"
        assert [line.split("\t")[0] for line in lines] == [str(i) for i in range(ROWS["test"])]
        words = {line.split("\t")[1] for line in lines}
        assert words <= {"contradiction", "entailment", "neutral"}


def test_the_file_to_submit_has_the_answers_of_the_model_in_order(cola, glue, data, tmp_path):
    folder, _ = cola
    predict(glue, "CoLA", folder / "checkpoint_best.pt", tmp_path)
    rows = [line.split("\t") for line in (glue / "CoLA" / "test.tsv").read_text().splitlines()]
    answers = answer(load_hub(folder, "CoLA", glue, data), [row[1:] for row in rows[1:]])
    expected = [f"{row[0]}\t{best.argmax().item()}" for row, best in zip(rows[1:], answers)]
    assert (tmp_path / "CoLA.tsv").read_text().splitlines() == ["index\tprediction", *expected]


def test_predicting_with_what_does_not_fit_is_refused(cola, glue, pretrained, tmp_path):
    folder, _ = cola
    for task, checkpoint, message in (
        ("MNLI", folder / "checkpoint_best.pt", "has 2 classes, but --task MNLI has 3"),
        ("CoLA", pretrained, "is not finetuned"),
        ("CoLA", tmp_path / "none.pt", "is not a file"),
    ):
        output = predict(glue, task, checkpoint, tmp_path, fails=True)
        assert message in output.splitlines()[-1]
    for task, message in (("RTE", "its classes are {"), ("MRPC", "its rows are of other length")):
        output = predict(glue, task, folder / "checkpoint_best.pt", tmp_path, "CoLA", fails=True)
        assert f"CoLA-bin is not of --task {task}: {message}" in output.splitlines()[-1]


def test_predicting_with_int8_values_takes_a_memory(cola, glue, tmp_path):
    folder, _ = cola
    dense = tmp_path / "dense.pt"

    def load(checkpoint, dtype="int8"):
        options = {"task": "CoLA", "data": glue / "CoLA-bin", "checkpoint": checkpoint}
        options.update({"dest": tmp_path, "pkm-table-dtype": dtype, "cpu": None})
        args = parse_args(["predict", *map(str, flags(options))])
        return predicting.load(args)[0]

    model = load(folder / "checkpoint_best.pt")
    assert model.memories()[1].values.weight.dtype == torch.int8
    state = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    state["model"] = {key: state["model"][key] for key in state["model"] if ".pkm." not in key}
    of_model = state["cfg"]["model"]
    of_model["pkm_layers"] = []
    for arch in ("pkm_roberta", "roberta"):
        of_model["_name"] = of_model["arch"] = arch
        torch.save(state, dense)
        with pytest.raises(ValueError, match="--pkm-table-dtype.* has no effect"):
            load(dense)
    with pytest.raises(SystemExit):
        load(dense, "int4")


def test_the_criterion_without_its_task_is_refused(glue, tmp_path):
    output = run(
        *("fairseq-train", glue / "CoLA-bin", "--user-dir", "pkm_fairseq", "--cpu"),
        *("--task", "sentence_prediction", "--criterion", "pkm_sentence_prediction"),
        *(
            "--batch-size",
            2,
            "--arch",
            "pkm_roberta",
            "--encoder-layers",
            1,
            "--encoder-embed-dim",
            8,
        ),
        *("--encoder-attention-heads", 1, "--num-classes", 2, "--save-dir", tmp_path),
        fails=True,
    )
    assert "needs --task pkm_sentence_prediction" in output.splitlines()[-1]
