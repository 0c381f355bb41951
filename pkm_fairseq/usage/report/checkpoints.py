"""Opens checkpoints, of finished and unfinished runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from fairseq.checkpoint_utils import load_checkpoint_to_cpu, load_model_ensemble_and_task

from pkm_fairseq.models.hub import drop_unknown_task_options
from pkm_fairseq.refusals import RefusalError


@dataclass
class Checkpoint:
    """An opened checkpoint.

    Args:
        file: where it is.
        updates: of its training, None where it does not say.
        tensorboard: its training's --tensorboard-logdir, None if that is not there.
        model: the model.
        task: the task.
        cfg: the options it was trained with.
    """

    file: Path
    updates: Optional[int]
    tensorboard: Optional[Path]
    model: object
    task: object
    cfg: object

    @property
    def loss(self):
        """Which loss it was trained for, by fairseq's criterion or by the plugin's alike."""
        return self.cfg.criterion._name.replace("pkm_", "")


def open_checkpoint(path, data, make_task=None):
    """Opens a checkpoint with a memory.

    Args:
        path: its file, or the folder of a training, of which the newest that is whole is taken.
        data: folder of the data that its task is to read.
        make_task: makes, of the checkpoint's options, the task to build its model for; None for its
            own.

    Raises:
        RefusalError: if there is none, or it cannot be read, or it has no memory.
    """
    if not path.exists():
        raise RefusalError(f"there is no checkpoint {path}")
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("checkpoint*.pt"), key=lambda file: file.stat().st_mtime)[::-1]
        if not files:
            raise RefusalError(f"there is no checkpoint in {path} yet")
    file, state = _read_first_whole(files, {"data": str(data)})
    drop_unknown_task_options(state.get("cfg"))
    try:
        task = make_task and make_task(state["cfg"])
        (model,), cfg, task = load_model_ensemble_and_task([str(file)], task=task, state=state)
    except FileNotFoundError as error:
        raise RefusalError(f"{data} is not data for the task of {file}: {error}") from error
    if not getattr(model, "memories", dict)():
        raise RefusalError(f"{file} has no memory")
    history = state.get("optimizer_history") or [{}]
    # A folder may have been moved: what lies beside the checkpoint comes first.
    logdirs = [file.parent / "tensorboard"]
    if cfg.common.tensorboard_logdir:
        logdirs.append(Path(cfg.common.tensorboard_logdir))
    return Checkpoint(
        file=file,
        updates=history[-1].get("num_updates"),
        tensorboard=next((logdir for logdir in logdirs if logdir.is_dir()), None),
        model=model,
        task=task,
        cfg=cfg,
    )


def names_apart(paths):
    """Names folders, and files by folder and stem, with as many parents as tell them apart."""
    parts = []
    for path in map(Path.resolve, paths):
        *parents, name = path.parts
        if path.is_file():
            name = f"{parents.pop()}/{path.stem}"
        parts.append((*parents, name))
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_path[-length:]) for of_path in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _read_first_whole(files, overrides):
    """Reads the first file that can be read: a training may be writing the newest right now."""
    reasons = []
    for file in files:
        try:
            return file, load_checkpoint_to_cpu(str(file), overrides)
        except (ValueError, OSError) as error:
            reasons.append(str(error))
    raise RefusalError(reasons[0])
