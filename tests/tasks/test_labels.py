"""Labels that do not fit are refused before a model is built, whoever prepared the data."""

import re

import pytest
from fairseq import models
from fairseq.data import Dictionary, indexed_dataset
from omegaconf import OmegaConf

from pkm_fairseq.tasks import PKMSentencePredictionTask
from pkm_fairseq.tasks.sentence_prediction import PKMSentencePredictionConfig

CLASSES = "bad", "fair", "good"
FITTING = {"train": ["bad", "good", "fair", "good"], "valid": ["good", "bad"]}


class Built(Exception):
    """Says that a model would have been built."""


def write_rows(prefix, dictionary, lines):
    prefix.parent.mkdir(exist_ok=True, parents=True)
    builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", vocab_size=len(dictionary))
    for line in lines:
        builder.add_item(dictionary.encode_line(line, add_if_not_exist=False))
    builder.finalize(f"{prefix}.idx")


def dictionary_of(symbols, folder):
    dictionary = Dictionary()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    # As fairseq-preprocess does.
    dictionary.pad_to_multiple_(8)
    dictionary.save(str(folder / "dict.txt"))
    return dictionary


def prepare(folder, labels, scores=False, inputs=("input0",), rows=None):
    """Writes what fairseq-preprocess makes of files with these labels."""
    for place in (*inputs, "label"):
        (folder / place).mkdir(parents=True)
    for place in inputs:
        words = dictionary_of(["word"], folder / place)
        for split, lines in labels.items():
            count = (rows or {}).get((place, split), len(lines))
            write_rows(folder / place / split, words, ["word word"] * count)
    if scores:
        for split, lines in labels.items():
            text = "".join(f"{line}\n" for line in lines)
            (folder / "label" / f"{split}.label").write_text(text)
        return
    classes = dictionary_of(CLASSES, folder / "label")
    for split, lines in labels.items():
        write_rows(folder / "label" / split, classes, lines)


def task_of(folder, **options):
    fixed = {
        **vars(PKMSentencePredictionConfig()),
        **{"data": str(folder), "num_classes": 3, "regression_target": False, "seed": 1},
        **{"train_subset": "train", "valid_subset": "valid", "disable_validation": False},
        "classification_head_name": "head",
    }
    return PKMSentencePredictionTask.setup_task(OmegaConf.create({**fixed, **options}))


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    def build_model(*args):
        raise Built

    monkeypatch.setattr(models, "build_model", build_model)


def refusal(folder, **options):
    """Returns what building a model is refused with."""
    with pytest.raises(ValueError, match=re.escape(str(folder))) as refused:
        task_of(folder, **options).build_model(OmegaConf.create({}))
    return str(refused.value).replace(f"{folder}/", "")


def test_labels_that_fit_are_taken(tmp_path):
    prepare(tmp_path, FITTING, inputs=("input0", "input1"))
    task = task_of(tmp_path)
    with pytest.raises(Built):
        task.build_model(OmegaConf.create({}))
    task.load_dataset("train")
    targets = [task.dataset("train")[i]["target"].item() for i in range(4)]
    assert sorted(targets) == [0, 1, 2, 2]


def test_scores_that_fit_are_taken(tmp_path):
    prepare(tmp_path, {"train": [0.5, -1, "1e3"], "valid": [" 2 "]}, scores=True)
    with pytest.raises(Built):
        task_of(tmp_path, regression_target=True, num_classes=1).build_model(OmegaConf.create({}))


@pytest.mark.parametrize("given", [2, 4])
def test_another_number_of_classes_is_named_with_those_of_the_data(tmp_path, given):
    prepare(tmp_path, FITTING)
    assert refusal(tmp_path, num_classes=given) == (
        f"--num-classes {given} does not fit the 3 classes of label/dict.txt (bad, fair, good): "
        "give --num-classes 3"
    )


@pytest.mark.parametrize(
    ("split", "label", "fault"),
    [
        ("valid", "awful", "a class that label/dict.txt lacks: prepare the labels again, with a"),
        ("train", "very good", "a label of 2 words: prepare the labels again, one word a line"),
        ("train", "", "a label of 0 words: prepare the labels again, one word a line"),
    ],
)
def test_a_label_that_is_no_class_is_named_by_file_and_line(tmp_path, split, label, fault):
    prepare(tmp_path, {**FITTING, split: ["good", label]})
    assert refusal(tmp_path).startswith(f"label/{split}:2: {fault}")


