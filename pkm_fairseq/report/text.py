"""Turns tokens back into text."""

from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from omegaconf import OmegaConf

from pkm_fairseq.models.hub import find_bpe

SURROUNDING_TOKENS = 8


class TokenText:
    """Reads the symbols of a dictionary, whether of sentencepiece or of GPT-2's encoding.

    Args:
        dictionary: fairseq's dictionary.
        folders: where GPT-2's files may be; without them its symbols stay numbers.
    """

    def __init__(self, dictionary, folders):
        self._symbols = dictionary.symbols
        try:
            self._gpt2 = GPT2BPE(OmegaConf.create(find_bpe("gpt2", {}, folders)))
        except ValueError:
            self._gpt2 = None

    def describe(self, context):
        """Returns what a report says of a ``Context``."""
        sentence, place = context.sentence, context.place
        return {
            "weight": context.weight,
            "head": context.head,
            "before": self._read(sentence[max(0, place - SURROUNDING_TOKENS) : place]),
            "token": self._read(sentence[place : place + 1]),
            "after": self._read(sentence[place + 1 : place + 1 + SURROUNDING_TOKENS]),
        }

    def _read(self, tokens):
        """Returns the text of tokens, spaces at its ends included."""
        return "".join(self._read_symbol(self._symbols[token]) for token in tokens)

    def _read_symbol(self, symbol):
        if self._gpt2 and symbol.isdigit():
            return self._gpt2.decode(symbol)
        return f" {symbol} " if symbol.startswith("<") else symbol.replace("\u2581", " ")
