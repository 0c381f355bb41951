"""Refuses fairseq's own options with which a training fails, or that would do nothing."""

import re
from importlib.util import find_spec

import torch
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask

from pkm_fairseq.refusals import RefusalError


class CheckedOptionsTask(FairseqTask):
    """Refuses what cannot be trained before the model is built and data are read."""

    _best_metric = None  # by which a training chooses its best checkpoint

    def build_model(self, cfg, from_checkpoint=False):
        """Builds the model.

        Raises:
            RefusalError: if an option of any part of fairseq cannot be, naming what to change.
        """
        everything = self.cfg._get_parent()  # None if the task was made by itself
        # A model that is loaded for use is not trained.
        if everything and not from_checkpoint:
            self.check_options()
            check_training(everything)
            self._best_metric = everything.checkpoint.best_checkpoint_metric
        return super().build_model(cfg, from_checkpoint)

    def check_options(self):
        """Refuses what the task's options cannot be.

        Raises:
            RefusalError: naming what to change.
        """
        if getattr(self.cfg, "d2v2_multi", False):
            raise RefusalError(
                "--d2v2-multi makes batches for data2vec, not for RoBERTa: remove it"
            )

    def filter_indices_by_size(self, indices, dataset, max_positions=None, *args, **options):
        """Leaves out samples that are too long.

        Raises:
            RefusalError: if all are.
        """
        kept = super().filter_indices_by_size(indices, dataset, max_positions, *args, **options)
        if len(indices) and not len(kept):
            raise RefusalError(
                f"--max-positions {max_positions} is shorter than all samples of a set: raise it, "
                "or shorten them with --shorten-method truncate"
            )
        return kept

    def reduce_metrics(self, logging_outputs, criterion):
        """Logs what there is; in training refuses to choose the best by what there is not.

        Raises:
            RefusalError: naming what there is.
        """
        super().reduce_metrics(logging_outputs, criterion)
        logged = {name for meters in metrics.get_active_aggregators() for name in meters}
        if not criterion.training and self._best_metric not in {None, *logged}:
            of_all = sorted(name for name in logged if not re.match(r"_|pkm_l\d", name))
            raise RefusalError(
                f"--best-checkpoint-metric {self._best_metric} is not measured: choose another, "
                f"such as {', '.join(of_all)}"
            )


def check_training(cfg):
    """Refuses options that no training of a RoBERTa can have, or not on this machine.

    Args:
        cfg: the options of all parts of fairseq.

    Raises:
        RefusalError: naming what to change.
    """
    common, distributed = cfg.common, cfg.distributed_training
    # Without its library fairseq warns and continues, or fails without naming the option.
    libraries = {
        "--aim-repo": ("aim", common.aim_repo),
        "--azureml-logging": ("azureml", common.azureml_logging),
        "--ddp-backend slowmo": ("fairscale", distributed.ddp_backend == "slowmo"),
        "--tpu": ("torch_xla", common.tpu),
        "--wandb-project": ("wandb", common.wandb_project),
        "--zero-sharding os": ("fairscale", distributed.zero_sharding == "os"),
    }
    for option, (library, given) in libraries.items():
        if given and find_spec(library) is None:
            raise RefusalError(
                f"{option} needs the package {library}: install it or remove {option}"
            )
    if common.model_parallel_size > 1:
        raise RefusalError(
            "--model-parallel-size splits the layers of fairseq's Megatron models, not of "
            "RoBERTa: remove it; --pkm-shards splits a memory's values"
        )
    if distributed.pipeline_model_parallel:
        raise RefusalError(
            "--pipeline-model-parallel is for fairseq's pipeline_parallel_transformer: remove it"
        )
    if distributed.cpu_offload:
        raise RefusalError("--cpu-offload is for --ddp-backend fully_sharded: remove it")
    if cfg.checkpoint.write_checkpoints_asynchronously:
        raise RefusalError(
            "--write-checkpoints-asynchronously writes no checkpoint_last.pt, from which a "
            "training continues: remove it"
        )
    if common.cpu or not torch.cuda.is_available():
        _check_without_gpu(common, distributed)


def _check_without_gpu(common, distributed):
    if common.fp16 and not (common.memory_efficient_fp16 or common.fp16_no_flatten_grads):
        raise RefusalError(
            "--fp16 needs a GPU: add --fp16-no-flatten-grads or choose --memory-efficient-fp16"
        )
    if distributed.distributed_world_size > 1 and distributed.ddp_backend in (
        "c10d",
        "pytorch_ddp",
    ):
        raise RefusalError(
            f"--ddp-backend {distributed.ddp_backend} needs GPUs: choose --ddp-backend legacy_ddp"
        )
