"""Raw text becomes what fairseq's masked_lm task reads."""

import gzip
import json

import pytest
from fairseq.data import Dictionary, data_utils
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from sentencepiece import SentencePieceProcessor

from pkm_fairseq.commands.prepare_text import cut_line
from tests.commands.commands import call, run, run_until


def prepare(text, dest, *args, **options):
    return run(
        *("pkm-fairseq", "prepare-text"),
        *("--train", text / "train.txt", "--valid", text / "valid.txt"),
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
        *("pkm-fairseq", "prepare-text", "--dest", dest, "--workers", 1),
        *("--train", tmp_path / "train.txt.gz"),
        *("--valid", tmp_path / "valid.txt.gz", "--dict", data / "dict.txt"),
        *("--sentencepiece-model", model),
    )
    assert (dest / "dict.txt").read_bytes() == (data / "dict.txt").read_bytes()
    assert (dest / "sentencepiece.bpe.model").read_bytes() == model.read_bytes()
    assert decode(dest)[:40] == [" ".join(line.split()) for line in few_lines[:40]]


@pytest.fixture
def gpt2(tmp_path):
    """The options that name GPT-2's vocabulary of single bytes, without merges."""
    encoder, merges = tmp_path / "encoder.json", tmp_path / "vocab.bpe"
    encoder.write_text(
        json.dumps({letter: i for i, letter in enumerate(bytes_to_unicode().values())})
    )
    merges.write_text("#version: 0.2\n\n")
    return "--gpt2-encoder-json", encoder, "--gpt2-vocab-bpe", merges


