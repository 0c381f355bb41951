import pytest

from pkm_fairseq.models.hub import find_bpe


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
