"""The check of a GPU machine: its wheels, and its parts on the CPU."""

import json
import subprocess
import sys
from zipfile import ZipFile

import pytest
import torch

from tests.commands.commands import ROOT

WHEEL = "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def bench(monkeypatch):
    """Imports a file of the benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts/bench"))
    return lambda name: __import__(name)


def make_wheel(folder, name, requires=(), **files):
    """Writes a wheel with a module of one line, and more files."""
    info = f"{name}-1.dist-info"
    needs = "".join(f"Requires-Dist: {other}\n" for other in requires)
    files = {
        f"{name}/__init__.py": "there = True\n",
        **{f"{name}/{path}": text for path, text in files.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{needs}",
        f"{info}/WHEEL": WHEEL,
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    with ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Has pip know of three packages alone: one needs torch, one stands for fairseq."""
    folder = tmp_path / "index"
    folder.mkdir()
    make_wheel(folder, "tiny_need", requires=["torch"])
    make_wheel(folder, "torch")
    make_wheel(folder, "tiny_fairseq", requires=["never_gathered"], large="left out")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


def test_what_is_gathered_is_installed_beside_what_is_there(bench, index, tmp_path, monkeypatch):
    wheels, check = bench("gpu_wheels"), bench("gpu_check")
    monkeypatch.setattr(wheels, "REQUIREMENTS", ["tiny-need"])
    monkeypatch.setattr(wheels, "BUILD", ["tiny-need"])
    monkeypatch.setattr(wheels, "FAIRSEQ", "tiny-fairseq==1")
    monkeypatch.setattr(wheels, "LEFT_OUT", ["tiny_fairseq/large"])
    gathered, env = tmp_path / "gathered", tmp_path / "env"
    check.main(["--gather", str(gathered)])
    names = {path.name.split("-")[0] for path in gathered.glob("*.whl")}
    assert names == {"tiny_need", "tiny_fairseq"}
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert wheels.refusal(gathered) is None
    wheels.install(gathered, env)
    code = (
        "import tiny_need, tiny_fairseq, torch, pkm_fairseq.ops, pathlib; print(torch.__version__);"
        "print([path.name for path in pathlib.Path(tiny_fairseq.__file__).parent.glob('l*')])"
    )
    printed = subprocess.check_output([env / "bin/python", "-c", code], text=True, cwd=tmp_path)
    assert printed.splitlines()[-2:] == [torch.__version__, "[]"]


def test_wheels_for_another_python_are_refused(bench, tmp_path):
    check = bench("gpu_check")
    options = ["--wheels", str(tmp_path), "--device", "cpu"]
    with pytest.raises(SystemExit, match="has no wheels: fill it with --gather"):
        check.main(options)
    (tmp_path / "gathered.json").write_text('{"python": "2.7", "machine": "pdp11"}')
    here = "{}.{}".format(*sys.version_info)
    with pytest.raises(SystemExit, match=rf"for Python 2.7 on pdp11.* --python python{here}$"):
        check.main(options)
    with pytest.raises(SystemExit, match="--python python0.1 is not installed here"):
        check.main(["--gather", str(tmp_path), "--python", "python0.1"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_at_once(bench, tmp_path):
    with pytest.raises(SystemExit, match="finds no GPU: --device cpu tries the check without"):
        bench("gpu_check").main(["--dest", str(tmp_path / "results")])
    assert not list(tmp_path.iterdir())


def test_the_parts_fit_into_seven_minutes(bench):
    check = bench("gpu_check")
    assert sum(check.LIMITS.values()) <= check.MOST_SECONDS == 420


def test_a_part_that_fails_or_is_late_does_not_stop_the_next(bench, tmp_path, monkeypatch):
    check = bench("gpu_check")
    monkeypatch.setattr(check, "MOST_SECONDS", 3000)
    small = {**check.SMALL, "layer": "--nonsense"}
    monkeypatch.setattr(check, "SMALL", small)
    monkeypatch.setattr(check, "LIMITS", {**dict.fromkeys(check.LIMITS, 500), "ops": 0.2})
    options = ["--device", "cpu", "--tests", "tests/ops/test_gpu.py", "--dest", str(tmp_path)]
    with pytest.raises(SystemExit) as exit:
        check.main(options)
    assert exit.value.code == 1
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {name: part["outcome"] for name, part in record["parts"].items()} == {
        "tests of the ops": "passed",
        "tests of every precision": "passed",
        "ops": "stopped after 0 s",
        "tiles": "passed",
        "layer": "failed",
        "models": "passed",
    }
    assert "unrecognized arguments: --nonsense" in record["parts"]["layer"]["printed"]
    tiles = record["parts"]["tiles"]["results"]["tiles"]["results"]
    assert {tile["constant"] for tile in tiles} == {"TILE", "PIECE", "QUERIES", "MOST_SUBKEYS"}
    assert all(tile["times_faster"] > 0 for tile in tiles)
    figures = record["parts"]["models"]["results"]["figures"]["figures"]
    assert all(row["measured"] > 0 for row in figures)
    assert "== layer" in (tmp_path / "gpu_check.log").read_text()
