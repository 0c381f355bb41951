#!/usr/bin/env python3
"""Writes a sample to train on offline: the reference text that ships inside every CPython.

Makes train.txt and valid.txt in DIR, a line a paragraph line, an empty line between documents.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

HELD_OUT = 10  # every tenth document validates


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dest", type=Path, metavar="DIR")
    dest = parser.parse_args().dest
    dest.mkdir(parents=True, exist_ok=True)
    documents = [clean(text) for _, text in sorted(topics.items())]
    splits = {
        "valid": documents[::HELD_OUT],
        "train": [text for i, text in enumerate(documents) if i % HELD_OUT],
    }
    for name, texts in splits.items():
        path = dest / f"{name}.txt"
        path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        print(f"{path}: {len(texts)} documents, {sum(len(t.split()) for t in texts):,} words")


def clean(text):
    """Leaves out empty lines and the underlining of titles."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if any(map(str.isalnum, line)))


if __name__ == "__main__":
    main()