def test_gpt2_s_encoding_comes_back_and_its_files_come_along(few_lines, gpt2, tmp_path):
    dest = tmp_path / "data"
    prepare(tmp_path, dest, *gpt2)
    dictionary = Dictionary.load(str(dest / "dict.txt"))
    files = {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"}
    bpe = GPT2BPE(GPT2BPEConfig(**{option: str(dest / name) for option, name in files.items()}))
    rows = data_utils.load_indexed_dataset(str(dest / "train"), dictionary)
    assert [bpe.decode(dictionary.string(row)) for row in rows] == [x.strip() for x in few_lines]


def test_what_is_there_is_left_alone(text, data):
    before = {path: path.stat().st_mtime_ns for path in data.iterdir()}
    assert "is there already" in prepare(text, data)
    assert {path: path.stat().st_mtime_ns for path in data.iterdir()} == before


def test_text_as_people_have_it_comes_back(text, tmp_path):
    zstd = pytest.importorskip("backports.zstd", reason="zstd is not installed")
    lines = [line for line in (text / "train.txt").read_text().splitlines() if line][:60]
    folder = tmp_path / "text"
    folder.mkdir()
    # A mark and other line ends; packed; a byte that is no UTF-8, and one very long line.
    (folder / "1.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (folder / "2.zst").write_bytes(zstd.compress("\n".join(lines).encode()))
    long = " ".join(lines * 4)
    (folder / "3").write_bytes(gzip.compress(b"caf\xe9\n" + long.encode()))
    dest = tmp_path / "data"
    command = ("pkm-fairseq", "prepare-text", "--dest", dest)
    command += ("--train", folder, "--valid", folder / "[12]*")
    options = ("--vocab-size", 200, "--workers", 2)
    output = run(*command, *options, fails=True)
    assert f"{folder / '3'}:1: byte 4 of the line, 0xe9, is no UTF-8" in output
    assert output.splitlines()[-1].startswith("error: --train has 1 lines with bytes that are no")
    assert not list(tmp_path.glob("data*"))

    # Killed at work, it starts clean.
    options += ("--replace-bad-bytes",)
    run_until("encoding --valid", *command, *options)
    (tmp_path / "data.partial" / "left.over").touch()
    assert not dest.exists()
    output = run(*command, *options)
    assert "--train: 1 lines are longer than the 4,192 bytes that sentencepiece learns" in output
    assert "encoding --train: 100%" in output
    assert "note: 2 files are in --train and in --valid" in output
    assert not (dest / "left.over").exists()
    assert not list(tmp_path.glob("data.*"))
    expected = [" ".join(line.split()) for line in lines]
    assert decode(dest, "valid") == [*expected, "", *expected]
    *rest, bad, last = decode(dest)
    assert rest == [*expected, "", *expected, ""]
    assert bad.startswith("caf")
    assert last == " ".join(long.split())


def test_nothing_half_made_is_taken_for_whole(text, tmp_path):
    dest = tmp_path / "data"
    output = prepare(text, dest, "--vocab-size", 10, fails=True)
    assert output.splitlines()[-1].startswith(
        "error: --vocab-size 10 does not suit --train: Vocabulary size is smaller than"
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def start(text, tmp_path):
    """Starts the command in this process, for what it refuses before it makes anything."""

    def start(*options):
        texts = ("--train", text / "train.txt", "--valid", text / "valid.txt")
        call("prepare-text", *texts, "--dest", tmp_path / "new", *options)

    yield start
    assert not list(tmp_path.glob("new*"))


def test_half_an_encoder_is_refused(start, gpt2, capsys):
    with pytest.raises(SystemExit):
        start(*gpt2[:2])
    assert "both --gpt2-encoder-json and --gpt2-vocab-bpe" in capsys.readouterr().err


def test_an_encoder_that_cannot_be_read_is_refused(start, text):
    with pytest.raises(ValueError, match="the encoder's files cannot be read: "):
        start("--sentencepiece-model", text / "train.txt")


def test_a_missing_file_is_named(start, text, capsys):
    with pytest.raises(SystemExit):
        start("--valid", text / "none.txt")
    assert f"--valid: {text / 'none.txt'} is not a file" in capsys.readouterr().err


def test_the_dictionary_of_another_encoder_is_refused(start, gpt2, data):
    with pytest.raises(ValueError, match=r"^\d+% of .* pieces of a sample are not in --dict"):
        start("--dict", data / "dict.txt", *gpt2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[PAD]\n[UNK]\n[CLS]\nthe\n##s\n", " is a WordPiece vocab.txt, as of BERT: wanted is the"),
        ("the\nof\n", " is a list of words without counts: wanted is the dict.txt"),
        ("<unk>\t0\n\u2581the\t-3.5\n\u2581\t-1e-05\n", " is a sentencepiece .vocab, with scores"),
        ('{"the": 4}', " is JSON, such as a tokenizer.json"),
        ("#version: 0.2\nT h\n", " is the merges of a byte-pair encoding"),
        ("", " is empty: wanted is"),
        ("\ufeffthe 5\nof 4\n", " begins with a byte order mark"),
        ("the 5\n\nof 4\n", ":2: '' is no piece with a count: wanted is"),
        ("the 5\nof 4.5\n", ":2: 'of 4.5' is no piece with a count: wanted is"),
        ("the 5\nthe 4\n", ":2: the is in an earlier line or one of fairseq's own"),
        ("the 5\n<unk> 4\n", ":2: <unk> is in an earlier line or one of fairseq's own"),
        (
            "the 5\n<unk> 999 #fairseq:overwrite\n",
            ":2: fairseq-preprocess loses #fairseq:overwrite .* such as <unk>_unused",
        ),
    ],
)
def test_a_file_that_is_no_dictionary_is_named(start, data, tmp_path, content, message):
    path = tmp_path / "given"
    path.write_text(content, encoding="utf-8")
    model = ("--sentencepiece-model", data / "sentencepiece.bpe.model")
    with pytest.raises(ValueError, match=f"^--dict {path}{message}"):
        start("--dict", path, *model)
    with pytest.raises(ValueError, match="sentencepiece.bpe.model is no text in UTF-8: wanted"):
        start("--dict", model[1], *model)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("ab cd\u3000ef", ["ab cd\u3000ef"]),
        ("ab  cd efg hij kl mnop", ["ab cd efg", "hij kl mnop"]),
        ("\u2603" * 5 + " ab", ["\u2603" * 3, "\u2603" * 2 + " ab"]),
        ("abcdefghijklmnop q", ["abcdefghijkl", "mnop q"]),
    ],
)
def test_a_long_line_is_cut_at_white_space_or_between_characters(line, parts):
    assert cut_line(line, 12) == parts
    assert all(len(part.encode()) <= 12 for part in parts)
