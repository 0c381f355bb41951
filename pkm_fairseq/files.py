"""Files that are there whole or not at all."""

import os


def write_whole(path, content):
    """Writes a file whole or not at all, whoever else may write it.

    Args:
        path: a ``pathlib.Path``.
        content: bytes or str.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
