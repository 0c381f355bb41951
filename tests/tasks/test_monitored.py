"""What the plugin's tasks add to a step of training."""

from contextlib import contextmanager

import pytest
from fairseq.tasks import FairseqTask

from pkm_fairseq.tasks.monitored import MonitoredTask


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
