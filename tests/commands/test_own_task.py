"""A task that is not GLUE's becomes what fairseq's sentence_prediction task reads."""

import csv
import json
import re

import pytest
import torch
from fairseq.data import Dictionary, data_utils
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from pkm_fairseq.commands.predict import table
from pkm_fairseq.task_data.folders import for_hydra
from pkm_fairseq.tasks import PKMSentencePredictionTask
from pkm_fairseq.tasks.sentence_prediction import PKMSentencePredictionConfig
from pkm_fairseq.text.dictionaries import class_names
from tests.commands.commands import call

COLUMNS = "id", "text", "about", "mood"
# Quotes, tabs, commas, line breaks and empty cells; a class with a space in its name, which the
# validation set lacks.
ROWS = {
    "train": [
        ("1", 'He said "go".', "a\tb", "good"),
        ("", '"Quoted" at the start, and more', "two\nlines", "bad"),
        ("3", "it, too", "x", "so so"),
        ("4", "plain", "y", "good"),
    ],
    "valid": [("5", "an end", '"', "good"), ("6", "a start", "z", "bad")],
    "test": [("7", "  what is it  ", "q", ""), ("8", "is it", "", "")],
}


def write_csv(path, rows, columns=COLUMNS, **options):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([columns, *rows])


def write_tsv(path, rows):
    write_csv(path, rows, delimiter="\t", quoting=csv.QUOTE_ALL)


def write_jsonl(path, rows):
    objects = [{name: cell or None for name, cell in zip(COLUMNS, row)} for row in rows]
    path.write_text("".join(json.dumps(cells) + "\n" for cells in objects))


def write_dataset(path, rows):
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
    names = ["so so", "bad", "good"]
    columns = dict(zip(COLUMNS, map(list, zip(*rows))))
    columns["mood"] = [names.index(name) if name else -1 for name in columns["mood"]]
    features = {name: datasets.Value("string") for name in COLUMNS}
    features["mood"] = datasets.ClassLabel(names=names)
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict({"rows": made}).save_to_disk(str(path))


