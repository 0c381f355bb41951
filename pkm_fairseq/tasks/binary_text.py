"""Binary text and its dictionary, refused before they train anything if they do not fit."""

import os
import struct

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import (
    MMapIndexedDataset,
    data_file_path,
    index_file_path,
    infer_dataset_impl,
)

from pkm_fairseq.refusals import RefusalError


def check_dictionary(path):
    """Reads a dictionary, if it is there, as fairseq does, which does not say which one it cannot.

    Raises:
        RefusalError: if it cannot be read, naming it.
    """
    if not os.path.exists(path):
        return
    try:
        Dictionary.load(path)
    except (OSError, MemoryError):
        raise  # no fault of what is in it
    except Exception as error:  # fairseq raises several kinds
        reason = str(error).split("\n")[0]
        raise RefusalError(f"{path} cannot be read: {reason}") from error


def check_binary_text(prefix, dictionary):
    """Reads all of a pair of .bin and .idx, as fairseq does as well before it uses them.

    Args:
        prefix: their path without the ending; where they are not there, or not of fairseq's kind
            ``mmap``, nothing is checked.
        dictionary: whose numbers they hold.

    Raises:
        RefusalError: if they are cut off, or hold numbers that are not in the dictionary.
    """
    if not MMapIndexedDataset.exists(prefix) or infer_dataset_impl(prefix) != "mmap":
        return
    path = data_file_path(prefix)
    try:
        index = MMapIndexedDataset.Index(index_file_path(prefix))
    except (AssertionError, struct.error, ValueError) as error:
        raise RefusalError(
            f"{index_file_path(prefix)} is cut off: prepare the data again"
        ) from error
    count = int(index.sizes.sum(dtype=np.int64))
    if count * index.dtype().itemsize != os.path.getsize(path):
        raise RefusalError(f"{path} is not as long as its .idx says: prepare the data again")
    if not count:
        return
    greatest = np.memmap(path, index.dtype, mode="r").max()
    if greatest >= len(dictionary):
        raise RefusalError(
            f"{path} holds the number {greatest}, but its dictionary ends at "
            f"{len(dictionary) - 1}: put the dict.txt there that it was made with"
        )
