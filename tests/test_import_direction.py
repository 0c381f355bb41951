"""Each room of the package imports only the rooms below it."""

import ast
from pathlib import Path

import pytest

import pkm_fairseq

ROOT = Path(pkm_fairseq.__file__).parent
# room -> what it may import of pkm_fairseq, beside refusals, which all may. A new room enters here.
ALLOWED = {
    "refusals": set(),
    "files": set(),
    "fairseq_fixes": set(),
    "config": set(),
    "distributed": set(),
    "ops": set(),
    "text": set(),
    "checkpoints": set(),
    "usage": {"distributed"},
    "modules": {"checkpoints", "config", "distributed", "ops"},
    "optim": {"config", "distributed", "ops"},
    "models": {"checkpoints", "config", "distributed", "modules", "ops", "text"},
    "criterions": {"config"},
    "usage.report": {"files", "models", "text", "usage"},
    "finetuning": {"files", "usage"},
    "task_data": {"files", "text"},
    "tasks": {"config", "distributed", "fairseq_fixes", "finetuning", "task_data", "text", "usage"},
    "huggingface": {"checkpoints", "config", "models", "text"},
}
EVERYTHING = {"", "__main__", "commands"}
FAIRSEQ_FREE = {"distributed", "files", "ops", "refusals", "usage"}


def room_of(parts):
    """Returns the room of a module, by the parts of its name within the package."""
    if parts[:2] == ("usage", "report"):
        return "usage.report"
    return parts[0] if parts else ""


def rooms():
    """Yields each file of the package and its room."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, room_of(tuple(part for part in parts if part != "__init__"))


def imported_modules(path):
    """Returns the absolute name of everything that ``path`` imports."""
    package = ("pkm_fairseq", *path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize(("path", "room"), rooms(), ids=lambda part: str(part).split("/")[-1])
def test_a_room_imports_only_what_is_below_it(path, room):
    for name in imported_modules(path):
        package, *parts = name.split(".")
        if package == "fairseq":
            assert room not in FAIRSEQ_FREE, f"{room} imports {name}"
        if package == "pkm_fairseq" and room not in EVERYTHING:
            other = room_of(tuple(parts))
            assert other in {room, *ALLOWED[room], "refusals"}, f"{room} imports {name}"


def test_every_room_is_entered():
    assert {room for _, room in rooms()} == ALLOWED.keys() | EVERYTHING


def test_no_room_is_below_itself():
    order = list(ALLOWED)
    for room, below in ALLOWED.items():
        assert all(order.index(other) < order.index(room) for other in below), room
