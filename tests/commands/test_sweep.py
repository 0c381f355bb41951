"""A sweep of Hydra (``-m``) on a shipped configuration."""

import os

import torch

from tests.commands.commands import MEMORY, MODEL, ROOT, assert_same_state, log_lines, run


def test_each_job_of_a_sweep_trains_by_itself_in_its_own_folder(data, tmp_path):
    model = {name.replace("-", "_"): value for name, value in {**MODEL, **MEMORY}.items()}
    command = [
        *("fairseq-hydra-train", "--config-dir", "user_dir_examples/pretraining"),
        *("--config-name", "tiny", f"task.data={os.path.relpath(data, ROOT)}"),
        f"checkpoint.save_dir={tmp_path}/run${{hydra:job.id}}",
        f"hydra.sweep.dir={tmp_path}",
        *(f"model.{name}={value}" for name, value in {**model, "pkm_layers": "[1]"}.items()),
        *("task.tokens_per_sample=32", "optimization.max_update=2", "dataset.num_workers=0"),
        *("dataset.data_buffer_size=0", "common.log_format=json", "common.log_interval=1"),
    ]
    # The first learns more, which is no measure for the second.
    output = run(command[0], "-m", *command[1:], "lr_scheduler.warmup_updates=1,1000000")
    assert len(log_lines(output, "valid")) == 2
    run(*command, "lr_scheduler.warmup_updates=1000000")
    alone, *jobs = (
        torch.load(tmp_path / folder / "checkpoint_best.pt", weights_only=True)
        for folder in ("run", "run0", "run1")
    )
    warmups = [job["cfg"]["lr_scheduler"]["warmup_updates"] for job in jobs]
    assert warmups == [1, 1_000_000]
    for job in jobs:
        assert job["extra_state"]["best"] == job["extra_state"]["val_loss"]
    assert_same_state(jobs[1]["model"], alone["model"])
    for number in range(2):
        assert list((tmp_path / f"run{number}" / "tensorboard" / "valid").glob("events*"))
