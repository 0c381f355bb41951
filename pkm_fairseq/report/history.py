"""Reads figures over training from TensorBoard's files."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_history(logdir, subset):
    """Returns what fairseq logged for TensorBoard at each validation.

    Args:
        logdir: fairseq's --tensorboard-logdir, or None.
        subset: name of the validation set.

    Returns:
        A dict from name to a list of (updates, value); empty if nothing was logged.
    """
    if logdir is None or not (logdir / subset).is_dir():
        return {}
    events = EventAccumulator(str(logdir / subset)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
