"""Dictionaries and encoders that can be read and go together, or are refused before the work."""

import re
from itertools import islice

from fairseq.data import Dictionary

from pkm_fairseq.refusals import RefusalError

from .encoders import make_encoder

WANTED = "wanted is the dict.txt of the pretraining, with a piece, a space and a count in each line"
SAMPLE = 1000  # sentences
# The dictionary of an encoder lacked up to 4 % of its pieces in text of another kind, that of
# another encoder 5 % to all.
HIGHEST_UNKNOWN_SHARE = 0.1


def load_dictionary(path):
    """Reads fairseq's dictionary.

    Raises:
        RefusalError: if it is something else, saying what it is and what is wanted.
    """
    try:
        # As fairseq splits lines, not as str.splitlines does.
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError:
        raise RefusalError(f"--dict {path} is no text in UTF-8: {WANTED}") from None
    kind = _other_kind(lines)
    if kind:
        raise RefusalError(f"--dict {path} is {kind}: {WANTED}")
    if lines[0].startswith("\ufeff"):
        raise RefusalError(
            f"--dict {path} begins with a byte order mark, which fairseq takes for a part of its "
            "first piece: remove the mark"
        )
    made = Dictionary()
    for number, line in enumerate(lines, 1):
        if line.rstrip().endswith("#fairseq:overwrite"):
            raise RefusalError(
                f"--dict {path}:{number}: fairseq-preprocess loses {line.split()[-1]} and writes "
                f"a dictionary that nothing can read; give the piece a name that no text has, "
                f"such as {line.split()[0]}_unused, and remove that mark"
            )
        piece, _, count = line.rstrip().rpartition(" ")
        if not piece or not re.fullmatch("-?[0-9]+", count):
            raise RefusalError(
                f"--dict {path}:{number}: {line!r} is no piece with a count: {WANTED}"
            )
        if piece in made:
            raise RefusalError(
                f"--dict {path}:{number}: {piece} is in an earlier line or one of fairseq's own, "
                f"which it adds by itself: remove one of them, in the dictionary of the model, too"
            )
        made.add_symbol(piece, int(count))
    return made


def load_encoder(args):
    """Same as ``make_encoder``.

    Raises:
        RefusalError: if the encoder's files cannot be read.
    """
    try:
        return make_encoder(args)
    except Exception as error:  # of whichever library reads it
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RefusalError(f"the encoder's files cannot be read: {reason}") from error


def _other_kind(lines):
    """Says which other file people take for fairseq's dictionary; None if it is none of those."""
    first = [line for line in lines[:SAMPLE] if line]
    if not first:
        return "empty"
    if first[0].lstrip().startswith("{"):
        return "JSON, such as a tokenizer.json, vocab.json or encoder.json"
    if first[0].startswith("#version"):
        return "the merges of a byte-pair encoding, such as GPT-2's vocab.bpe"
    if all(re.fullmatch(r"[^\t]+\t-?[\d.e-]+", line) for line in first):
        return "a sentencepiece .vocab, with scores after tabs"
    if not any(" " in line for line in first):
        wordpiece = "[UNK]" in lines
        return (
            "a WordPiece vocab.txt, as of BERT" if wordpiece else "a list of words without counts"
        )
    return None


def check_fits(dictionary, encode, sentences):
    """Encodes a sample, and refuses a dictionary that hardly knows its pieces.

    Args:
        dictionary: fairseq's.
        encode: turns a line into its pieces, separated by spaces.
        sentences: lines, of which the first that are not empty are the sample.

    Raises:
        RefusalError: saying how many are unknown.
    """
    sample = islice((line.strip() for line in sentences if line.strip()), SAMPLE)
    pieces = [piece for line in sample for piece in encode(line).split()]
    share = sum(dictionary.index(piece) == dictionary.unk() for piece in pieces) / max(
        len(pieces), 1
    )
    if share > HIGHEST_UNKNOWN_SHARE:
        raise RefusalError(
            f"{share:.0%} of {len(pieces):,} pieces of a sample are not in --dict: "
            "give the dictionary and the encoder of the same pretraining"
        )


def class_names(dictionary):
    """Returns the classes of a label dictionary, without what fairseq adds to it."""
    names = dictionary.symbols[dictionary.nspecial :]
    return [name for name in names if name != "<mask>" and not re.match(r"madeupword\d", name)]
