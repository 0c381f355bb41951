"""Cuts text as fairseq does, with a sentencepiece model and a dictionary; needs sentencepiece."""

import shutil
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer


class FairseqTokenizer(PreTrainedTokenizer):
    """Gives each sentencepiece the number that it has in fairseq's dictionary.

    Args:
        vocab_file: fairseq's dict.txt: a symbol and its count a line.
        sentencepiece_file: the sentencepiece model.
    """

    vocab_files_names = {"vocab_file": "dict.txt", "sentencepiece_file": "sentencepiece.bpe.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, sentencepiece_file, **options):
        self.files = [Path(vocab_file), Path(sentencepiece_file)]
        with open(vocab_file, encoding="utf-8") as lines:
            listed = [line.rstrip().rsplit(" ", 1)[0] for line in lines]
        self.symbols = ["<s>", "<pad>", "</s>", "<unk>", *listed]
        if "<mask>" not in listed:
            self.symbols.append("<mask>")
        self.numbers = {symbol: number for number, symbol in enumerate(self.symbols)}
        self.pieces = SentencePieceProcessor(model_file=str(sentencepiece_file))
        specials = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>"}
        specials.update({"pad": "<pad>", "unk": "<unk>", "mask": "<mask>"})
        super().__init__(**{**{f"{kind}_token": specials[kind] for kind in specials}, **options})

    @property
    def vocab_size(self):
        return len(self.symbols)

    def get_vocab(self):
        return {**self.numbers, **self.added_tokens_encoder}

    def _tokenize(self, text):
        return self.pieces.encode(text, out_type=str)

    def _convert_token_to_id(self, token):
        return self.numbers.get(token, self.numbers["<unk>"])

    def _convert_id_to_token(self, index):
        return self.symbols[index]

    def convert_tokens_to_string(self, tokens):
        return self.pieces.decode(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        """Returns <s> A </s>, or <s> A </s> </s> B </s>."""
        bos, eos = [self.bos_token_id], [self.eos_token_id]
        second = [] if token_ids_1 is None else eos + token_ids_1 + eos
        return bos + token_ids_0 + eos + second

    def get_special_tokens_mask(
        self, token_ids_0, token_ids_1=None, already_has_special_tokens=False
    ):
        """Returns 1 for each special token and 0 for each other one."""
        if not already_has_special_tokens:
            token_ids_0 = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return [int(number in self.all_special_ids) for number in token_ids_0]

    def save_vocabulary(self, save_directory, filename_prefix=None):
        """Writes the two files and returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        written = [Path(save_directory, prefix + file.name) for file in self.files]
        for file, dest in zip(self.files, written):
            if not (dest.exists() and dest.samefile(file)):
                shutil.copy(file, dest)
        return tuple(map(str, written))