def test_further_bad_lines_are_counted(tmp_path):
    prepare(tmp_path, {**FITTING, "train": ["good", "", "bad", "", "good good"]})
    assert refusal(tmp_path).startswith("label/train:2: a label of 0 words (and 2 such lines more)")


def test_other_numbers_of_rows_are_named(tmp_path):
    prepare(tmp_path / "a", FITTING, rows={("input0", "valid"): 20})
    assert refusal(tmp_path / "a").startswith(
        "label/valid has 2 labels for the 20 rows of input0/valid"
    )
    inputs = ("input0", "input1")
    prepare(tmp_path / "b", FITTING, inputs=inputs, rows={("input1", "train"): 3})
    assert refusal(tmp_path / "b").startswith("input1/train has 3 rows for the 4 of input0/train")
    prepare(tmp_path / "c", {"train": [1, 2]}, scores=True, rows={("input0", "train"): 3})
    assert refusal(tmp_path / "c", regression_target=True, num_classes=1).startswith(
        "label/train has 2 labels for the 3 rows of input0/train"
    )


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("score", ["nan", "inf", "-inf", "-1e39", "", "high", "0.5 0.6"])
def test_a_score_that_is_no_finite_number_is_named(tmp_path, split, score):
    prepare(tmp_path, {"train": [1, 2], "valid": [1, 2], split: [0.5, 1, score]}, scores=True)
    assert refusal(tmp_path, regression_target=True, num_classes=1) == (
        f"label/{split}.label:3: {score!r} is not a finite number: put a number there, or leave "
        "the row out"
    )


def test_classes_for_a_regression_and_the_other_way_round_are_refused(tmp_path):
    prepare(tmp_path / "classes", FITTING)
    prepare(tmp_path / "scores", {"train": [1, 2], "valid": [1]}, scores=True)
    assert "label holds classes (dict.txt) and no scores (train.label)" in refusal(
        tmp_path / "classes", regression_target=True, num_classes=1
    )
    assert "label holds scores (train.label) and no classes" in refusal(tmp_path / "scores")
    assert refusal(tmp_path / "scores", regression_target=True, num_classes=3).startswith(
        "--num-classes 3 does not fit --regression-target"
    )


def test_labels_that_are_not_there_are_missed_where_they_are_needed(tmp_path):
    prepare(tmp_path / "classes", FITTING)
    for ending in ("bin", "idx"):
        (tmp_path / "classes" / "label" / f"valid.{ending}").unlink()
    assert refusal(tmp_path / "classes") == "there are no labels: label/valid.bin is missing"
    task_of(tmp_path / "classes").load_dataset("valid")
    with pytest.raises(Built):
        task_of(tmp_path / "classes", disable_validation=True).build_model(OmegaConf.create({}))
    prepare(tmp_path / "scores", {"train": [1], "valid": [1]}, scores=True)
    (tmp_path / "scores" / "label" / "valid.label").unlink()
    refused = refusal(tmp_path / "scores", regression_target=True, num_classes=1)
    assert refused == "there are no scores: label/valid.label is missing"


def test_a_split_that_is_loaded_alone_is_checked_too(tmp_path):
    prepare(tmp_path, {**FITTING, "test": ["good", "awful"]})
    with pytest.raises(ValueError, match="label/test:2: a class that"):
        task_of(tmp_path).load_dataset("test")


def test_a_class_without_a_row_in_train_is_said(tmp_path, caplog):
    prepare(tmp_path, {**FITTING, "train": ["bad", "good"]})
    task_of(tmp_path).load_dataset("train")
    assert f"{tmp_path}/label/train: no row has the class fair" in caplog.messages


def test_labels_that_were_cut_off_are_refused(tmp_path):
    prepare(tmp_path, FITTING)
    path = tmp_path / "label" / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    assert "label/train.bin is not as long as its .idx says" in refusal(tmp_path)
