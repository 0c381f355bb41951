"""Gathers what the GPU check needs beside torch and triton, and installs it without a network.

It needs no package itself: it runs where nothing but torch is installed.
"""

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

ROOT = Path(__file__).parents[2]
FAIRSEQ = "fairseq-fixed==0.12.3.1"
# What fairseq imports when RoBERTa is trained, and what the tests import.
REQUIREMENTS = [
    "bitarray",
    "hydra-core==1.3.2",
    "hypothesis",
    "omegaconf==2.3.0",
    "packaging",
    "pytest",
    "pytest-xdist",
    "regex",
    "sacrebleu",
    "scikit-learn",
    "scipy",
    "sentencepiece",
    "tqdm",
]
ALREADY_THERE = ["numpy", "setuptools", "torch", "triton"]
BUILD = ["cython", "numpy", "setuptools", "wheel"]  # what fairseq's setup.py imports
# Parts of fairseq's wheel that RoBERTa never touches, nine tenths of its size.
LEFT_OUT = ["fairseq/examples/*", "fairseq/libbase*", "fairseq/libnat*", "alignment_train*"]
# In the place of torch: fairseq's setup.py asks it for extensions that RoBERTa never uses. Those
# that fail are left out, and no torch for the other Python is needed.
CPP_EXTENSION = """
from setuptools import Extension
from setuptools.command.build_ext import build_ext as BuildExtension


def CppExtension(name, sources):
    return Extension(name, sources, optional=True)
"""
MOST_BYTES = 64 * 2**20
RECORD = "gathered.json"


def gather(folder, python, without):
    """Fills a folder with wheels for a Python, or exits with a line that says what is missing.

    Args:
        folder: where to.
        python: an interpreter of the version that is to install them.
        without: names of packages that the GPU machine has.
    """
    target = run(python, "-c", "import sys; print('{}.{}'.format(*sys.version_info))").strip()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    requirements = [r for r in REQUIREMENTS if r.split("==")[0] not in without]
    with tempfile.TemporaryDirectory() as build:
        run(python, "-m", "venv", f"{build}/env")
        python = f"{build}/env/bin/python"
        run(python, "-m", "pip", "install", *BUILD)
        gathered = Path(build, "wheels")
        wheel = [python, "-m", "pip", "wheel", "--wheel-dir", str(gathered)]
        run(*wheel, *requirements)
        stand_in = Path(build, "torch", "utils")
        stand_in.mkdir(parents=True)
        stand_in.joinpath("cpp_extension.py").write_text(CPP_EXTENSION)
        run(*wheel, "--no-deps", "--no-build-isolation", FAIRSEQ, PYTHONPATH=build)
        for path in sorted(gathered.iterdir()):
            if name_of(path) not in [*ALREADY_THERE, *without]:
                shrink(path, folder / path.name)
    record = {"python": target, "machine": platform.machine()}
    folder.joinpath(RECORD).write_text(json.dumps(record) + "\n")
    report(folder, target)


def shrink(wheel, target):
    """Writes a wheel without what is left out."""
    with ZipFile(wheel) as whole, ZipFile(target, "w", ZIP_DEFLATED) as small:
        for name in filter(is_needed, whole.namelist()):
            content = whole.read(name)
            if name.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if is_needed(line.split(",")[0]))
            small.writestr(name, content)


def is_needed(name):
    return not any(fnmatch(name, pattern) for pattern in LEFT_OUT)


def name_of(wheel):
    return wheel.name.split("-")[0].replace("_", "-").lower()


def report(folder, target):
    wheels = sorted(folder.glob("*.whl"), key=lambda path: -path.stat().st_size)
    total = sum(path.stat().st_size for path in wheels)
    print(f"{len(wheels)} wheels for Python {target}, {total / 2**20:.0f} MiB, in {folder}")
    if total > MOST_BYTES:
        largest = ", ".join(map(name_of, wheels[:3]))
        print(
            f"more than {MOST_BYTES / 2**20:.0f} MiB: leave out with --without what the GPU "
            f"machine has; the largest are {largest}"
        )


def install(folder, env):
    """Makes an environment that has what this one has, the wheels and the repository.

    A bare ``venv --system-site-packages`` of an interpreter that lives in an environment itself
    would not see that one's packages.
    """
    run(sys.executable, "-m", "venv", "--without-pip", env)
    python = env / "bin/python"
    (site,) = env.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    paths |= {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    site.joinpath("outer.pth").write_text("\n".join([*sorted(paths), str(ROOT)]) + "\n")
    # What is there already is kept where its version will do.
    pip = [python, "-m", "pip", "install", "--no-index", f"--find-links={folder}", "--no-compile"]
    run(*pip, *REQUIREMENTS)
    run(*pip, "--no-deps", FAIRSEQ)


def refusal(folder):
    """Returns why the wheels in a folder cannot be installed here, None if they can."""
    try:
        gathered = json.loads(folder.joinpath(RECORD).read_text())
    except FileNotFoundError:
        return f"--wheels {folder} has no wheels: fill it with --gather on a machine with a network"
    here = "{}.{}".format(*sys.version_info), platform.machine()
    if (gathered["python"], gathered["machine"]) != here:
        return (
            f"the wheels in {folder} are for Python {gathered['python']} on "
            f"{gathered['machine']}, and this is {here[0]} on {here[1]}: gather them again with "
            f"--python python{here[0]}"
        )
    return None


def run(*command, **env):
    """Runs a command and returns what it printed, or exits with the end of it."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        end = (done.stdout + done.stderr).strip()[-2000:]
        raise SystemExit(f"{end}\nfailed: {' '.join(map(str, command))}")
    return done.stdout


if __name__ == "__main__":
    install(*map(Path, sys.argv[1:]))
