"""How far values have moved: what tells a slot that has learned from one that was only read.

R slots looked at, V width of a value.
"""

import torch

SLOTS = 4096  # looked at of each table, spread over it
OF_NOTE = 0.1  # of the length that a value is drawn with, which is 1


class Moved:
    """Compares values with those that a run began with.

    It looks at some slots of each table, which costs the same for tables of any size.
    """

    def __init__(self):
        self._start = {}  # layer -> values, (R, V)
        self.begin_set()

    def begin_run(self, memories, again=False):
        """Takes the values as they are for those that the run begins with; as ``compare``.

        Args:
            memories: by layer.
            again: whether to do so if it has been done before.
        """
        if again or not self._start:
            self._start = {layer: _some_values(memory) for layer, memory in memories.items()}

    def begin_set(self):
        """Forgets the values of the validation before."""
        self._tables = {}  # layer -> what names its table
        self._values = {}  # layer -> as _start

    def compare(self, memories):
        """Takes the values for those of this validation.

        Args:
            memories: by layer. All workers have to call this together, in case they split tables.
        """
        if not self._values:
            self._tables = {layer: id(memory.values) for layer, memory in memories.items()}
            self._values = {layer: _some_values(memory) for layer, memory in memories.items()}

    def figures(self):
        """Returns the figures of the set by name, of all tables together and of each memory's.

        ``pkm_value_norm`` is the root of the mean squared length of values, ``pkm_moved`` that of
        how far they have moved, and ``pkm_moved_slots`` the share that moved a distance of note.
        """
        lengths = {layer: values.norm(dim=1) for layer, values in self._values.items()}  # (R,) each
        moved = {
            layer: (values - self._start[layer]).norm(dim=1)
            for layer, values in self._values.items()
            if layer in self._start and self._start[layer].shape == values.shape
        }
        of_tables = {table: layer for layer, table in self._tables.items()}
        scopes = {"": list(of_tables.values()), **{f"l{layer}_": [layer] for layer in lengths}}
        figures = {}
        for scope, layers in scopes.items() if lengths else ():
            of_scope = torch.cat([lengths[layer] for layer in layers])
            figures[f"pkm_{scope}value_norm"] = _root_mean_square(of_scope)
            if all(layer in moved for layer in layers):
                of_scope = torch.cat([moved[layer] for layer in layers])
                figures[f"pkm_{scope}moved"] = _root_mean_square(of_scope)
                figures[f"pkm_{scope}moved_slots"] = (of_scope > OF_NOTE).double().mean().item()
        return figures


@torch.no_grad()
def _some_values(memory):
    """Returns the values of some slots of a memory, (R, V), without waiting for the device."""
    weight = memory.values.weight
    last = len(weight) - 1
    slots = torch.linspace(0, last, min(SLOTS, last + 1), dtype=torch.float64, device=weight.device)
    slots = slots.round().long().unsqueeze(1)
    # As a memory reads them: whole, wherever they are, and whatever they are kept in.
    return memory.values(slots, torch.ones_like(slots, dtype=torch.float32)).float()  # (R, V)


def _root_mean_square(numbers):
    return numbers.double().square().mean().sqrt().item()
