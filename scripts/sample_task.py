#!/usr/bin/env python3
"""Makes a small finetuning task offline, in the official layout of CoLA.

Sentences of the sample text are acceptable (1), the same with their words shuffled are not (0).
Writes CoLA/train.tsv, dev.tsv and test.tsv into DEST.
"""

import argparse
import random
from pathlib import Path

WORDS = range(5, 26)  # how long a sentence is
HELD_OUT = 8  # every eighth sentence is for dev, the next one for test


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    dest = args.dest / "CoLA"
    dest.mkdir(parents=True, exist_ok=True)

    sentences = read_sentences(args.text)
    chance = random.Random(1)
    splits = {"train": [], "dev": [], "test": []}
    for i, sentence in enumerate(sentences):
        split = {0: "dev", 1: "test"}.get(i % HELD_OUT, "train")
        splits[split] += [(1, sentence), (0, shuffled(sentence, chance))]
    for split, rows in splits.items():
        if split == "test":
            lines = ["index\tsentence", *(f"{i}\t{text}" for i, (_, text) in enumerate(rows))]
        else:
            lines = [f"sample\t{label}\t\t{text}" for label, text in rows]
        (dest / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{dest / split}.tsv: {len(rows):,} sentences")


def read_sentences(path):
    """Returns the sentences of a text, each once, without those of odd lengths."""
    text = " ".join(path.read_text(encoding="utf-8").split())
    sentences = (sentence + "." for sentence in text.split(". "))
    return [line for line in dict.fromkeys(sentences) if len(line.split()) in WORDS]


def shuffled(sentence, chance):
    words = sentence.split()
    mixed = words
    while mixed == words:
        mixed = chance.sample(words, len(words))
    return " ".join(mixed)


if __name__ == "__main__":
    main()
