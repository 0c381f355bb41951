"""Files and folders that are there whole or not at all."""

import os
import shutil
from contextlib import contextmanager


def atomic_write(path, content):
    """Writes a file whole or not at all, whoever else may write it.

    Args:
        path: a ``pathlib.Path``.
        content: bytes or str.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(dest):
    """Yields a new folder, which becomes ``dest`` in the end, or is removed after an exception.

    Args:
        dest: a ``pathlib.Path`` where nothing is.
    """
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    partial.rename(dest)
