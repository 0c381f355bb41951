"""What the plugin's tasks add to a step of training."""

from contextlib import contextmanager

import pytest
import torch
from fairseq.tasks import FairseqTask
from fairseq.tasks.sentence_prediction import SentencePredictionTask

from pkm_fairseq.tasks.monitored import MonitoredTask
from pkm_fairseq.tasks.sentence_prediction import PKMSentencePredictionTask


class WatchedModel:
    counting = True

    @contextmanager
    def not_counting(self):
        self.counting = False
        yield
        self.counting = True


@pytest.mark.parametrize("ignored", [True, False])
def test_a_batch_that_only_fills_up_a_shard_is_not_counted(monkeypatch, ignored):
    monkeypatch.setattr(FairseqTask, "train_step", lambda task, sample, model, *_: model.counting)
    step = MonitoredTask(None).train_step
    assert step({}, WatchedModel(), None, None, 1, ignore_grad=ignored) != ignored


def test_a_metric_that_is_no_finite_number_is_said(caplog):
    task = MonitoredTask(None)
    task.monitor.begin_set("valid")
    task.post_validate(None, {"loss": float("nan"), "ppl": float("inf"), "num_updates": 3}, None)
    assert caplog.messages == [
        "valid: not a finite number: loss, ppl; by such a metric no checkpoint is the best"
    ]
    task.monitor.begin_set("valid")
    task.post_validate(None, {"loss": torch.tensor(0.5), "num_updates": 3}, None)
    assert len(caplog.messages) == 1


def test_what_is_predicted_without_memories_is_not_scored(monkeypatch):
    monkeypatch.setattr(SentencePredictionTask, "__init__", lambda task, *_: None)
    task = PKMSentencePredictionTask(None, None, None)
    ids, targets = torch.tensor([4, 7]), torch.tensor([1, 0])
    task.record(ids, torch.tensor([1, 0]), targets)
    task.worth.repeating = True
    task.record(ids, torch.tensor([0, 1]), targets)
    assert task._recorded == {4: [1, 1], 7: [0, 0]}
