"""What bench_layer.py measures of a layer, and what the table of README.md beside it asks of it."""

from dataclasses import dataclass
from typing import List, Tuple

from contestants import BASELINE, DENSE, PYPI, SPARSE, Work
from measure import figure, median_ratio

KINDS = ("forward", "step")


@dataclass
class Result:
    """What was measured of one layer: the seconds of each round, and bytes."""

    forward: List[float]
    step: List[float]
    step_bytes: int
    table_bytes: int
    dtype: str

    def times_faster(self, other):
        return {kind: median_ratio(getattr(other, kind), getattr(self, kind)) for kind in KINDS}


@dataclass(frozen=True)
class Target:
    """A figure that is to be reached. An entry, (layer, work), is measured against ``base``.

    ``kind`` forward or step compares times, memory the bytes of a step with those of the table.
    """

    what: str
    bound: str
    value: float
    kind: str
    entries: Tuple[Tuple[str, Work], ...]
    base: Tuple[str, Work]

    def group(self, layers):
        """Returns the entries to measure in turn: every layer, where the work is one."""
        entries = [*self.entries, self.base]
        if len({work for _, work in entries}) == 1:
            return tuple((layer, self.base[1]) for layer in layers)
        return tuple(entry for entry in entries if entry[0] in layers)

    def figures(self, results):
        """Returns the target beside what was measured, for each of its entries."""
        return [
            figure(f"{self.what} ({entry[0]})", self.bound, self.value, self._of(entry, results))
            for entry in self.entries
        ]

    def _of(self, entry, results):
        if entry not in results or self.base not in results:
            return None
        result, base = results[entry], results[self.base]
        if self.kind == "memory":
            return result.step_bytes / result.table_bytes
        return base.times_faster(result)[self.kind]


BASE = Work(tokens=2048, dim=768, subkeys=512)
MILLION = Work(tokens=256, dim=256, subkeys=1024)
LARGEST, SMALLEST = (Work(tokens=256, dim=64, subkeys=subkeys) for subkeys in (2048, 256))
STOCK = ((BASELINE, BASE), (PYPI, BASE))
TARGETS = (
    Target(
        "forward, 2,048 tokens, dim 768, 512² slots: time against that of ours, dense",
        *("at least", 1.8, "forward", STOCK, (DENSE, BASE)),
    ),
    Target(
        "step, the same",
        *("at least", 4.5, "step", STOCK, (DENSE, BASE)),
    ),
    Target(
        "step, the same: time against that of ours, sparse",
        *("at least", 4.5, "step", STOCK, (SPARSE, BASE)),
    ),
    Target(
        "step, 256 tokens, dim 256, 1,024² slots: time against that of ours, sparse",
        *("at least", 35, "step", ((BASELINE, MILLION),), (SPARSE, MILLION)),
    ),
    Target(
        "step, 256 tokens, dim 64: time at 2,048² slots against that at 256²",
        *("at most", 1.5, "step", ((SPARSE, LARGEST),), (SPARSE, SMALLEST)),
    ),
    Target(
        "step, 256 tokens, dim 64, 2,048² slots: peak memory against the table's",
        *("at most", 0.15, "memory", ((SPARSE, LARGEST),), (SPARSE, LARGEST)),
    ),
)
