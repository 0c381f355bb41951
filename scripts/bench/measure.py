"""What the benchmarks share: works timed in turn, peak memory, figures, the record of a run."""

import argparse
import ctypes
import gc
import json
import platform
import resource
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Many times what a GPU's cache holds.
CLEARED_BYTES = 2**30
# Below it, all numbers are rounding: a bias before a BatchNorm has no gradient.
FLOOR = 1e-2
PACKAGES = ("torch", "numpy", "numba", "triton", "fairseq", "fairseq-fixed", "product-key-memory")


def make_parser(description, numbers):
    """Returns a parser of a benchmark's numbers; a list among the defaults stands for several."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in numbers.items():
        several = {"nargs": "+"} if isinstance(default, list) else {}
        text = f"(default: {default})"
        parser.add_argument(f"--{name}", type=int, default=default, help=text, **several)
    return parser


def add_machine(parser):
    """Adds the options of where a benchmark runs, in which dtype, and where it writes to."""
    threads = torch.get_num_threads()
    parser.add_argument("--threads", type=int, default=threads, help=f"(default: {threads})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: float32)")
    parser.add_argument("--json", help="file to write the results to")


def interleaved(works, repeats, device="cpu", before_round=None):
    """Times every work once in each round, so that a noisy moment meets all of them.

    A work runs twice in its turn, and the second time counts: what it needs is at hand then, as in
    a training, where nothing else runs in between. Every other round goes backwards.

    Args:
        works: functions without arguments, by name.
        repeats: number of rounds.
        device: what the works run on.
        before_round: called with the number of each round before it, outside what is timed.

    Returns:
        The seconds of each work, by name, one for each round.
    """
    seconds = {name: [] for name in works}
    for number in tqdm(range(repeats), leave=False):
        if before_round:
            before_round(number)
        for name in [*works][:: -1 if number % 2 else 1]:
            works[name]()
            seconds[name].append(timed(works[name], device))
    return seconds


def timed(work, device="cpu"):
    """Returns the seconds that a work takes; on a GPU, from when the GPU begins it."""
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # This empties the cache of the GPU, and keeps it busy while Python starts the work.
    torch.empty(CLEARED_BYTES, dtype=torch.int8, device=device).zero_()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def compare(what, result, other, tolerance):
    """Refuses a result that differs from another, beyond the tolerance times its largest number.

    Raises:
        ValueError: if so, beginning with ``what``.
    """
    if result.shape != other.shape:
        raise ValueError(f"{what}, by shape: {tuple(result.shape)} and {tuple(other.shape)}")
    largest = other.abs().max().item()
    difference = (result.to(torch.float32) - other.to(torch.float32)).abs().max().item()
    exact = not other.is_floating_point()
    if not (torch.equal(result, other) if exact else difference <= tolerance * max(largest, FLOOR)):
        raise ValueError(f"{what}, by {difference:.1e} where the largest number is {largest:.1e}")


def figure(what, bound, value, measured):
    """Returns a figure that is to be reached beside what was measured, None for nothing.

    Args:
        what: what is measured.
        bound: "at least" or "at most".
        value: the figure.
        measured: the same, measured.
    """
    sign = 1 if bound == "at least" else -1
    return {
        "what": what,
        "figure": f"{bound} {value:g}",
        "measured": measured,
        "reached": None if measured is None else sign * measured >= sign * value,
    }


def print_figures(figures):
    """Prints a line for each figure: target, measured, and whether it was reached."""
    for row in figures:
        print(f"{row['what']}: {row['figure']}, ", end="")
        if row["measured"] is None:
            print("not measured")
        else:
            print(f"measured {row['measured']:.3g}: {'reached' if row['reached'] else 'MISSED'}")


def quartiles_ms(seconds):
    """Returns the quartiles, in milliseconds; the second is the median."""
    if len(seconds) == 1:
        return [1000 * seconds[0]] * 3
    return [1000 * q for q in statistics.quantiles(seconds, n=4, method="inclusive")]


def median_ratio(seconds, others):
    """Returns the median of ``seconds / others``, round by round."""
    return statistics.median(a / b for a, b in zip(seconds, others))


class Memory:
    """Bytes in use on a device: resident in this process on the CPU, allocated on a GPU."""

    def __init__(self, device="cpu"):
        self.cuda = torch.device(device).type == "cuda"

    def now(self):
        """Returns the bytes in use, what waits to be freed left out."""
        gc.collect()
        if self.cuda:
            return torch.cuda.memory_allocated()
        if platform.system() == "Linux":
            ctypes.CDLL(None).malloc_trim(0)
        return self._status("VmRSS")

    def reset_peak(self):
        """Starts a new peak from here, where the system can."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self):
        """Returns the greatest number of bytes in use since ``reset_peak``."""
        return torch.cuda.max_memory_allocated() if self.cuda else self._status("VmHWM")

    def available(self):
        """Returns the bytes that can still be had."""
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            return torch.cuda.mem_get_info()[0]
        return self._kib(Path("/proc/meminfo"), "MemAvailable")

    def _status(self, field):
        return self._kib(Path("/proc/self/status"), field)

    @staticmethod
    def _kib(path, field):
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return 1024 * int(lines[field].split()[0])


def write_json(path, args, **results):
    """Writes what a run measured, with its options, its machine, its versions and its commit."""
    record = {"args": vars(args), "machine": describe_machine(vars(args).get("device")), **results}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def describe_machine(device=None):
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cuda = torch.device(device or "cpu").type == "cuda" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
        "peak_resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "versions": versions,
        "commit": commit(),
    }


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def commit():
    """Returns the commit that was measured, marked if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None
