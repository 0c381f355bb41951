"""Which slots data access: the counts that slots to train are chosen by."""

import os

import torch
from fairseq.tasks import setup_task
from omegaconf import OmegaConf

from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.usage.observe import observe_reads


def task_for(folder, cfg):
    """Returns the task that reads a folder: of the checkpoint's options where they are of its kind.

    Args:
        folder: of binary data, GLUE's or text.
        cfg: the checkpoint's options.

    Raises:
        RefusalError: if there is no such data.
    """
    if os.pathsep in str(folder):
        raise RefusalError(
            f"{folder} is several folders: name those of --background one after the other, and "
            "list the slots of each --data by itself"
        )
    of_glue = (folder / "input0").is_dir()
    if not of_glue and not (folder / "dict.txt").is_file():
        raise RefusalError(
            f"{folder} is no folder of binary data: it has no dict.txt and no input0"
        )
    positions = getattr(cfg.model, "max_positions", None)
    if positions is None:
        raise RefusalError("the checkpoint is no RoBERTa: its model has no max_positions")
    if cfg.task._name.endswith("sentence_prediction") == of_glue:
        options = {**OmegaConf.to_container(cfg.task)}
    elif of_glue:
        options = {
            **{"_name": "pkm_sentence_prediction", "init_token": 0, "separator_token": 2},
            **{"max_positions": positions, "seed": cfg.common.seed},
        }
    else:
        options = {
            **{"_name": "pkm_masked_lm", "sample_break_mode": "complete"},
            **{"tokens_per_sample": positions, "seed": cfg.common.seed},
        }
    if of_glue:
        # A long sentence would end the work; labels, numbers or classes, are not looked at.
        options.update(shorten_method="truncate", regression_target=True, num_classes=1)
        options.update(classification_head_name="none")
    return setup_task(OmegaConf.create({**options, "data": str(folder)}))


@torch.no_grad()
def count_accesses(model, data, title, most=None):
    """Counts accesses to slots.

    Args:
        model: the model, in evaluation.
        data: a ``DataSet``.
        title: what to say while it takes.
        most: how many batches at most, None for all.

    Returns:
        A dict from the layers of each table to how often each slot was accessed, and in how many
        batches it was, (2, S), on the CPU; and how many batches there were.
    """
    counts = {
        layers: torch.zeros(2, len(table.weight), dtype=torch.int64, device=table.weight.device)
        for layers, table in model.tables().items()
    }
    batches = 0
    for batch in data.batches(title, most):
        with observe_reads(model.memories()) as reads:
            model(**batch["net_input"], features_only=True)
        for layers, of_table in counts.items():
            # What relu gives no weight was not read.
            slots = torch.cat(
                [slots[weights > 0] for layer in layers for slots, weights in reads[layer]]
            )
            accesses = slots.bincount(minlength=of_table.shape[1])
            of_table += torch.stack([accesses, (accesses > 0).long()])
        batches += 1
    return {layers: of_table.cpu() for layers, of_table in counts.items()}, batches
