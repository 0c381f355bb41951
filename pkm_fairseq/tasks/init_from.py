"""What all tasks share: starting from a checkpoint without memory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import FairseqTask
from omegaconf import II

from pkm_fairseq.refusals import RefusalError


@dataclass
class InitFromConfig(FairseqDataclass):
    """The option that every task of the plugin adds to fairseq's own."""

    pkm_init_from: Optional[str] = field(
        default=None,
        metadata={
            "help": "checkpoint of a RoBERTa without memory to start from; a run that is resumed "
            "does not read it again"
        },
    )
    save_dir: str = II("checkpoint.save_dir")
    restore_file: str = II("checkpoint.restore_file")


class InitFromTask(FairseqTask):
    """Starts new models from ``--pkm-init-from`` (Kim & Jung 2020, "initialization")."""

    def build_model(self, cfg, from_checkpoint=False):
        """Builds the model, and gives it the weights it is to start from.

        Raises:
            RefusalError: if options cannot be, or the checkpoint cannot be read or does not fit,
                naming what to change.
        """
        # A model that is loaded from its own checkpoint was built with its options long ago.
        model_class = ARCH_MODEL_REGISTRY.get(getattr(cfg, "_name", None))
        if hasattr(model_class, "check_training") and not from_checkpoint:
            model_class.check_training(cfg, self)
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.pkm_init_from and not from_checkpoint and not self._resumes():
            if not hasattr(model, "init_from"):
                raise RefusalError(
                    "--pkm-init-from needs a model of pkm_fairseq: --arch pkm_roberta"
                )
            model.init_from(self.cfg.pkm_init_from)
        return model

    def _resumes(self):
        """Tells whether fairseq will load a checkpoint of the training itself."""
        last = "checkpoint_last.pt"  # fairseq's default, the one that need not exist
        return self.cfg.restore_file != last or Path(self.cfg.save_dir, last).exists()
