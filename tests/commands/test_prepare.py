"""Raw text becomes what fairseq's masked_lm task reads."""

import gzip
import json

import pytest
from fairseq.data import Dictionary, data_utils
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from sentencepiece import SentencePieceProcessor

from tests.commands.commands import ROOT, run

SCRIPT = ROOT / "scripts/pretraining/prepare.py"


def prepare(text, dest, *args, **options):
    return run(
        *("python", SCRIPT, "--train", text / "train.txt", "--valid", text / "valid.txt"),
        *("--dest", dest, "--workers", 1, *args),
        **options,
    )


@pytest.fixture
def few_lines(text, tmp_path):
    """A text of which every line is known: with an empty line and one in a strange script."""
    lines = [*(text / "train.txt").read_text().splitlines()[:40], "", "Ж snowman ☃"]
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def decode(dest, split="train"):
    dictionary = Dictionary.load(str(dest / "dict.txt"))
    pieces = SentencePieceProcessor(model_file=str(dest / "sentencepiece.bpe.model"))
    rows = data_utils.load_indexed_dataset(str(dest / split), dictionary)
    return [pieces.decode(dictionary.string(row).split()) for row in rows]


def test_text_comes_back_from_the_binary_files(few_lines, tmp_path):
    prepare(tmp_path, tmp_path / "data", "--vocab-size", 150)
    expected = [" ".join(line.split()) for line in few_lines]
    assert decode(tmp_path / "data") == expected
    assert decode(tmp_path / "data", "valid") == expected


def test_a_given_model_and_dictionary_are_used(data, few_lines, tmp_path):
    # Gzipped text is read as it is.
    for name in ("train.txt", "valid.txt"):
        with gzip.open(tmp_path / (name + ".gz"), "wb") as file:
            file.write((tmp_path / name).read_bytes())
    dest = tmp_path / "again"
    model = data / "sentencepiece.bpe.model"
    run(
        *("python", SCRIPT, "--train", tmp_path / "train.txt.gz", "--dest", dest, "--workers", 1),
        *("--valid", tmp_path / "valid.txt.gz", "--dict", data / "dict.txt"),
        *("--sentencepiece-model", model),
    )
    assert (dest / "dict.txt").read_bytes() == (data / "dict.txt").read_bytes()
    assert (dest / "sentencepiece.bpe.model").read_bytes() == model.read_bytes()
    assert decode(dest)[:40] == [" ".join(line.split()) for line in few_lines[:40]]


def test_gpt2_s_encoding_comes_back_and_its_files_come_along(few_lines, tmp_path):
    # GPT-2's vocabulary of single bytes, without merges.
    (tmp_path / "encoder.json").write_text(
        json.dumps({character: i for i, character in enumerate(bytes_to_unicode().values())})
    )
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n\n")
    files = {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"}
    given = [
        part
        for option, name in files.items()
        for part in ("--" + option.replace("_", "-"), tmp_path / name)
    ]
    dest = tmp_path / "data"
    prepare(tmp_path, dest, *given)
    dictionary = Dictionary.load(str(dest / "dict.txt"))
    paths = {option: str(dest / name) for option, name in files.items()}
    bpe = GPT2BPE(GPT2BPEConfig(**paths))
    rows = data_utils.load_indexed_dataset(str(dest / "train"), dictionary)
    assert [bpe.decode(dictionary.string(row)) for row in rows] == [x.strip() for x in few_lines]
    output = prepare(tmp_path, tmp_path / "more", *given[:2], fails=True)
    assert "both --gpt2-encoder-json and --gpt2-vocab-bpe" in output.splitlines()[-1]


def test_what_is_there_is_left_alone(text, data):
    before = {path: path.stat().st_mtime_ns for path in data.iterdir()}
    assert "is there already" in prepare(text, data)
    assert {path: path.stat().st_mtime_ns for path in data.iterdir()} == before


def test_nothing_half_made_is_taken_for_whole(text, tmp_path):
    dest = tmp_path / "data"
    output = prepare(text, dest, "--vocab-size", 10, fails=True)
    assert output.splitlines()[-1].startswith("--vocab-size 10 does not suit")
    assert not dest.exists()


def test_an_encoder_that_cannot_be_read_is_refused(text, tmp_path):
    option = ("--sentencepiece-model", text / "train.txt")
    output = prepare(text, tmp_path / "data", *option, fails=True)
    assert output.splitlines()[-1].startswith("error: the encoder's files cannot be read: ")


def test_a_missing_file_is_named(tmp_path):
    output = prepare(tmp_path, tmp_path / "data", fails=True)
    assert output.splitlines()[-1].endswith(f"--train: {tmp_path / 'train.txt'} is not a file")
