"""The official metrics of GLUE's tasks, over whole sets; pure functions.

They return Python's own numbers: fairseq puts its best score into checkpoints, and torch's safe
loading refuses numpy's.

All are in percent, as GLUE's leaderboard and the RoBERTa paper give them (Wang et al. 2019, arXiv
1804.07461, section 3).
"""

import warnings

from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def classification_scores(predictions, targets, positive=None):
    """Scores predicted classes.

    Args:
        predictions: class of each example, a sequence of int.
        targets: the true classes.
        positive: the class that F1 asks for, or None where no class is positive.

    Returns:
        A dict with ``mcc`` (Matthews correlation) and ``f1_macro``, the mean of the F1 of each
        class that is predicted or true of some example; and with a positive class ``f1`` and
        ``acc_and_f1``, the mean of accuracy and F1.
    """
    macro = f1_score(targets, predictions, average="macro", zero_division=0)
    scores = {
        "mcc": 100 * float(matthews_corrcoef(targets, predictions)),
        "f1_macro": 100 * float(macro),
    }
    if positive is not None:
        is_positive = [target == positive for target in targets]
        called_positive = [prediction == positive for prediction in predictions]
        scores["f1"] = 100 * float(f1_score(is_positive, called_positive, zero_division=0))
        scores["acc_and_f1"] = (
            100 * float(accuracy_score(targets, predictions)) + scores["f1"]
        ) / 2
    return scores


def regression_scores(predictions, targets):
    """Scores predicted numbers.

    Args:
        predictions: number for each example, a sequence of float.
        targets: the true numbers.

    Returns:
        A dict with ``pearson`` and ``spearman`` correlation, 0 where there is none (fewer than two
        examples, or all alike), and ``pearson_and_spearman``, their mean.
    """
    if len(set(predictions)) < 2 or len(set(targets)) < 2:
        pearson = spearman = 0.0
    else:
        with warnings.catch_warnings():
            # Numbers that are nearly alike: the correlation is what it is.
            warnings.simplefilter("ignore")
            pearson = 100 * float(pearsonr(predictions, targets)[0])
            spearman = 100 * float(spearmanr(predictions, targets)[0])
    return {
        "pearson": pearson,
        "spearman": spearman,
        "pearson_and_spearman": (pearson + spearman) / 2,
    }