WRITERS = {".csv": write_csv, ".tsv": write_tsv, ".jsonl": write_jsonl, "": write_dataset}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A sentencepiece model that knows every letter used here, and its dictionary."""
    folder = tmp_path_factory.mktemp("model")
    SentencePieceTrainer.train(
        sentence_iterator=(cell for rows in ROWS.values() for row in rows for cell in row[1:]),
        model_prefix=str(folder / "sentencepiece.bpe"),
        model_type="bpe",
        vocab_size=60,
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    pieces = SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    names = [pieces.id_to_piece(i) for i in range(1, pieces.get_piece_size())]
    (folder / "dict.txt").write_text("".join(f"{name} 1\n" for name in names))
    return folder


@pytest.fixture
def prepare(model, tmp_path):
    """Prepares tables in ``tmp_path`` in this process, and returns the folder made."""

    def prepare(*options, ending=".csv", sentences=("text",), label="mood", kind="classes"):
        files = {split: [tmp_path / f"{split}{ending}"] for split in ROWS}
        if not ending:
            files = {split: [path / "rows"] for split, (path,) in files.items()}
        command = ["prepare-task", "--dest", tmp_path / "made", "--workers", 1]
        for split, paths in files.items():
            command += [f"--{split}", *paths]
        command += ["--sentences", *sentences, "--label", label, "--kind", kind]
        command += ["--dict", model / "dict.txt"]
        command += ["--sentencepiece-model", model / "sentencepiece.bpe.model", *options]
        call(*command)
        return tmp_path / "made"

    return prepare


@pytest.fixture
def tables(tmp_path):
    for split, rows in ROWS.items():
        write_csv(tmp_path / f"{split}.csv", rows)


def sentences_of(folder, model, place, split):
    dictionary = Dictionary.load(str(folder / place / "dict.txt"))
    pieces = SentencePieceProcessor(model_file=str(model / "sentencepiece.bpe.model"))
    rows = data_utils.load_indexed_dataset(str(folder / place / split), dictionary)
    return [pieces.decode(dictionary.string(row).split()) for row in rows]


def load(folder, **options):
    """Returns the task as finetuning sets it up."""
    fixed = {
        **vars(PKMSentencePredictionConfig()),
        **{"data": str(folder), "num_classes": 3, "regression_target": False, "seed": 1},
        **{"init_token": 0, "separator_token": 2, "no_shuffle": True, "max_positions": 64},
        "classification_head_name": "head",
    }
    return PKMSentencePredictionTask.setup_task(OmegaConf.create({**fixed, **options}))


def rows_of(task, split):
    task.load_dataset(split)
    rows = task.dataset(split)
    return [rows[i] for i in range(len(rows))]


@pytest.mark.parametrize("ending", WRITERS)
def test_rows_come_back_from_any_kind_of_table(prepare, model, tmp_path, ending):
    for split, rows in ROWS.items():
        WRITERS[ending](tmp_path / f"{split}{ending}", rows)
    folder = prepare("--skip-bad-rows", ending=ending, sentences=("text", "about"))
    for split, rows in ROWS.items():
        # One sentence of the test set is empty.
        kept = [row for row in rows if row[1] and row[2]]
        for place, column in (("input0", 1), ("input1", 2)):
            expected = [" ".join(row[column].split()) for row in kept]
            assert sentences_of(folder, model, place, split) == expected
    task = load(folder)
    # In the order of their names, whatever there is in the data.
    assert class_names(task.label_dictionary) == ["bad", "good", "so so"]
    for split, expected in (("train", [1, 0, 2, 1]), ("valid", [1, 0])):
        assert [row["target"].item() for row in rows_of(task, split)] == expected
    assert "target" not in rows_of(task, "test")[0]


def test_the_command_that_finetunes_is_printed_and_the_task_described(prepare, tables, capsys):
    folder = prepare("--metric", "f1_macro")
    printed = capsys.readouterr().out
    assert "made train: 1 of bad, 2 of good, 1 of so so" in printed
    assert "made valid: 1 of bad, 1 of good, 0 of so so" in printed
    assert printed.splitlines()[-1] == (
        "finetune on it by: fairseq-hydra-train --config-dir user_dir_examples/own_task "
        f"--config-name finetune task.data={folder} task.num_classes=3 "
        "criterion.regression_target=false checkpoint.save_dir=runs/made "
        "dataset.valid_subset=valid checkpoint.best_checkpoint_metric=f1_macro "
        "optimization.max_update=10 lr_scheduler.warmup_updates=1 "
        "checkpoint.finetune_from_model=PRETRAINED.pt"
    )
    described = json.loads((folder / "task.json").read_text())
    assert described["classes"] == ["bad", "good", "so so"]
    assert described["rows"] == {"train": 4, "valid": 2, "test": 2}


@pytest.mark.parametrize("value", ["valid,valid1", "/it's/ü (a=b),c", "[x]", "~/{a}", 3])
def test_hydra_reads_a_printed_option_as_it_is(value):
    override = OverridesParser.create().parse_override(f"name={for_hydra(value)}")
    assert override.value() == value


def test_what_is_made_stays_and_another_task_in_its_place_is_refused(prepare, tables, capsys):
    folder = prepare()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    prepare()
    assert f"{folder} is there already" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is there already, but not of these columns"):
        prepare(sentences=("about",))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_bad_rows_are_reported_by_file_and_line(prepare, tables, tmp_path, capsys):
    good = ROWS["train"]
    write_csv(tmp_path / "train.csv", [good[1], ("1", " ", "x", "bad"), ("1", "x", "y", ""), *good])
    write_csv(tmp_path / "valid.csv", [*ROWS["valid"], ("1", "x", "y", "awful"), ("1", "x")])
    with pytest.raises(ValueError, match=r"bad rows \(2 in train.csv, 2 in valid.csv\): mend"):
        prepare()
    # The first row has a line break in it.
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/train.csv:4: text is empty",
        f"{tmp_path}/train.csv:5: mood is empty",
        f"{tmp_path}/valid.csv:4: mood 'awful' is not one of bad, good, so so",
        f"{tmp_path}/valid.csv:5: 2 columns instead of 4",
    ]
    assert not (tmp_path / "made").exists()
    prepare("--skip-bad-rows", "--classes", "so so", "bad", "good", "awful")
    task = load(tmp_path / "made", num_classes=4)
    assert class_names(task.label_dictionary) == ["so so", "bad", "good", "awful"]
    assert len(rows_of(task, "valid")) == 3
    described = json.loads((tmp_path / "made" / "task.json").read_text())
    assert described["left_out"] == {"train": [1, 2], "valid": [3], "test": []}


def test_quotes_that_do_not_fit_are_named_and_can_be_of_the_text(prepare, model, tmp_path, capsys):
    rows = ['"Quoted" he said\tgood', 'a" start\tbad', '"\tbad']
    for split in ROWS:
        lines = ["text\tmood", *rows]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="made has bad rows"):
        prepare(ending=".tsv")
    reported = capsys.readouterr().err.splitlines()
    assert reported[0].startswith(f"{tmp_path}/train.tsv:2: its quotes do not fit (")
    assert reported[1].startswith(f"{tmp_path}/train.tsv:4: its quotes do not fit (")
    assert "give --no-quotes" in reported[0]
    folder = prepare("--no-quotes", ending=".tsv")
    expected = [row.split("\t")[0] for row in rows]
    assert [text[:3] for text in sentences_of(folder, model, "input0", "train")] == [
        text[:3] for text in expected
    ]


def test_rows_that_quotes_swallow_are_not_lost_in_silence(prepare, tables, tmp_path, capsys):
    def train_on(lines):
        text = "text\tmood\n" + "".join(f"{line}\n" for line in lines)
        (tmp_path / "train.tsv").write_text(text)

    for split in ("valid", "test"):
        write_tsv(tmp_path / f"{split}.tsv", ROWS[split])
    train_on(["go\tgood", '"Oh dear\tbad', "a\tgood", 'fine day"\tbad', "end\tbad"])
    with pytest.raises(ValueError, match="1 in train.tsv"):
        prepare(ending=".tsv")
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/train.tsv:3: a cell in quotes goes on to line 5: if the quotes are of the "
        "text, give --no-quotes"
    ]
    train_on(["go\tgood", '"Oh dear\tbad', *["a\tgood"] * 50])
    with pytest.raises(ValueError, match=r"train.tsv: lines 3 to 53: its quotes do not fit \("):
        prepare("--skip-bad-rows", ending=".tsv")


@pytest.mark.parametrize("options", [(), ("--no-quotes",)])
def test_a_table_in_another_encoding_is_refused_by_its_first_line(prepare, tmp_path, options):
    (tmp_path / "train.tsv").write_text("text\tmood\ngo\tgood\n", encoding="utf-16")
    with pytest.raises(ValueError, match="train.tsv is UTF-16: turn it into UTF-8"):
        prepare(*options, ending=".tsv")


def test_a_header_that_is_no_text_is_not_taken_for_a_bad_row(prepare, tmp_path):
    (tmp_path / "train.tsv").write_text("text\tmood\tété\ngo\tgood\t\n", encoding="latin-1")
    with pytest.raises(ValueError, match="train.tsv: the header is no UTF-8"):
        prepare("--no-quotes", ending=".tsv")


def test_half_a_character_is_a_bad_row(prepare, tables, tmp_path, capsys):
    rows = [("1", "cut \ud83d", "x", "good"), ("2", "whole", "y", "good\ud83d"), *ROWS["train"]]
    for split in ROWS:
        write_jsonl(tmp_path / f"{split}.jsonl", rows if split == "train" else ROWS[split])
    prepare("--skip-bad-rows", ending=".jsonl")
    reported = capsys.readouterr().err
    assert f"{tmp_path}/train.jsonl:1: text has half of a character in it\n" in reported
    assert f"{tmp_path}/train.jsonl:2: mood has half of a character in it\n" in reported


@pytest.mark.parametrize("low", ["-2", "7.5"])
def test_scores_are_trained_between_0_and_1_and_told_as_they_were(prepare, tmp_path, low):
    for split, scores in (("train", [low, "10", "8"]), ("valid", ["12", "8"]), ("test", ["?"])):
        write_csv(tmp_path / f"{split}.csv", [("a", score) for score in scores], ("text", "mood"))
    folder = prepare(kind="regression")
    task = load(folder, num_classes=1, regression_target=True)
    width = 10 - float(low)
    for split, scores in (("train", [float(low), 10, 8]), ("valid", [12, 8])):
        trained = [row["target"][0] for row in rows_of(task, split)]
        assert trained == pytest.approx([(score - float(low)) / width for score in scores])
    args = type("Args", (), {"data": folder})
    lines = table(torch.tensor([[0.0], [1.0], [1.5]]), task, "test", args).splitlines()
    assert lines == ["index\tprediction", f"0\t{low}", "1\t10", f"2\t{10 + width / 2:g}"]


@pytest.mark.parametrize("score", ["nan", "inf", "high", ""])
def test_a_score_that_is_no_number_is_a_bad_row(prepare, tmp_path, capsys, score):
    for split in ROWS:
        write_csv(tmp_path / f"{split}.csv", [("a", "1"), ("b", score)], ("text", "mood"))
    with pytest.raises(ValueError, match=r"bad rows \(1 in train.csv, 1 in valid.csv\)"):
        prepare(kind="regression")
    assert re.search(rf"train.csv:3: mood '?{score}'? is not a", capsys.readouterr().err)


def test_predictions_have_class_names_probabilities_and_the_places_of_their_rows(
    prepare, tables, tmp_path
):
    write_csv(tmp_path / "test.csv", [*ROWS["test"], ("9", "", "", ""), ("10", "is it", "", "")])
    folder = prepare("--skip-bad-rows")
    logits = torch.tensor([[0.0, 1, 2], [3, 0, 0], [0, 9, 0]])
    text = table(logits, load(folder), "test", type("Args", (), {"data": folder}))
    header, *rows = csv.reader(text.splitlines(), delimiter="\t")
    names = ["bad", "good", "so so"]
    assert header == ["index", "prediction", *(f"probability of {name}" for name in names)]
    # The third row of the file was left out.
    assert [row[:2] for row in rows] == [["0", "so so"], ["1", "bad"], ["3", "good"]]
    shares = torch.tensor([[*map(float, row[2:])] for row in rows])
    torch.testing.assert_close(shares, logits.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a", "x"), ("b", "x")], {}, "train.csv has only one class, x: take another --label"),
        ([("a", "2"), ("b", "2.0")], {"kind": "regression"}, "all scores of .*train.csv are 2"),
        ([("a", "x"), ("b", "y")], {"label": "none"}, "no column 'none', only text, mood"),
        ([("a", "x"), ("b", "y")], {"sentences": ["mood", "b"]}, "no column 'b', only text, mood"),
        ([("a", "x"), ("b", "y")], {"ending": ".txt"}, "has none of the endings .* .tsv, .csv"),
        ([], {}, "train.csv has no good row"),
    ],
)
def test_tables_that_are_no_such_task_are_refused(prepare, tmp_path, rows, options, message):
    for split in ROWS:
        for ending in (".csv", ".txt"):
            write_csv(tmp_path / f"{split}{ending}", rows, ("text", "mood"))
    with pytest.raises(ValueError, match=message):
        prepare(**options)


def test_no_quotes_is_refused_where_there_are_none(prepare, tmp_path):
    for split, rows in ROWS.items():
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    with pytest.raises(ValueError, match="--no-quotes is for .tsv and .csv: remove it"):
        prepare("--no-quotes", ending=".jsonl")


def test_the_metric_of_a_positive_class_needs_one(prepare, tables):
    with pytest.raises(ValueError, match="--metric f1 is that of the class 1, but there are bad,"):
        prepare("--metric", "f1")


@pytest.mark.parametrize("name", ["<unk>", "<mask>", "madeupword0001", "a\nb"])
def test_a_class_that_fairseq_cannot_write_is_a_bad_row(prepare, tmp_path, capsys, name):
    for split in ROWS:
        write_csv(
            tmp_path / f"{split}.csv", [("a", "x"), ("b", "y"), ("c", name)], ("text", "mood")
        )
    with pytest.raises(ValueError, match="bad rows"):
        prepare()
    assert f"train.csv:4: mood {name!r} " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--glue", "."),
            "--classes does not go with --glue|--dest does not|does not go with --glue",
        ),
        (("--tasks", "CoLA"), "--tasks needs --glue"),
        (("--metric", "pearson"), "--metric pearson is not of --kind classes: accuracy, mcc"),
        (("--classes", "a"), "--classes are two or more different ones"),
        (("--classes", "a", "a"), "--classes are two or more different ones"),
        (("--classes", "a", "<s>"), "--classes '<s>' is a name that fairseq keeps for itself"),
        (("--sentences", "a", "b", "c"), "--sentences a b c: a row has one or two"),
    ],
)
def test_options_that_do_not_go_together_are_refused(prepare, tables, capsys, options, message):
    with pytest.raises(SystemExit):
        prepare(*options)
    assert re.search(message, capsys.readouterr().err)
