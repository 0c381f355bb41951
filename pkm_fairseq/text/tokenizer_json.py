"""A BPE of fairseq that cuts text with any fast tokenizer of Hugging Face: WordPiece and others."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from pkm_fairseq.refusals import RefusalError

# What BERT's tokenizers call the symbols of fairseq.
SPECIAL_SYMBOLS = {
    "[CLS]": "<s>",
    "[PAD]": "<pad>",
    "[SEP]": "</s>",
    "[UNK]": "<unk>",
    "[MASK]": "<mask>",
}
WORD_STARTS = ("\u0120", "\u2581")  # what byte-level BPE and sentencepiece make of a space


@dataclass
class TokenizerJsonConfig(FairseqDataclass):
    """The option of ``--bpe tokenizer_json``."""

    tokenizer_json: str = field(
        default="???", metadata={"help": "path to the tokenizer.json of a model"}
    )


@register_bpe("tokenizer_json", dataclass=TokenizerJsonConfig)
class TokenizerJsonBPE:
    """Cuts text into the tokens of a ``tokenizer.json``, separated by spaces.

    Args:
        cfg: names the file.

    Raises:
        RefusalError: if the library ``tokenizers`` is missing, or the file is not for it.
    """

    def __init__(self, cfg):
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise RefusalError(
                "--bpe tokenizer_json needs the library tokenizers: pip install tokenizers"
            ) from error
        text = Path(cfg.tokenizer_json).read_text(encoding="utf-8")
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing more special
            raise RefusalError(
                f"--tokenizer-json {cfg.tokenizer_json} is no file of a fast tokenizer: {error}"
            ) from error
        # A file may ask for all sentences to be made equally long.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._continuation = json.loads(text)["model"].get("continuing_subword_prefix") or ""

    def encode(self, x):
        """Returns the tokens of ``x``, separated by spaces, without those around a sentence."""
        tokens = self._tokenizer.encode(x, add_special_tokens=False).tokens
        return " ".join(map(symbol_of, tokens))

    def decode(self, x):
        """Returns the text of tokens that are separated by spaces."""
        special = {symbol: token for token, symbol in SPECIAL_SYMBOLS.items()}
        numbers = []
        for symbol in x.split():
            number = self._tokenizer.token_to_id(symbol)
            if number is None:
                number = self._tokenizer.token_to_id(special.get(symbol, symbol))
            if number is not None:
                numbers.append(number)
        return self._tokenizer.decode(numbers, skip_special_tokens=False)

    def is_beginning_of_word(self, x):
        """Tells whether a token begins a word, for ``--mask-whole-words``."""
        if self._continuation:
            return not x.startswith(self._continuation)
        return x.startswith(WORD_STARTS)

    def text_of(self, x):
        """Returns the text of one token, with the space before it where it begins a word."""
        if self._continuation:
            return f" {x}" if self.is_beginning_of_word(x) else x[len(self._continuation) :]
        text = self.decode(x)
        return f" {text.lstrip()}" if x.startswith(WORD_STARTS) else text


def symbol_of(token):
    """Returns what a token is called in fairseq's dictionary, which separates symbols by spaces."""
    if any(map(str.isspace, token)):
        return "<unk>"
    return SPECIAL_SYMBOLS.get(token, token)
