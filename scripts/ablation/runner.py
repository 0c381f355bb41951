"""Runs steps that are not done, beside other processes that do the same."""

import fcntl
import json
import os
import shlex
import subprocess
import time

from steps import ROOT

from pkm_fairseq.files import atomic_write

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
        describe_machine: returns a record of the machine and the commit.
        names: what stands for paths of this machine in ``done.json``, by path.

    Raises:
        ValueError: if a step was done by another command than now.
    """

    def __init__(self, dest, steps, describe_machine, names):
        self.dest, self.steps, self.names = dest, steps, names
        self._describe_machine = describe_machine
        self.failed = []
        for step in steps:
            done = self.done(step.name)
            if not done or done["command"] == self._publish(step.command):
                continue
            if not step.may_change:
                raise ValueError(
                    f"{dest / step.name} was made by another command, {done['command']}: remove "
                    f"it, or choose another --dest"
                )
            (dest / step.name / "done.json").unlink()

    def done(self, name):
        """Returns the record of a step that is done, else None."""
        path = self.dest / name / "done.json"
        return json.loads(path.read_text()) if path.exists() else None

    def run(self):
        """Runs what is missing, and waits for what another process is running.

        Returns:
            the names of the steps that failed, and of those that need one.
        """
        waiting = False
        while missing := [step for step in self.steps if self._to_do(step)]:
            ready = (step for step in missing if all(map(self.done, step.needs)))
            if any(map(self._run_alone, ready)):
                waiting = False
                continue
            if not waiting:
                _say(f"{len(missing)} steps left: waiting for the process that runs the next")
            waiting = True
            time.sleep(SECONDS_OF_WAITING)
        return self.failed

    def _to_do(self, step):
        """Tells whether a step is neither done nor failed, nor needs one that has failed."""
        if step.name not in self.failed and any(name in self.failed for name in step.needs):
            self.failed.append(step.name)
        return step.name not in self.failed and not self.done(step.name)

    def _run_alone(self, step):
        """Runs a step, or returns False if another process has taken it."""
        folder = self.dest / step.name
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            left = TRIES
            while left and not self.done(step.name):
                self._run(step, folder, lock)
                left -= 1
        if not self.done(step.name):
            self.failed.append(step.name)
        return True

    def _run(self, step, folder, lock):
        left = sum(not self.done(other.name) for other in self.steps)
        _say(f"{step.name}: {step.kind}; {left} of {len(self.steps)} steps left")
        record = {"command": self._publish(step.command), "machine": self._describe_machine()}
        start = time.monotonic()
        with open(folder / "log", "ab") as log:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
            )
            try:
                while not _ends(process):
                    _say(f"{step.name}: {_last_line(folder / 'log')[:150]}")
            finally:
                process.terminate()
                process.wait()
        if process.returncode:
            _say(f"{step.name} failed: {_last_line(folder / 'log')} (see {folder / 'log'})")
            return
        record["seconds"] = time.monotonic() - start
        atomic_write(folder / "done.json", json.dumps(record, indent=1))

    def _publish(self, command):
        """Returns a command line with this machine's paths by their names."""
        text = shlex.join(command)
        for path, name in self.names.items():
            text = text.replace(path, name)
        return text


def _ends(process):
    """Waits for a process; returns whether it has ended."""
    try:
        process.wait(SECONDS_BETWEEN_LINES)
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_line(log):
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in lines[::-1] if line.strip()), "no output")


def _say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
