"""Writes sentences and labels as what fairseq's sentence_prediction task reads."""

import time

import torch
from fairseq.data import Dictionary, indexed_dataset

from pkm_fairseq.text.dictionaries import load_dictionary, load_encoder

SENTENCES_AT_ONCE = 2000
SECONDS_BETWEEN_LINES = 5


class Encoder:
    """Turns sentences into the numbers of the pretraining's dictionary.

    Args:
        args: the command line, with ``dict`` and the paths of an encoder.
    """

    def __init__(self, args):
        self.dictionary = load_dictionary(args.dict)
        self.pieces = load_encoder(args)

    def encode(self, sentence):
        """Returns the numbers of a sentence's pieces, the end of sentence last."""
        return self.dictionary.encode_line(self.pieces(sentence), add_if_not_exist=False).numpy()


_encoder = None


def start_worker(args, encoder=None):
    """Keeps the encoder of this process where ``encode_batch`` finds it."""
    global _encoder
    _encoder = encoder or Encoder(args)


def encode_batch(sentences):
    return [_encoder.encode(sentence) for sentence in sentences]


def write_sentences(title, sentences, prefix, dictionary, encode):
    """Writes encoded sentences.

    Args:
        title: what to call them in what is printed
        sentences: a list of text
        prefix: path of the binary file without its ending
        dictionary: the pretraining's
        encode: ``map`` or what does the same with more processes
    """
    batches = (
        sentences[start : start + SENTENCES_AT_ONCE]
        for start in range(0, len(sentences), SENTENCES_AT_ONCE)
    )
    written = BinaryFile(prefix, len(dictionary))
    said = time.monotonic()
    done = pieces = unknown = 0
    for batch in encode(encode_batch, batches):
        for numbers in batch:
            written.add(numbers)
            # The end of sentence is no piece.
            pieces += len(numbers) - 1
            unknown += int((numbers == dictionary.unk()).sum())
        done += len(batch)
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"{title}: {done:,} of {len(sentences):,} rows", flush=True)
    written.close()
    share = unknown / max(pieces, 1)
    print(f"{title}: {done:,} rows, {pieces:,} pieces, {share:.2%} unknown", flush=True)


def write_labels(task, split, labels, dest):
    """Writes classes as fairseq's binary files, and scores as the text it reads for regression."""
    dest.mkdir(parents=True, exist_ok=True)
    if task.regression:
        # RoBERTa's regression is trained on scores between 0 and 1.
        lowest, highest = task.scores
        scores = (f"{(label - lowest) / (highest - lowest)}\n" for label in labels)
        (dest / f"{split}.label").write_text("".join(scores))
        return
    # fairseq's own way would number the classes by how frequent they are.
    dictionary = Dictionary()
    for label in task.classes:
        dictionary.add_symbol(label)
    dictionary.save(str(dest / "dict.txt"))
    written = BinaryFile(dest / split, len(dictionary))
    for label in labels:
        # encode_line would take a class of two words for two.
        written.add([dictionary.index(label), dictionary.eos()])
    written.close()


class BinaryFile:
    """One of fairseq's pairs of .bin and .idx, in the format that fairseq-preprocess writes.

    Args:
        prefix: the path of both without its ending
        vocab_size: how many numbers there are
    """

    def __init__(self, prefix, vocab_size):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self.index = indexed_dataset.index_file_path(str(prefix))
        path = indexed_dataset.data_file_path(str(prefix))
        self.builder = indexed_dataset.make_builder(path, impl="mmap", vocab_size=vocab_size)

    def add(self, numbers):
        self.builder.add_item(torch.as_tensor(numbers))

    def close(self):
        self.builder.finalize(self.index)
