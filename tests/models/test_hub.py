import json
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from fairseq.models import build_model

from pkm_fairseq.models.hub import PKMRobertaHubInterface, find_bpe
from tests.models.tiny import TINY, TINY_MEMORY, make_args
from tests.tolerances import assert_close


def make_hub(symbols, bpe):
    """An interface to a small model; what does not stand for text is what it finds most likely."""
    dictionary = Dictionary()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    dictionary.pad_to_multiple_(8)
    dictionary.add_symbol("<mask>")
    task = SimpleNamespace(source_dictionary=dictionary, max_positions=lambda: 12)
    torch.manual_seed(0)
    model = build_model(make_args(**TINY, **TINY_MEMORY), task)
    likely = [number for number, symbol in enumerate(dictionary.symbols) if symbol not in symbols]
    assert any("madeupword" in dictionary[number] for number in likely)
    model.encoder.lm_head.bias.data[likely] = 3.0
    hub = PKMRobertaHubInterface(SimpleNamespace(bpe=None), task, model)
    hub.bpe = bpe
    return hub


PIECES = ["\u2581a", "\u2581b", "c", "\u2581de", "f", "\u2581"]
BY_PIECE = SimpleNamespace(  # of sentencepiece's kind
    encode=lambda text: " ".join(f"\u2581{word}" for word in text.split()),
    decode=lambda pieces: pieces.replace(" ", "").replace("\u2581", " ").strip(),
)


@pytest.mark.parametrize("topk", [1, 3, 100])
def test_fill_mask_gives_the_best_pieces_with_their_own_probabilities(topk):
    hub = make_hub(PIECES, BY_PIECE)
    index = hub.task.source_dictionary.index
    tokens = torch.tensor([[0, index("\u2581a"), index("<mask>"), index("\u2581b"), 2]])
    with torch.no_grad():
        probabilities = hub.model.eval()(tokens)[0][0, 2].softmax(0)
    best = sorted(PIECES, key=lambda piece: -probabilities[index(piece)])[:topk]
    hub.model.train()
    filled = hub.fill_mask("a <mask> b", topk)
    assert hub.model.training
    assert [piece for *_, piece in filled] == [piece.replace("\u2581", " ") for piece in best]
    assert [text for text, *_ in filled] == [f"a{piece} b" for *_, piece in filled]
    expected = torch.stack([probabilities[index(piece)] for piece in best])
    assert_close(torch.tensor([probability for _, probability, _ in filled]), expected)


@pytest.mark.parametrize("text", ["no mask", "<mask> and <mask>"])
def test_fill_mask_wants_one_mask(text):
    with pytest.raises(ValueError, match=f"give a text with one <mask>, not .: {text}"):
        make_hub(PIECES, BY_PIECE).fill_mask(text)


def test_fill_mask_refuses_what_it_cannot_do():
    hub = make_hub(PIECES, BY_PIECE)
    assert hub.fill_mask("a <mask>" + " b" * (hub.model.max_positions() - 4))
    with pytest.raises(ValueError, match="the text has 13 tokens, and the model takes 12: shorten"):
        hub.fill_mask("a <mask>" + " b" * (hub.model.max_positions() - 3))
    with pytest.raises(ValueError, match="topk=-1 asks for no piece"):
        hub.fill_mask("a <mask>", topk=-1)


def test_fill_mask_leaves_out_what_gpt2_cannot_read(tmp_path):
    bytes_of_text = list(bytes_to_unicode().values())
    encoder = {token: number for number, token in enumerate(bytes_of_text)}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    files = (str(tmp_path / name) for name in ("encoder.json", "vocab.bpe"))
    hub = make_hub([*map(str, encoder.values()), "<extra>"], GPT2BPE(GPT2BPEConfig(None, *files)))
    filled = hub.fill_mask("ab<mask>", topk=1000)
    assert len(filled) == len(bytes_of_text)
    assert {f"ab{letter}" for letter in "xyz"} <= {text for text, *_ in filled}


@pytest.fixture
def folder(tmp_path):
    for name in ("sentencepiece.bpe.model", "encoder.json", "vocab.bpe"):
        (tmp_path / name).touch()
    return tmp_path


def test_what_is_named_comes_before_what_lies_there(folder):
    given = {"gpt2_encoder_json": str(folder / "encoder.json")}
    assert find_bpe(None, given, [folder])["bpe"] == "gpt2"
    assert find_bpe(None, {}, [folder])["bpe"] == "sentencepiece"
    assert find_bpe("gpt2", {}, [folder]) == {
        "bpe": "gpt2",
        "gpt2_encoder_json": str(folder / "encoder.json"),
        "gpt2_vocab_bpe": str(folder / "vocab.bpe"),
    }


def test_files_are_looked_for_in_every_folder(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    found = find_bpe(None, {}, [empty, folder])
    assert found["sentencepiece_model"] == str(folder / "sentencepiece.bpe.model")


def test_a_named_file_that_is_not_there_is_not_replaced_by_another(folder):
    given = {"sentencepiece_model": str(folder / "none.model")}
    with pytest.raises(ValueError, match="sentencepiece_model=.*none.model does not exist"):
        find_bpe(None, given, [folder])


def test_without_files_it_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="give sentencepiece_model= or gpt2_encoder_json="):
        find_bpe(None, {}, [tmp_path])
