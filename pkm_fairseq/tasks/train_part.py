"""What all tasks share: training a part of the model, chosen slots of its memories above all."""

import logging
from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask

from pkm_fairseq.finetuning.slot_lists import digest, read_slots
from pkm_fairseq.refusals import RefusalError

# Under this name the optimizer's state says which part of the model it is of.
STATE_NAME = "pkm_trained_part"

logger = logging.getLogger(__name__)


@dataclass
class TrainPartConfig(FairseqDataclass):
    """The options that say which part is trained."""

    pkm_train_slots: Optional[str] = field(
        default=None,
        metadata={
            "help": "list of slots, made by pkm-fairseq slots: of the values only these "
            "are trained, and all others stay as they are to the bit"
        },
    )
    pkm_freeze_rest: bool = field(
        default=False,
        metadata={
            "help": "train nothing but values (with --pkm-train-slots those of its slots) and, in "
            "finetuning, the task's classification head"
        },
    )


class TrainPartTask(FairseqTask):
    """Trains the part of the model that the options say (Lin et al. 2025, arXiv 2510.15103)."""

    _part = None  # what tells the part that is trained from others, if it is not all

    def build_model(self, cfg, from_checkpoint=False):
        """Builds the model and chooses what of it is trained.

        Raises:
            RefusalError: if it has no memory, or an option cannot work, naming what to change.
        """
        model = super().build_model(cfg, from_checkpoint)
        # A model that is loaded for use is not trained, and its list may be gone.
        if not from_checkpoint:
            self._choose_part(model)
        return model

    def _choose_part(self, model):
        path, freeze = self.cfg.pkm_train_slots, self.cfg.pkm_freeze_rest
        if not path and not freeze:
            return
        if not getattr(model, "memories", dict)():
            option = "--pkm-train-slots" if path else "--pkm-freeze-rest"
            raise RefusalError(f"{option} needs a model with a memory: add --pkm-layers")
        if path:
            tables = model.tables()
            sizes = {layers: len(table.weight) for layers, table in tables.items()}
            try:
                slots = read_slots(path, sizes)
            except ValueError as error:
                raise RefusalError(f"--pkm-train-slots {path} {error}") from error
            model.train_slots(slots)
            for layers, listed in slots.items():
                at = "+".join(map(str, layers))
                logger.info("training %d of %d slots of layer %s", len(listed), sizes[layers], at)
        self._part = f"{digest(slots) if path else 'all'} {'frozen' if freeze else 'trained'}"
        if freeze:
            model.freeze_rest(getattr(self.cfg, "classification_head_name", None))

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        """Same as in fairseq's task, once it is clear that the optimizer is of the same part.

        Raises:
            RefusalError: if a run is resumed with another one.
        """
        # Of fairseq's wrappers for half precision not all have the groups.
        inner = getattr(optimizer, "fp32_optimizer", getattr(optimizer, "wrapped_optimizer", None))
        group = next(iter((inner or optimizer).param_groups))
        if self._part and not update_num:
            group[STATE_NAME] = self._part
        if group.get(STATE_NAME) != self._part:
            raise RefusalError(
                "the checkpoint's optimizer is of another --pkm-train-slots or --pkm-freeze-rest: "
                "give those that it was trained with, or forget its state with --reset-optimizer"
            )
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
