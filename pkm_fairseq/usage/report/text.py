"""Turns tokens back into text."""

from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from omegaconf import OmegaConf

from pkm_fairseq.models.hub import find_bpe
from pkm_fairseq.text import TokenizerJsonBPE

SURROUNDING_TOKENS = 8
# Those whose symbols cannot be read without their files, and how one symbol is read.
BPES = {
    "gpt2": (GPT2BPE, lambda bpe, symbol: bpe.decode(symbol) if symbol.isdigit() else symbol),
    "tokenizer_json": (TokenizerJsonBPE, TokenizerJsonBPE.text_of),
}


class TokenText:
    """Reads the symbols of a dictionary, whichever encoding cut the text into them.

    Args:
        dictionary: fairseq's dictionary.
        folders: where the files of the encoding may be; without them GPT-2's symbols stay numbers.
    """

    def __init__(self, dictionary, folders):
        self._symbols = dictionary.symbols
        self._read_piece = lambda symbol: symbol.replace("\u2581", " ")
        for name, (bpe_class, read) in BPES.items():
            try:
                files = find_bpe(name, {}, folders)
            except ValueError:
                continue
            bpe = bpe_class(OmegaConf.create(files))
            self._read_piece = lambda symbol, bpe=bpe, read=read: read(bpe, symbol)
            return

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
        special = symbol.startswith("<") and symbol.endswith(">")
        return f" {symbol} " if special else self._read_piece(symbol)
