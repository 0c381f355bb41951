import numpy as np
import pytest

from pkm_fairseq.task_data.scores import classification_scores, regression_scores


def test_matthews_and_f1_are_those_of_the_confusion_counts():
    targets = [1, 1, 1, 0, 0, 0, 0, 1]
    predictions = [1, 1, 0, 0, 0, 1, 0, 1]
    tp, fp, fn, tn = 3, 1, 1, 3
    mcc = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    scores = classification_scores(predictions, targets, positive=1)
    assert scores["mcc"] == pytest.approx(100 * mcc)
    assert scores["f1"] == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    assert scores["acc_and_f1"] == pytest.approx((75 + scores["f1"]) / 2)


def test_f1_is_of_the_class_called_positive():
    assert classification_scores([0, 0], [0, 1], positive=0)["f1"] == pytest.approx(200 / 3)
    assert classification_scores([0, 0], [0, 1], positive=1)["f1"] == 0
    assert "f1" not in classification_scores([0, 1, 2], [0, 1, 1])


def test_macro_f1_is_the_mean_of_that_of_each_class():
    # Class 3 is of no example: it does not count.
    scores = classification_scores([0, 0, 1, 1, 2], [0, 1, 1, 1, 0])
    assert scores["f1_macro"] == pytest.approx(100 * (1 / 2 + 4 / 5 + 0) / 3)


def test_correlations_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20))
    pearson = 100 * np.corrcoef(x, y)[0, 1]
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    spearman = 100 * np.corrcoef(*ranks)[0, 1]
    scores = regression_scores(x.tolist(), y.tolist())
    assert scores["pearson"] == pytest.approx(pearson)
    assert scores["spearman"] == pytest.approx(spearman)
    assert scores["pearson_and_spearman"] == pytest.approx((pearson + spearman) / 2)


@pytest.mark.parametrize(("x", "y"), [([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([], [])])
def test_where_there_is_no_correlation_it_is_zero(x, y):
    assert set(regression_scores(x, y).values()) == {0.0}


def test_predicting_one_class_only_has_no_matthews_correlation():
    assert classification_scores([1, 1, 1], [1, 0, 1])["mcc"] == 0


@pytest.mark.parametrize("function", ["matthews_corrcoef", "f1_score", "accuracy_score"])
def test_scores_are_plain_numbers_whatever_the_library_returns(function, monkeypatch):
    monkeypatch.setattr(
        f"pkm_fairseq.task_data.scores.{function}", lambda *args, **kwargs: np.float64(1)
    )
    scores = classification_scores([1, 0], [1, 0], positive=1)
    assert {type(score) for score in scores.values()} == {float}
