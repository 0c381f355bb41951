"""Reads text as people have it: UTF-8 with or without a mark, any line ends, compressed or not."""

import argparse
import bz2
import glob
import gzip
import lzma
import sys
from pathlib import Path

from tqdm import tqdm

from pkm_fairseq.refusals import RefusalError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = b"\xff\xfe", b"\xfe\xff"
BAD_LINES_SHOWN = 20
LINES_BETWEEN_LOOKS = 1000  # at how far a file was read
SECONDS_BETWEEN_LOOKS = 0.1 if sys.stderr.isatty() else 10


def find_files(text):
    """Reads a file, a folder or a pattern such as ``'text/*.gz'`` from a command line.

    Returns:
        the files, sorted; of a folder all that are not hidden.
    """
    path = Path(text)
    if path.is_dir():
        found = [
            file
            for file in path.rglob("*")
            if not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
    else:
        found = [path] if path.exists() else map(Path, glob.glob(text, recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise argparse.ArgumentTypeError(f"{text} is not a file, nor a folder or pattern of files")
    return files


def _open_zstd(file):
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise RefusalError("it is packed by zstd: pip install backports.zstd") from None
    # Large corpora are packed by "zstd --long=31".
    return zstd.ZstdFile(file, options={zstd.DecompressionParameter.window_log_max: 31})


# By the first bytes, whatever the file is called.
OPENERS = {
    b"\x1f\x8b": gzip.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
    b"\xfd7zXZ": lzma.open,
    b"BZh": bz2.open,
}


def raw_lines(path, bar=None):
    """Yields the lines of a file as bytes, unpacked where it is packed.

    Args:
        path: the file.
        bar: a progress bar over the bytes of the file as it lies there.

    Raises:
        RefusalError: if it is UTF-16, or cannot be unpacked to its end.
    """
    with open(path, "rb") as file:
        start = file.peek(8)
        opener = next((OPENERS[mark] for mark in OPENERS if start.startswith(mark)), None)
        seen = 0
        try:
            for number, line in enumerate(opener(file) if opener else file, 1):
                if number == 1 and line.startswith(UTF_16_MARKS):
                    raise RefusalError(f"{path} is UTF-16: turn it into UTF-8, as iconv does")
                yield line
                if bar is not None and not number % LINES_BETWEEN_LOOKS:
                    bar.update(file.tell() - seen)
                    seen = file.tell()
        except RefusalError:
            raise
        except Exception as error:  # of whichever library unpacks it
            raise RefusalError(f"{path} cannot be read to its end: {error}") from error
        if bar is not None:
            bar.update(file.tell() - seen)


def refuse(message):
    raise RefusalError(message)


def read_lines(path, on_bad_bytes=refuse, bar=None):
    """Yields the lines of a file as text, without their ends.

    Args:
        path: the file.
        on_bad_bytes: called with a message for each line that is not UTF-8; if it returns, the line
            has U+FFFD in place of what is wrong.
        bar: as of ``raw_lines``.

    Raises:
        RefusalError: at bytes that are not UTF-8, unless ``on_bad_bytes`` is given.
    """
    number = 0
    for raw in raw_lines(path, bar):
        if not number and raw.startswith(BYTE_ORDER_MARK):
            raw = raw[len(BYTE_ORDER_MARK) :]
        # A carriage return alone ends a line, too, as in Python's own text files.
        for line in raw.rstrip(b"\r\n").split(b"\r"):
            number += 1
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                on_bad_bytes(
                    f"{path}:{number}: byte {error.start + 1} of the line, "
                    f"0x{line[error.start]:02x}, is no UTF-8"
                )
                yield line.decode(errors="replace")


class Text:
    """A text in any number of files, with an empty line, which ends a document, between two.

    Args:
        title: what to call it in what is printed.
        files: their paths.
        replace_bad_bytes: whether bytes that are no UTF-8 become U+FFFD, or are refused.
    """

    def __init__(self, title, files, replace_bad_bytes=False):
        self.title, self.files = title, files
        self._replace_bad_bytes = replace_bad_bytes

    def lines(self, doing="", on_bad_bytes=lambda message: None):
        """Yields the lines, and shows how far it is if it is said what is done with them."""
        size = sum(path.stat().st_size for path in self.files)
        with tqdm(
            desc=f"{doing} {self.title}",
            total=size,
            unit="B",
            unit_scale=True,
            mininterval=SECONDS_BETWEEN_LOOKS,
            disable=not doing,
        ) as bar:
            for path in self.files:
                if path != self.files[0]:
                    yield ""
                yield from read_lines(path, on_bad_bytes, bar)

    def check(self):
        """Reads everything once, so that what is wrong is said before the work and not in it.

        Raises:
            RefusalError: if bytes are no UTF-8, or there are no words.
        """
        bad = 0

        def say(message):
            nonlocal bad
            bad += 1
            if bad <= BAD_LINES_SHOWN:
                tqdm.write(message, sys.stderr)

        # Not any(): everything is to be read.
        words = sum(bool(line.strip()) for line in self.lines("reading", say))
        if bad and not self._replace_bad_bytes:
            raise RefusalError(
                f"{self.title} has {bad:,} lines with bytes that are no UTF-8: mend them, or give "
                "--replace-bad-bytes to have U+FFFD in their place"
            )
        if bad:
            print(f"{self.title}: bytes that are no UTF-8 replaced in {bad:,} lines", flush=True)
        if not words:
            raise RefusalError(f"{self.title} has no words: {', '.join(map(str, self.files))}")
