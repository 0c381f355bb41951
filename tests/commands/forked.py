"""Starts commands in processes forked from one that has imported what all of them need.

So a command starts at once instead of after six seconds. It is the real one otherwise: its entry
point runs in a process, a session and an environment of its own, with its own output and status.
"""

import atexit
import gc
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recvfds
from pathlib import Path
from signal import SIGKILL
from threading import Thread, Timer

# Not the plugin itself: whether and when it is imported is for the command.
# The first sets up logging as all commands of fairseq do.
PRELOADED = [
    *("fairseq_cli.train", "fairseq_cli.hydra_train", "fairseq_cli.preprocess"),
    "fairseq_cli.validate",
    *("fairseq.models.roberta", "matplotlib.figure", "scipy.stats", "sentencepiece"),
    *("sklearn.metrics", "torch.utils.tensorboard"),
    "torch._dynamo",  # which the first optimizer imports
    "tests.commands.preloaded",
]
# What some of these read while they are imported.
READ_AT_IMPORT = {"TRITON_INTERPRET", "NUMBA_DISABLE_JIT"}


def _entry_points():
    for package in ("fairseq", "fairseq-fixed", "pkm_fairseq"):
        try:
            yield from distribution(package).entry_points
        except PackageNotFoundError:  # the one fairseq or the other
            continue


ENTRY_POINTS = {point.name: point for point in _entry_points()}
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def can_fork(command, env):
    """Tells whether a command, with what is changed in its environment, can be forked."""
    return command in ENTRY_POINTS and not READ_AT_IMPORT & env.keys()


class Forked:
    """A running command, as like a ``subprocess.Popen`` as the tests need.

    Args:
        command: a name among ``ENTRY_POINTS``.
        args: its arguments, strings.
        cwd, env: its folder and its environment.
    """

    def __init__(self, command, args, cwd, env):
        reading, writing = _context.Pipe(duplex=False)
        self._process = _start(command, args, cwd, env, writing, writing)
        writing.close()
        self.pid = self._process.pid
        self.stdout = os.fdopen(os.dup(reading.fileno()), encoding="utf-8")
        reading.close()

    @property
    def returncode(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Returns all that it prints and, as it prints no errors apart, None."""
        timer = Timer(timeout, os.killpg, (self.pid, SIGKILL))
        timer.start()
        try:
            output = self.stdout.read()
            self.wait()
        finally:
            timer.cancel()
            self.stdout.close()
        return output, None


def make_environment(folder):
    """Makes an environment like this one, whose commands are forked, for scripts that start some.

    Args:
        folder: an empty folder, of a short name: there is a socket in it.
    """
    this = Path(sys.prefix)
    (folder / "bin").mkdir()
    for name in ("pyvenv.cfg", "lib", "bin/python"):
        (folder / name).symlink_to(this / name)
    server = socket.create_server(str(folder / "socket"), family=socket.AF_UNIX)
    Thread(target=_serve, args=[server], daemon=True).start()
    for name in ENTRY_POINTS:
        command = folder / "bin" / name
        command.write_text(f"#!{this}/bin/python -IS\n{CLIENT}")
        command.chmod(0o755)


# The process that the script starts, waits for and may kill.
CLIENT = """
import json, os, socket, sys
from multiprocessing.reduction import sendfds
from pathlib import Path
command = Path(sys.argv[0])
client = socket.socket(socket.AF_UNIX)
client.connect(str(command.parents[1] / "socket"))
sendfds(client, [1, 2])
with client.makefile("rw") as server:
    print(json.dumps([command.name, sys.argv[1:], os.getcwd(), dict(os.environ)]), file=server)
    server.flush()
    sys.exit(int(server.readline()))
"""


def _serve(server):
    while True:
        client, _ = server.accept()
        Thread(target=_answer, args=[client], daemon=True).start()


def _answer(client):
    """Runs what a client asks for: to its end, or until the client is killed."""
    outputs = recvfds(client, 2)
    with client, client.makefile("rw") as file:
        call = json.loads(file.readline())
        outputs = [Connection(output, readable=False) for output in outputs]
        process = _start(*call, *outputs)
        for output in outputs:
            output.close()
        if process.sentinel not in wait([process.sentinel, client]):
            os.killpg(process.pid, SIGKILL)
        process.join()
        with suppress(BrokenPipeError):
            print(process.exitcode, file=file, flush=True)


def _start(*call):
    process = _context.Process(target=_run, args=call)
    process.start()
    return process


def _run(command, args, cwd, env, output, errors):
    gc.freeze()  # collections leave out what was imported before
    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    output.close()
    errors.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [command, *args]
    sys.path[:0] = env.get("PYTHONPATH", "").split(os.pathsep)
    # What the command itself starts, it starts as ever.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    try:
        ENTRY_POINTS[command].load()()
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
