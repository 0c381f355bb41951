"""Each room of the package imports only the rooms below it."""

import ast
from pathlib import Path

import pytest

import pkm_fairseq

ROOT = Path(pkm_fairseq.__file__).parent
# room -> what it may import of pkm_fairseq; what is not named here may import everything.
ALLOWED = {
    "checkpoint": set(),
    "checkpoint_files": {"checkpoint_reading", "sweeps"},
    "checkpoint_reading": set(),
    "command_line": set(),
    "config": set(),
    "fairseq_fixes": set(),
    "files": set(),
    "scores": set(),
    "text": set(),
    "slot_lists": {"files"},
    "refusals": set(),
    "sweeps": set(),
    "usage": set(),
    "compiling": set(),
    "workers": set(),
    "worth": {"observe", "workers"},
    "drift": {"observe", "usage"},
    "monitor": {"drift", "moved", "observe", "usage", "workers"},
    "moved": set(),
    "observe": set(),
    "overrides": {"config", "models"},
    "pictures": {"usage"},
    "criterions": {"config"},
    "tasks": {
        *("config", "fairseq_fixes", "monitor", "pictures", "scores", "slot_lists"),
        *("workers", "worth"),
    },
    "ops": {"compiling", "workers"},
    "modules": {"checkpoint", "compiling", "config", "ops", "workers"},
    "optim": {"config", "ops", "workers"},
    "report": {
        "command_line",
        "files",
        "models",
        "monitor",
        "observe",
        "pictures",
        "text",
        "worth",
    },
    "slots": {"command_line", "observe", "report", "slot_lists"},
    "models": {"checkpoint", "checkpoint_reading", "config", "ops", "modules", "workers"},
}
FAIRSEQ_FREE = {
    *("checkpoint", "compiling", "drift", "files", "monitor", "moved", "observe", "ops"),
    *("pictures", "refusals", "scores", "slot_lists", "usage", "workers", "worth"),
}


def room_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


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


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_is_below_it(path):
    room = room_of(path)
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "fairseq":
            assert room not in FAIRSEQ_FREE, f"{room} imports {name}"
        if parts[0] == "pkm_fairseq" and parts[1] != room and room in ALLOWED:
            # Any of them may refuse something.
            assert parts[1] in {*ALLOWED[room], "refusals"}, f"{room} imports {name}"


def test_every_room_is_there():
    assert set(ALLOWED) <= {room_of(path) for path in ROOT.rglob("*.py")}
