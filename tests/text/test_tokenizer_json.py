"""Text is cut by a tokenizer.json as its own library cuts it."""

import json

import pytest
from omegaconf import OmegaConf

from pkm_fairseq.text.tokenizer_json import TokenizerJsonBPE, symbol_of

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

LINES = ["The lower sentences are fast.", "He lowered the fastest of them, slowly!"]


def wordpiece():
    tokenizer = tokenizers.BertWordPieceTokenizer()
    tokenizer.train_from_iterator(LINES, vocab_size=60, min_frequency=1, show_progress=False)
    return tokenizer


def byte_level():
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(LINES, vocab_size=280, min_frequency=1, show_progress=False)
    return tokenizer


def unigram():
    tokenizer = tokenizers.SentencePieceUnigramTokenizer()
    tokenizer.train_from_iterator(LINES, vocab_size=40, show_progress=False, unk_token="<unk>")
    return tokenizer


@pytest.fixture(params=[wordpiece, byte_level, unigram])
def case(request, tmp_path):
    tokenizer = request.param()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tokenizer, make_bpe(tmp_path / "tokenizer.json")


def make_bpe(path):
    return TokenizerJsonBPE(OmegaConf.create({"tokenizer_json": str(path)}))


def test_tokens_are_those_of_the_library_and_read_as_the_text(case):
    tokenizer, bpe = case
    for line in LINES:
        pieces = bpe.encode(line)
        assert pieces.split() == tokenizer.encode(line, add_special_tokens=False).tokens
        assert len(pieces.split()) > len(line.split())
        assert bpe.decode(pieces) == tokenizer.decode(tokenizer.encode(line).ids)


def test_pieces_of_words_are_told_from_their_beginnings(case):
    _, bpe = case
    line = "slowly lowered the"
    # Without a space before it, byte-level BPE cannot tell the first word.
    pieces = bpe.encode(f"a {line}").split()[len(bpe.encode("a").split()) :]
    assert sum(map(bpe.is_beginning_of_word, pieces)) == 3
    assert "".join(map(bpe.text_of, pieces)) == f" {line}"


def test_a_file_that_makes_all_sentences_equally_long_does_not(tmp_path):
    tokenizer = wordpiece()
    expected = tokenizer.encode(LINES[0], add_special_tokens=False).tokens
    tokenizer.enable_padding(length=30)
    tokenizer.enable_truncation(max_length=2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    pieces = make_bpe(tmp_path / "tokenizer.json").encode(LINES[0])
    assert pieces.split() == expected


def test_symbols_have_no_spaces_and_special_ones_are_fairseqs():
    assert [symbol_of(token) for token in ("the", "##s", "two words", "[SEP]", "<mask>")] == [
        *("the", "##s", "<unk>", "</s>", "<mask>")
    ]


def test_special_tokens_in_the_text_are_fairseqs(tmp_path):
    wordpiece().save(str(tmp_path / "tokenizer.json"))
    bpe = make_bpe(tmp_path / "tokenizer.json")
    assert "</s>" in bpe.encode("the [SEP] the").split()
    assert bpe.decode("the </s> <mask>") == "the [SEP] [MASK]"


@pytest.mark.parametrize("content", ["no json", json.dumps({"model": {"type": "none"}})])
def test_another_file_is_refused_in_a_line(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="--tokenizer-json .*tokenizer.json is no file of a fast"):
        make_bpe(tmp_path / "tokenizer.json")
