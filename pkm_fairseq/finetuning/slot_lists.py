"""Lists of slots to train: how slots are ranked, and the file of a list; pure functions.

S slots of a table, R of them listed. A table goes by the layers whose memories read it: one layer,
or several with ``--pkm-share-values``.
"""

import hashlib
import json

import torch

from pkm_fairseq.files import atomic_write
from pkm_fairseq.refusals import RefusalError


def tf_idf(accesses, batches_with, batches):
    """Scores slots by how much more the new data access them than a background does.

    A slot's share of all accesses on the new data, times log((B + 1) / (B_s + 1)), where B_s of the
    B batches of the background access the slot: 0 for a slot that the new data never access, or
    that every batch of the background does.

    Args:
        accesses: how often the new data access each slot, (S,).
        batches_with: how many batches of the background do at least once, (S,).
        batches: how many batches of the background there are.

    Returns:
        The scores, (S,), float64.

    Source: Lin et al. 2025 (arXiv 2510.15103), "Sparse memory finetuning". They score each batch
    of the new data by itself, as it is trained on; here the new data count as a whole, beforehand.
    """
    share = accesses.double() / accesses.sum().clamp(min=1)
    return share * ((batches + 1) / (batches_with.double() + 1)).log()


def best_slots(scores, count):
    """Returns the slots with the ``count`` best scores, (S,), above 0, ascending.

    Of equal scores the lowest slots count.
    """
    best = scores.sort(descending=True, stable=True).indices[:count]
    return best[scores[best] > 0].sort().values


def write_slots(path, tables, sizes, **origin):
    """Writes a list of slots as JSON.

    Args:
        path: where to.
        tables: a dict from the layers that read a table to its slots, (R,).
        sizes: a dict from the same layers to number of slots.
        origin: what else to write down, as JSON can hold it.
    """
    lists = [
        {"layers": list(layers), "slots_total": sizes[layers], "slots": slots.tolist()}
        for layers, slots in tables.items()
    ]
    atomic_write(path, json.dumps({"pkm_slots": lists, **origin}) + "\n")


def read_slots(path, sizes):
    """Reads a list of slots.

    Args:
        path: its file.
        sizes: the tables of the model: a dict from layers to number of slots.

    Returns:
        A dict from the same layers to slots, (R,), int64, ascending.

    Raises:
        RefusalError: if the file is no list of slots of these tables.
    """
    try:
        with open(path) as file:
            lists = json.load(file)["pkm_slots"]
        found = {tuple(of["layers"]): (of["slots_total"], of["slots"]) for of in lists}
    except OSError as error:
        raise RefusalError(f"cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RefusalError("is no list of slots: make one with pkm-fairseq slots") from error
    if len(found) < len(lists):
        raise RefusalError("lists the same layers twice")
    if found.keys() != sizes.keys():
        theirs, ours = (_name(tables) for tables in (found, sizes))
        raise RefusalError(f"lists slots of {theirs}, but the model's memories are of {ours}")
    return {layers: _check(layers, *found[layers], sizes[layers]) for layers in sizes}


def digest(tables):
    """Returns a short text that tells lists apart, which are as ``read_slots`` returns them."""
    text = json.dumps([[layers, slots.tolist()] for layers, slots in sorted(tables.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(layers, theirs, slots, ours):
    """Returns the slots of a table, (R,), or refuses them."""
    where = _name([layers])
    if theirs != ours:
        raise RefusalError(f"is for a memory of {theirs} slots at {where}, which has {ours}")
    if not slots or not isinstance(slots, list):
        raise RefusalError(f"lists no slots of {where}")
    if any(type(slot) is not int or not 0 <= slot < ours for slot in slots):
        raise RefusalError(
            f"lists what is no slot at {where}: they are numbers from 0 to {ours - 1}"
        )
    if len(set(slots)) < len(slots):
        raise RefusalError(f"lists a slot of {where} twice")
    return torch.tensor(sorted(slots))


def _name(tables):
    """Writes the layers of tables, those that share one joined."""
    return " and ".join("layer " + "+".join(map(str, layers)) for layers in tables) or "no layer"
