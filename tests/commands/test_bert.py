"""A BERT of transformers comes in, computes the same, trains, and goes out as a RoBERTa."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pkm_fairseq.models import PKMRobertaModel
from tests.commands.commands import (
    assert_same_state,
    call,
    flags,
    load_model_state,
    logged,
    pretraining,
    run,
)
from tests.commands.huggingface import WIDTHS, randomize, sentences, transformers

CLASSES = 3
KINDS = ("BertModel", "BertForPreTraining", "BertForSequenceClassification")


@pytest.fixture(scope="module")
def folders(text, tmp_path_factory):
    """Folders as people have them, by the class of transformers that saved each."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing

    root = tmp_path_factory.mktemp("berts")
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train(str(text / "train.txt"), vocab_size=400, show_progress=False)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = BertProcessing(*ends)
    # As sentence-transformers ships it.
    tokenizer.enable_padding(length=60)
    tokenizer.enable_truncation(max_length=60)
    config = transformers.BertConfig(
        **{**WIDTHS, "layer_norm_eps": 1e-12, "vocab_size": tokenizer.get_vocab_size() + 3},
        num_labels=CLASSES,
    )
    for kind in KINDS:
        model = getattr(transformers, kind)(config)
        randomize(model)
        model.save_pretrained(root / kind)
        tokenizer.save(str(root / kind / "tokenizer.json"))
    return root


@pytest.fixture(scope="module")
def imported(folders):
    for kind in KINDS:
        call("import", folders / kind, "--dest", folders / f"{kind}.imported")
    return {kind: folders / f"{kind}.imported" for kind in KINDS}


def batch_of(lines, ours, tokenizer):
    """Returns the same padded batch for both, and where its tokens are."""
    theirs = tokenizer(lines, padding=True, return_tensors="pt")
    tokens = [ours.encode(line) for line in lines]
    batch = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=1)
    assert torch.equal(batch.ne(1), theirs["attention_mask"].bool())
    assert not batch.ne(1).all()
    return batch, theirs


@pytest.fixture(scope="module")
def computed(folders, imported, text):
    """What each model and the one it was made from compute for the same real sentences."""
    found = {}
    for kind in KINDS:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folders / kind / "tokenizer.json"), pad_token="[PAD]"
        )
        tokenizer.backend_tokenizer.no_padding()
        ours = PKMRobertaModel.from_pretrained(str(imported[kind])).eval()
        tokens, theirs = batch_of(sentences(text), ours, tokenizer)
        model = getattr(transformers, kind).from_pretrained(str(folders / kind)).eval()
        with torch.no_grad():
            output = model(**theirs, output_hidden_states=True)
        found[kind] = ours, tokens, output
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_the_same_in_padded_batches(kind, computed):
    ours, tokens, output = computed[kind]
    with torch.no_grad():
        states = ours.extract_features(tokens, return_all_hiddens=True)
    real = tokens.ne(1)
    for actual, expected in zip(states, output.hidden_states):
        torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-5)
    assert states[-1][real].std() > 0.1


def test_an_lm_head_and_a_classifier_come_in(computed):
    ours, tokens, output = computed["BertForPreTraining"]
    with torch.no_grad():
        words, _ = ours.model(tokens)
    real = tokens.ne(1)
    # [PAD], [UNK], [CLS], [SEP], [MASK] come first in the folder; fairseq has <mask> last.
    rows = [2, 0, 3, 1, *range(5, words.shape[-1]), 4]
    expected = output.prediction_logits[..., rows]
    torch.testing.assert_close(words[real], expected[real], rtol=0, atol=1e-5)

    ours, tokens, output = computed["BertForSequenceClassification"]
    with torch.no_grad():
        logits = ours.predict("sentence_classification_head", tokens, return_logits=True)
    torch.testing.assert_close(logits, output.logits, rtol=0, atol=1e-5)
    assert logits.shape[-1] == CLASSES


def test_a_head_that_is_made_begins_near_all_words_alike(computed):
    ours, tokens, _ = computed["BertModel"]
    with torch.no_grad():
        logits, _ = ours.model(tokens)
    real = tokens.ne(1)
    assert 0.5 < logits[real].std(-1).mean() < 2
    surprise = torch.logsumexp(logits[real], -1) - logits[real].mean(-1)
    assert surprise.mean() < torch.tensor(logits.shape[-1]).log() + 2
    head = ours.model.encoder.lm_head
    assert head.weight is ours.model.encoder.sentence_encoder.embed_tokens.weight


