"""Reads figures over training from TensorBoard's files."""

from math import inf

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_history(logdir, subset, updates):
    """Returns what fairseq logged for TensorBoard at each validation.

    Args:
        logdir: fairseq's --tensorboard-logdir, or None.
        subset: name of the validation set.
        updates: up to where, None for all.

    Returns:
        A dict from name to a list of (updates, value); empty if nothing was logged.
    """
    if logdir is None or not (logdir / subset).is_dir():
        return {}
    last = inf if updates is None else updates
    events = EventAccumulator(str(logdir / subset)).Reload()
    history = {}
    for name in events.Tags()["scalars"]:
        # A resumed run logs again what came after its checkpoint: the last entry counts.
        entries = {event.step: event.value for event in events.Scalars(name)}
        history[name] = [entry for entry in sorted(entries.items()) if entry[0] <= last]
    return history
