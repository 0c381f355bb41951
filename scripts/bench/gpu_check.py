"""Checks the GPU kernels: one run of seven minutes at most, one JSON, one log.

Runs the tests of the ops and those of every precision on the GPU, then bench_gpu.py, with the tiles
in use and with others. Each part has a limit of its own, and whatever becomes of it the next one
runs; the JSON is written anew after each.

A machine that has torch and triton for its GPU, but no fairseq and no network, needs wheels that
were gathered beforehand on a machine with a network:

    bash scripts/bench/gpu_check.sh --gather wheels --python python3.12
    bash scripts/bench/gpu_check.sh --wheels wheels --dest results          # on the GPU machine
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpu_wheels

BENCH = Path(__file__).parent
ROOT = BENCH.parents[1]
MOST_SECONDS = 420
TAIL = 3000  # characters of what a part printed
# Seconds that each part may take.
LIMITS = {
    "install": 90,
    "tests of the ops": 100,
    "tests of every precision": 60,
    "ops": 45,
    "tiles": 45,
    "layer": 40,
    "models": 40,
}
# What shows on a CPU that all of it runs: triton's interpreter is slow.
SMALL_OPS = "--topk 4 --heads 2 --dim 8 --key-dim 6 --tokens 6 --subkeys 8 --repeats 1"
SMALL = {
    "ops": SMALL_OPS,
    "tiles": SMALL_OPS,
    "layer": SMALL_OPS,
    "models": "--batch 2 --length 8 --vocabulary 30 --repeats 1 --set encoder_layers=9 "
    "encoder_embed_dim=16 encoder_ffn_embed_dim=16 encoder_attention_heads=2 pkm_subkeys=8 "
    "pkm_topk=4 pkm_key_dim=8",
}


def main(argv=None):
    """Gathers or checks, as the options say; exits with 1 if a part did not pass."""
    args = parse_args(argv)
    if args.gather:
        python = shutil.which(args.python)
        if python is None:
            raise SystemExit(f"--python {args.python} is not installed here: give another")
        gpu_wheels.gather(args.gather, python, args.without)
        return
    refuse(args)
    args.dest.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        parts = Check(args, Path(scratch)).run()
    if any(part["outcome"] != "passed" for part in parts.values()):
        raise SystemExit(1)


def refuse(args):
    """Exits with a line if the check cannot run here."""
    reason = args.wheels and gpu_wheels.refusal(args.wheels)
    if not reason and args.device == "cuda":
        asked = "import torch; raise SystemExit(not torch.cuda.is_available())"
        if subprocess.run([sys.executable, "-c", asked], capture_output=True).returncode:
            reason = f"torch of {sys.executable} finds no GPU: --device cpu tries the check without"
    if reason:
        raise SystemExit(reason)


class Check:
    """A run of all parts.

    Args:
        args: the options.
        scratch: a folder for what is not kept.
    """

    def __init__(self, args, scratch):
        self.args = args
        self.scratch = scratch
        self.deadline = time.monotonic() + MOST_SECONDS
        self.parts = {}

    def run(self):
        """Runs all parts, and returns their records by name."""
        python = sys.executable
        if self.args.wheels:
            env = self.scratch / "env"
            install = [python, BENCH / "gpu_wheels.py", self.args.wheels, env]
            if self._run_part("install", install) == "passed":
                python = env / "bin/python"
        processes = min(8, os.cpu_count()) if self.args.device == "cuda" else 0
        pytest = [python, "-m", "pytest", "-n", processes]
        self._run_part("tests of the ops", [*pytest, *self.args.tests])
        precision = ["tests/commands/test_precision.py", "-m", "gpu"]
        self._run_part("tests of every precision", [*pytest, *precision])
        for name, small in SMALL.items():
            self._run_benchmark(python, name, small)
        return self.parts

    def _run_benchmark(self, python, name, small):
        results = self.scratch / name
        command = [python, BENCH / "bench_gpu.py", "--only", name, "--dest", results]
        env = {}
        if self.args.device == "cpu":
            command += ["--device", "cpu", f"--{name}={small}"]
            env = {"TRITON_INTERPRET": "1"} if name in ("ops", "tiles") else {}
        self._run_part(name, command, results, **env)

    def _run_part(self, name, command, results=None, **env):
        """Runs a command within its limit, and keeps what it printed and wrote."""
        start = time.monotonic()
        limit = max(0, min(LIMITS[name], self.deadline - start))
        printed = self.scratch / "printed"
        with printed.open("wb") as output:
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                outcome = "failed" if process.wait(limit) else "passed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                outcome = f"stopped after {limit:.0f} s"
        text = printed.read_text(errors="replace")
        self.parts[name] = {
            "command": " ".join(map(str, command)),
            "outcome": outcome,
            "seconds": time.monotonic() - start,
            "printed": text[-TAIL:],
            "results": {
                path.stem: json.loads(path.read_text())
                for path in sorted(results.glob("*.json") if results else [])
            },
        }
        print(f"== {name}: {outcome}, {time.monotonic() - start:.0f} s\n{text[-TAIL:]}", flush=True)
        with self.args.dest.joinpath("gpu_check.log").open("a") as log:
            log.write(f"== {name}\n{text}\n")
        record = {"device": self.args.device, "parts": self.parts}
        self.args.dest.joinpath("gpu_check.json").write_text(json.dumps(record, indent=2) + "\n")
        return outcome


def folder(text):
    return Path(text).resolve()


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gather", type=Path, metavar="DIR", help="fill DIR with wheels, and check nothing")
    add("--python", default=sys.executable, help="interpreter of the version of the GPU machine's")
    add(
        "--without", nargs="*", default=[], help="packages that the GPU machine has, to gather less"
    )
    add(
        "--wheels", type=Path, metavar="DIR", help="what --gather filled (default: nothing missing)"
    )
    add("--dest", type=Path, default=Path("runs/gpu_check"), help="(default: runs/gpu_check)")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try it, on small sizes")
    add("--tests", nargs="+", default=["tests/ops"], help="tests of the ops (default: tests/ops)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
