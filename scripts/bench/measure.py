"""What the benchmarks share: works timed in turn, peak memory, and the record of a run."""

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
PACKAGES = ("torch", "numpy", "numba", "triton", "fairseq", "fairseq-fixed", "product-key-memory")


def in_turn(works, repeats, device="cpu", before_round=None):
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
    """Returns the seconds that a work takes."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


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
    cuda = torch.device(device or "cpu").type == "cuda"
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
