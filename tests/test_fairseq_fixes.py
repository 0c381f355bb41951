"""What is mended in fairseq works for its own RoBERTa as for the plugin's."""

import json
from importlib.util import find_spec

import pytest
import torch
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode, get_encoder
from fairseq.tasks import setup_task

from tests.options import training

STOCK = {
    **{"arch": "roberta", "task": "masked_lm", "criterion": "masked_lm", "optimizer": "adam"},
    **dict.fromkeys(training.MEMORY),
}
BOTH = pytest.mark.parametrize("model", [{}, STOCK], ids=["ours", "fairseq's"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Text in pieces of sentencepiece, GPT-2's encoding and WordPiece, and the files of each."""
    folder = tmp_path_factory.mktemp("data")
    model = training.make_sentencepiece(folder)
    pieces = training.sentencepiece.SentencePieceProcessor(model_file=str(model))
    training.make_text(
        folder / "sentencepiece", lambda line: " ".join(pieces.encode(line, out_type=str))
    )
    symbols = [*bytes_to_unicode().values(), "\u0120t", "ee", "en"]
    (folder / "encoder.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n\u0120 t\ne e\ne n\n")
    bpe = get_encoder(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    training.make_text(folder / "gpt2", lambda line: " ".join(map(str, bpe.encode(f" {line}"))))
    if find_spec("tokenizers"):
        make_wordpieces(folder)
    return folder


def make_wordpieces(folder):
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(training.WORDS, vocab_size=40, show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    training.make_text(
        folder / "tokenizer_json",
        lambda line: " ".join(tokenizer.encode(line, add_special_tokens=False).tokens),
    )


def bpe_flags(folder, name):
    if name == "sentencepiece":
        return {"bpe": name, "sentencepiece_model": str(folder / "pieces.model")}
    if name == "tokenizer_json":
        return {"bpe": name, "tokenizer_json": str(folder / "tokenizer.json")}
    files = {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"}
    return {"bpe": name, **{option: str(folder / file) for option, file in files.items()}}


def start(folder, save_dir, given):
    return training.parse(folder, save_dir, {**training.PRETRAINING, "max_update": 1, **given})


@BOTH
def test_it_trains_one_sentence_at_a_time(model, data, tmp_path):
    cfg = start(data / "sentencepiece", tmp_path, {**model, "sample_break_mode": "eos"})
    training.train(cfg)
    task = setup_task(cfg.task)
    task.load_dataset("valid")
    assert len(task.dataset("valid")) == training.ROWS["valid"]
    assert training.read(cfg)[1] == 1


@BOTH
@pytest.mark.parametrize("name", ["sentencepiece", "gpt2", "tokenizer_json"])
def test_it_masks_whole_words(name, model, data, tmp_path):
    if name == "tokenizer_json":
        pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    given = {**model, **bpe_flags(data, name), "mask_whole_words": True, "mask_prob": 0.4}
    cfg = start(data / name, tmp_path, {**given, "tokens_per_sample": 40, "max_positions": 40})
    training.train(cfg)
    task = setup_task(cfg.task)
    task.load_dataset("train")
    dictionary, dataset = task.source_dictionary, task.dataset("train")
    begins_word = [task_begins_word(name, dictionary, index) for index in range(len(dictionary))]
    in_parts = 0
    for sample in (dataset[row] for row in range(len(dataset))):
        masked = sample["target"].ne(dictionary.pad())
        tokens = sample["net_input.src_tokens"].where(~masked, sample["target"])
        begins = torch.tensor(begins_word)[tokens]
        words = torch.tensor_split(masked, begins.nonzero().view(-1))[1:]
        assert all(word.all() or not word.any() for word in words)
        in_parts += sum(len(word) > 1 and bool(word.all()) for word in words)
    assert in_parts > 10


def task_begins_word(name, dictionary, index):
    """Tells whether a token is the first of a word, or none of text."""
    symbol = dictionary[index]
    if index < dictionary.nspecial or symbol == "<mask>":
        return index < dictionary.nspecial
    if name == "sentencepiece":
        return symbol.startswith("\u2581")
    if name == "tokenizer_json":
        return not symbol.startswith("##")
    # Of the symbols that make_text's encoder has: a space, or a space and t.
    symbols = [*bytes_to_unicode().values(), "\u0120t"]
    return int(symbol) < len(symbols) and symbols[int(symbol)].startswith("\u0120")


@BOTH
def test_an_average_starts_as_the_model_of_any_checkpoint(model, data, tmp_path):
    first = start(data / "sentencepiece", tmp_path / "first", model)
    training.train(first)
    given = {"store_ema": True, "ema_decay": 0.75, "lr": 0.1}
    given["finetune_from_model"] = f"{first.checkpoint.save_dir}/checkpoint_last.pt"
    second = start(data / "sentencepiece", tmp_path / "second", {**model, **given})
    training.train(second)
    before, after = training.read(first)[0]["model"], training.read(second)[0]
    name = "encoder.sentence_encoder.layers.0.fc1.weight"
    average = after["extra_state"]["ema"][name]
    assert not torch.equal(after["model"][name], before[name])
    expected = 0.75 * before[name] + 0.25 * after["model"][name]
    torch.testing.assert_close(average, expected)


@BOTH
def test_fp16_goes_on_when_gradients_overflow_on_the_cpu(model, data, tmp_path):
    given = {**model, "memory_efficient_fp16": True, "fp16_init_scale": 2**22}
    cfg = start(data / "sentencepiece", tmp_path, given)
    training.train(cfg)
    checkpoint, updates = training.read(cfg)
    assert updates == 1
    assert checkpoint["last_optimizer_state"]["loss_scale"] < 2**22


@BOTH
def test_a_training_without_the_last_batch_of_an_epoch_resumes(model, data, tmp_path):
    given = {**model, "max_epoch": 1, "max_update": 99}
    whole = start(data / "sentencepiece", tmp_path / "whole", given)
    training.train(whole)
    batches = training.read(whole)[1]
    cfg = start(data / "sentencepiece", tmp_path, {**given, "skip_remainder_batch": True})
    training.train(cfg, max_update=2)
    training.train(cfg)
    assert training.read(cfg)[1] == batches - 1 > 2


def test_an_epoch_is_not_resumed_with_more_batches_an_update_than_are_left(data, tmp_path):
    cfg = start(data / "sentencepiece", tmp_path, {"max_update": 3})
    training.train(cfg)
    changed = {"max_update": 4, "update_freq": [4]}
    with pytest.raises(ValueError, match="--update-freq 4 is more batches .*: lower it"):
        training.train(cfg, **changed)
    training.train(cfg, **changed, reset_dataloader=True)
    assert training.read(cfg)[1] == 4
