"""Trainings that follow each other in one process know nothing of each other."""

import pytest
from fairseq import checkpoint_utils
from fairseq.logging import progress_bar
from fairseq_cli import train
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from pkm_fairseq.checkpoints.sweeps import begin_training
from pkm_fairseq.refusals import RefusalError


@pytest.fixture
def job(monkeypatch):
    """A function that makes this process a job of Hydra's, with these overrides."""

    def set_job(number, *overrides):
        config = OmegaConf.structured(HydraConf)
        if number is not None:
            config.job.num = number
        config.overrides.task = list(overrides)
        HydraConfig.instance().set_config(OmegaConf.create({"hydra": config}))

    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    return set_job


def test_a_training_begins_without_what_fairseq_keeps_of_the_one_before(tmp_path, monkeypatch):
    class Writer:
        closed = False

        def close(self):
            self.closed = True

    writer = Writer()
    monkeypatch.setitem(progress_bar._tensorboard_writers, "valid", writer)
    checkpoint_utils.save_checkpoint.best = 0.1
    train.should_stop_early.best, train.should_stop_early.num_runs = 0.1, 3
    begin_training(tmp_path, saves=True)
    assert not hasattr(checkpoint_utils.save_checkpoint, "best")
    assert not hasattr(train.should_stop_early, "best")
    assert not progress_bar._tensorboard_writers
    assert writer.closed
    assert not list(tmp_path.iterdir()), "outside a sweep folders are anyone's"


def test_a_job_of_a_sweep_does_not_go_on_from_another(tmp_path, job):
    job(0, "common.seed=1")
    begin_training(tmp_path, saves=True)
    begin_training(tmp_path, saves=True)  # started again
    job(0, "common.seed=3")
    with pytest.raises(RefusalError, match=f"^{tmp_path} is of another job, by its overrides.yaml"):
        begin_training(tmp_path, saves=True)
    job(None, "common.seed=3")
    begin_training(tmp_path, saves=True)