def test_names_of_the_first_checkpoints_come_in(folders, imported, tmp_path):
    copy = shutil.copytree(folders / "BertForPreTraining", tmp_path / "copy")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = {}
    for name, tensor in load_file(copy / "model.safetensors").items():
        for new_end, old_end in old.items():
            name = name.replace(new_end, old_end)
        weights[name] = tensor
    assert any(name.endswith(".gamma") for name in weights)
    save_file(weights, copy / "model.safetensors")
    call("import", copy, "--dest", tmp_path / "new")
    expected = load_model_state(imported["BertForPreTraining"] / "model.pt")
    assert_same_state(load_model_state(tmp_path / "new/model.pt"), expected)


def test_it_says_what_is_lost_and_made(folders, tmp_path, capsys):
    call("import", folders / "BertModel", "--dest", tmp_path / "new")
    said = capsys.readouterr().out
    assert "token type 0 is added to the positions; the other types are lost" in said
    assert "the folder has no LM head: one is made" in said
    assert "give --pkm-layer-norm-eps 1e-12" in said


def test_it_goes_out_as_a_roberta_with_its_tokenizer_and_comes_back(
    imported, computed, text, tmp_path
):
    folder = imported["BertForPreTraining"]
    call("export", folder / "model.pt", "--data", folder, "--dest", tmp_path / "out")
    ours = computed["BertForPreTraining"][0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    model = transformers.AutoModelForMaskedLM.from_pretrained(str(tmp_path / "out")).eval()
    assert type(model).__name__ == "RobertaForMaskedLM"
    for line in sentences(text):
        numbers = tokenizer(line, return_tensors="pt")["input_ids"]
        assert numbers[0].tolist() == ours.encode(line).tolist()
        with torch.no_grad():
            actual, expected = model(numbers).logits, ours.model(numbers)[0]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    first, second = sentences(text)[:2]
    assert tokenizer(first, second)["input_ids"] == ours.encode(first, second).tolist()
    assert len(tokenizer("word " * 500, truncation=True)["input_ids"]) == 130
    call("import", tmp_path / "out", "--dest", tmp_path / "back")
    for file in ("dict.txt", "tokenizer.json"):
        assert (tmp_path / "back" / file).exists()
    assert (tmp_path / "back/dict.txt").read_bytes() == (folder / "dict.txt").read_bytes()
    state = load_model_state(folder / "model.pt")
    assert_same_state(load_model_state(tmp_path / "back/model.pt"), state)
    again = PKMRobertaModel.from_pretrained(str(tmp_path / "back"))
    assert again.encode(first).tolist() == ours.encode(first).tolist()


def test_training_goes_on_from_it_with_a_memory(imported, text, tmp_path):
    folder = imported["BertModel"]
    (tmp_path / "few.txt").write_text("\n".join(sentences(text)))
    run(
        *("pkm-fairseq", "prepare-text", "--train", tmp_path / "few.txt"),
        *("--valid", tmp_path / "few.txt", "--dest", tmp_path / "data", "--workers", 1),
        *("--dict", folder / "dict.txt", "--tokenizer-json", folder / "tokenizer.json"),
    )
    sizes = {"encoder-embed-dim": 32, "encoder-ffn-embed-dim": 64, "encoder-layers": 3}
    options = [
        *pretraining(tmp_path / "data", tmp_path / "run", updates=2, **sizes),
        *flags({"encoder-attention-heads": 2, "max-positions": 130, "arch": "pkm_roberta"}),
        *flags({"pkm-layers": 1, "pkm-subkeys": 8, "pkm-topk": 4, "task": "pkm_masked_lm"}),
        *flags({"pkm-init-from": folder / "model.pt"}),
    ]
    output = run("fairseq-train", *options, "--pkm-layer-norm-eps", "1e-12")
    assert "made fresh: the memory of layers 1" in output
    assert len(logged(output, "loss")) == 2
    output = run("fairseq-train", *options, "--save-dir", tmp_path / "other", fails=True)
    assert "model.pt has --pkm-layer-norm-eps 1e-12 (not 1e-05)" in output
    ours = PKMRobertaModel.from_pretrained(
        str(tmp_path / "run"), "checkpoint_last.pt", str(tmp_path / "data")
    )
    assert ours.decode(ours.encode("the lines")) == "the lines"
