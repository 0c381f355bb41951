"""Runs steps that are not done, beside other processes that do the same."""

import fcntl
import json
import os
import re
import subprocess
import time
from collections import defaultdict
from contextlib import contextmanager

from steps import ROOT

from pkm_fairseq.files import atomic_write

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_LINES = 30
SECONDS_OF_WAITING = 5
TRIES = 2  # now and then a process that is done with its work fails to end


class Runner:
    """Runs steps, each once, and says how far it is.

    A step has a folder in DEST, with its ``log`` and, once it is done, ``done.json``: its command,
    its seconds, and the commit and the machine it ran on. While it runs its ``lock`` is held, by
    its own process too: who starts again after a kill waits for what the kill has left running.

    Args:
        dest: DEST.
        steps: a list of ``Step``, each after those it needs.
        publish: turns a command into what others can read.
        describe_machine: returns a record of the machine and the commit.

    Raises:
        ValueError: if a step was done by another command than now.
    """

    def __init__(self, dest, steps, publish, describe_machine):
        self.dest, self.steps = dest, {step.name: step for step in steps}
        self._publish, self._describe_machine = publish, describe_machine
        self._failed = {}
        for step in steps:
            done = self.done(step.name)
            if done and not step.may_change and done["command"] != publish(step.command):
                raise ValueError(
                    f"{dest / step.name} was made by another command, {done['command']}: remove "
                    f"it, or choose another --dest"
                )

    def done(self, name):
        """Returns the record of a step that is done, else None."""
        path = self.dest / name / "done.json"
        record = json.loads(path.read_text()) if path.exists() else None
        step = self.steps.get(name)
        if record and step and step.may_change and record["command"] != self._publish(step.command):
            return None
        return record

    def run(self):
        """Runs what is missing, and waits for what another process is running.

        Returns:
            by name, the last line of each step that failed, and that of those that need one.
        """
        waiting = False
        while missing := [step for step in self.steps.values() if self._to_do(step)]:
            ready = (step for step in missing if all(map(self.done, step.needs)))
            if any(map(self._run_alone, ready)):
                waiting = False
                continue
            if not waiting:
                _say(f"{self._how_far()}; waiting for the process that runs what comes first")
            waiting = True
            time.sleep(SECONDS_OF_WAITING)
        return self._failed

    def _to_do(self, step):
        """Tells whether a step is neither done nor failed, nor needs one that has failed."""
        needed = (name in self._failed for name in step.needs)
        if step.name not in self._failed and any(needed):
            self._failed[step.name] = "a step before it failed"
        return step.name not in self._failed and not self.done(step.name)

    def _run_alone(self, step):
        """Runs a step, or returns False if another process has taken it."""
        folder = self.dest / step.name
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / "lock") as lock:
            if lock is None:
                return False
            for _ in range(TRIES):
                if not self.done(step.name):
                    self._run(step, folder, lock)
        return True

    def _run(self, step, folder, lock):
        _say(f"{step.name}: {step.kind}; {self._how_far()}")
        record = {"command": self._publish(step.command), "machine": self._describe_machine()}
        start = time.monotonic()
        with open(folder / "log", "ab") as log:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
            )
            try:
                self._watch(process, step, folder / "log")
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if process.returncode:
            self._failed[step.name] = _last_line(folder / "log")
            _say(f"{step.name} failed: {self._failed[step.name]} (see {folder / 'log'})")
            return
        self._failed.pop(step.name, None)
        record["seconds"] = time.monotonic() - start
        atomic_write(folder / "done.json", json.dumps(record, indent=1))

    def _watch(self, process, step, log):
        """Waits for a process, and says now and then how far it is."""
        said = start = time.monotonic()
        while process.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                progress = _progress(log)
                _say(f"{step.name}: {progress}; {self._how_far(step, said - start)}")

    def _how_far(self, running=None, seconds=0.0):
        """Says how many steps are left, and how long they take if each is as fast as its kind."""
        spent, work = defaultdict(float), defaultdict(float)
        missing = []
        for step in self.steps.values():
            if done := self.done(step.name):
                spent[step.kind] += done["seconds"]
                work[step.kind] += step.work
            else:
                missing.append(step)
        left = sum(
            spent[step.kind] / work[step.kind] * step.work for step in missing if work[step.kind]
        )
        if running and work[running.kind]:
            left -= min(seconds, spent[running.kind] / work[running.kind] * running.work)
        known = all(work[step.kind] for step in missing)
        minutes = f"{'' if known else 'more than '}{left / 60:.0f} min"
        return f"{len(missing)} of {len(self.steps)} steps left, {minutes}"


@contextmanager
def _lock(path):
    """Yields an open file that is locked, or None if another process holds it."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def _progress(log):
    """Returns the updates and the loss that a training has last logged."""
    text = _tail(log)
    updates = re.findall(r'"num_updates": "(\d+)"', text)
    losses = re.findall(r'"(?:train_)?loss": "([\d.]+)"', text)
    return f"update {updates[-1]}, loss {losses[-1]}" if updates and losses else "at work"


def _last_line(log):
    lines = _tail(log).split("\n")
    return next((line.strip() for line in lines[::-1] if line.strip()), "no output")


def _tail(path, size=20_000):
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace").replace("\r", "\n")


def _say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
