"""Models go to transformers and come from it, with the same logits and the same weights."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary
from fairseq.models import build_model

from pkm_fairseq.config import PKMConfig
from pkm_fairseq.huggingface import from_transformers, to_transformers
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
from tests.models.tiny import make_args

DENSE = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "max_positions": 128,
}
MEMORY = {
    "pkm_layers": [1],
    "pkm_subkeys": 12,
    "pkm_topk": 5,
    "pkm_heads": 3,
    "pkm_key_dim": 14,
}
# Checkpoints to export: the options of the model, and its classification heads' classes.
EXPORTS = {
    "dense": ({}, {}),
    "untied": ({"untie_weights_roberta": True}, {}),
    "residual": (MEMORY, {}),
    "replace": (
        {
            **{**MEMORY, "pkm_mode": "replace", "pkm_query_norm": "layer"},
            **{"pkm_weights": "sigmoid", "pkm_gate": "sigmoid"},
        },
        {"answer": 3},
    ),
    "shared": (
        {
            **{**MEMORY, "pkm_layers": [2, 0], "pkm_query_norm": "none"},
            **{"pkm_share_values": True, "pkm_value_dim": 10, "pkm_key_dropout": 0.3},
        },
        {"answer": 1},
    ),
    # So few slots that some of those found score less than nothing, which relu must cut off.
    "forms": (
        {
            **{**MEMORY, "pkm_subkeys": 2, "pkm_topk": 2, "pkm_heads": 4, "pkm_score": "cosine"},
            **{"pkm_weights": "relu", "pkm_heads_merge": "concat", "pkm_gate": "silu"},
        },
        {},
    ),
}


# In.


def make_byte_level(text, folder):
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train([str(text / "train.txt")], vocab_size=400, special_tokens=special)
    tokenizer.save_model(str(folder))


def make_unigram(text, folder):
    sentencepiece.SentencePieceTrainer.train(
        input=str(text / "train.txt"),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=300,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.vocab").unlink()


KINDS = {"Roberta": make_byte_level, "XLMRoberta": make_unigram, "Camembert": make_unigram}


@pytest.fixture(scope="module", params=KINDS)
def foreign(request, text, tmp_path_factory):
    """A folder as people have them, in several files of weights."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    KINDS[kind](text, folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": f"{kind}Tokenizer"})
    )
    config = getattr(transformers, f"{kind}Config")(**WIDTHS, type_vocab_size=1)
    config.save_pretrained(folder)
    entries = len(transformers.AutoTokenizer.from_pretrained(str(folder)))
    config.vocab_size = entries + 3
    model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    randomize(model)
    model.save_pretrained(folder, max_shard_size="50KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


@pytest.fixture(scope="module")
def imported(foreign, tmp_path_factory):
    dest = tmp_path_factory.mktemp("imported") / "model"
    call("import", foreign, "--dest", dest)
    return dest


def test_an_imported_model_cuts_text_and_answers_as_transformers_does(foreign, imported, text):
    module = from_transformers
    config = module.read_config(foreign)
    order, _ = module.read_vocabulary(foreign, config["vocab_size"], module.read_encoder(foreign))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(foreign))
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(str(foreign)).eval()
    ours = PKMRobertaModel.from_pretrained(str(imported)).eval()
    for line in sentences(text):
        tokens = ours.encode(line)
        numbers = tokenizer(line, return_tensors="pt")["input_ids"]
        assert torch.tensor(order)[tokens].tolist() == numbers[0].tolist()
        with torch.no_grad():
            expected = theirs(numbers).logits[..., order]
            actual, _ = ours.model(tokens[None])
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
        assert actual.std() > 0.1


def assert_fills_alike(hub, text, filled, symbols):
    """Compares with what transformers' pipeline gives, whose numbers have these ``symbols``."""
    expected = [(found["score"], symbols[found["token"]]) for found in filled]
    left_out = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "madeupword")
    expected = [found for found in expected if not found[1].startswith(left_out)][:50]
    ours = hub.fill_mask(text, topk=50)
    pieces = [symbol.replace("\u2581", " ") for _, symbol in expected]
    if hub.cfg.bpe._name == "gpt2":
        pieces = [hub.bpe.decode(symbol) for _, symbol in expected]
    assert [piece for *_, piece in ours] == pieces
    probabilities = torch.tensor([probability for _, probability, _ in ours])
    torch.testing.assert_close(
        probabilities, torch.tensor([score for score, _ in expected]), rtol=1e-4, atol=0
    )


def test_an_imported_model_fills_a_mask_as_transformers_does(foreign, imported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(foreign))
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(str(foreign)).eval()
    module, size = from_transformers, theirs.config.vocab_size
    order, symbols = module.read_vocabulary(foreign, size, module.read_encoder(foreign))
    fill = transformers.pipeline("fill-mask", theirs, tokenizer=tokenizer, top_k=size)
    text = "The<mask> is here."  # the tokenizer would keep a space before the mask
    ours = PKMRobertaModel.from_pretrained(str(imported))
    assert_fills_alike(ours, text, fill(text), dict(zip(order, symbols)))


@pytest.mark.parametrize("foreign", ["Roberta"], indirect=True)
def test_a_byte_level_tokenizer_goes_out_and_comes_back(imported, text, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    call("export", imported / "model.pt", "--data", imported, "--dest", out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(out))
    ours = PKMRobertaModel.from_pretrained(str(imported))
    for line in sentences(text):
        assert tokenizer(line)["input_ids"] == ours.encode(line).tolist()
    before, after = ours.encode("The").tolist(), ours.encode(" is.").tolist()
    numbers = tokenizer("The <mask> is.")["input_ids"]
    assert numbers == [*before[:-1], ours.task.mask_idx, *after[1:]]
    call("import", out, "--dest", back)
    for file in ("dict.txt", "encoder.json", "vocab.bpe"):
        assert (back / file).read_bytes() == (imported / file).read_bytes()
    assert_same_state(load_model_state(back / "model.pt"), load_model_state(imported / "model.pt"))


@pytest.fixture(scope="module")
def plain(exports):
    return exports[0]["dense"][0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "distilbert"}, "model_type distilbert is not among bert, roberta, "),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type relative_key"),
        ({"pad_token_id": 0}, "pad_token_id 0 (only 1)"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"vocab_size": 7}, "entries, config.json 7"),
        ({"num_hidden_layers": 4}, "3 encoder layers (not 4)"),
        ({"num_attention_heads": 5}, "cannot be divided by num_attention_heads 5"),
    ],
)
def test_what_fairseq_lacks_is_refused(changes, reason, plain, tmp_path):
    copy = shutil.copytree(plain, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=re.escape(reason)):
        call("import", copy, "--dest", tmp_path / "new")
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("model.safetensors", None, "model.safetensors is missing"),
        ("model.safetensors.index.json", {"weight_map": {"x": "part-2.safetensors"}}, "part-2"),
        ("model.safetensors", "half", "header"),
        ("dict.txt", None, "tokenizer"),
        ("config.json", [], "config.json holds no options"),
    ],
)
def test_files_that_are_missing_are_named(file, content, reason, plain, tmp_path):
    copy = shutil.copytree(plain, tmp_path / "copy")
    if content is None:
        (copy / file).unlink()
        (copy / "sentencepiece.bpe.model").unlink()
    else:
        (copy / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=reason):
        call("import", copy, "--dest", tmp_path / "new")


def test_a_classifier_comes_in_without_an_lm_head(plain, tmp_path):
    copy = shutil.copytree(plain, tmp_path / "copy")
    model = transformers.RobertaForSequenceClassification.from_pretrained(str(copy), num_labels=3)
    model.save_pretrained(copy)
    call("import", copy, "--dest", tmp_path / "new")
    ours = PKMRobertaModel.from_pretrained(str(tmp_path / "new"), pkm_layers=[]).eval()
    tokens = ours.encode("a real line")
    with torch.no_grad():
        expected = model.eval()(tokens[None]).logits
    actual = ours.predict("sentence_classification_head", tokens, return_logits=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


# With the kind whose symbols are not its tokens.
@pytest.mark.parametrize("foreign", ["Roberta"], indirect=True)
def test_training_starts_from_an_imported_model(imported, text, tmp_path):
    (tmp_path / "few.txt").write_text("\n".join(sentences(text)))
    run(
        *("pkm-fairseq", "prepare-text", "--train", tmp_path / "few.txt"),
        *("--valid", tmp_path / "few.txt", "--dest", tmp_path / "data", "--workers", 1),
        *("--dict", imported / "dict.txt", "--gpt2-encoder-json", imported / "encoder.json"),
        *("--gpt2-vocab-bpe", imported / "vocab.bpe"),
    )
    options = {name.replace("_", "-"): value for name, value in DENSE.items()}
    output = run(
        "fairseq-train",
        *pretraining(tmp_path / "data", tmp_path / "run", updates=2, **options),
        *flags({"arch": "pkm_roberta", "pkm-layers": 1, "pkm-subkeys": 8, "pkm-topk": 4}),
        *flags({"task": "pkm_masked_lm", "pkm-init-from": imported / "model.pt"}),
    )
    assert "made fresh: the memory of layers 1" in output
    assert len(logged(output, "loss")) == 2


# Out.

# Runs where fairseq and this project cannot be imported: writes what the folders compute.
STANDALONE = """
import json, sys
sys.modules.update(dict.fromkeys(["fairseq", "pkm_fairseq", "torchaudio"]))
import torch
from transformers import (
    AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
)
lines = json.load(open(sys.argv[1]))
tokens = torch.load(sys.argv[2])
found = {}
for folder in sys.argv[4:]:
    options = {"trust_remote_code": True}
    words, loaded = AutoModelForMaskedLM.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not any(loaded.values()), loaded
    classes = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    mask = (tokens != tokenizer.pad_token_id).long()
    words.save_pretrained(folder + "-saved")
    words = AutoModelForMaskedLM.from_pretrained(folder + "-saved", **options)
    with torch.no_grad():
        found[folder] = {
            "words": words.eval()(tokens, attention_mask=mask).logits,
            "classes": classes.eval()(tokens, attention_mask=mask).logits,
            "labels": classes.config.id2label,
            "numbers": [tokenizer(line)["input_ids"] for line in lines],
            "pair": tokenizer(*lines[:2])["input_ids"],
            "mask": tokenizer("The <mask> is here.")["input_ids"],
            "long": len(tokenizer("word " * 500, truncation=True)["input_ids"]),
            "filled": pipeline("fill-mask", words, tokenizer=tokenizer)(
                "The <mask> is here.", top_k=words.config.vocab_size
            ),
            "text": tokenizer.decode(tokenizer(lines[0])["input_ids"], skip_special_tokens=True),
        }
torch.save(found, sys.argv[3])
"""


def make_checkpoint(options, heads, data, path):
    """Writes a checkpoint of a random model and returns the model."""
    dictionary = Dictionary.load(str(data / "dict.txt"))
    dictionary.add_symbol("<mask>")
    task = SimpleNamespace(source_dictionary=dictionary, max_positions=lambda: 128)
    args = make_args(task="masked_lm", criterion="masked_lm", **DENSE, **options)
    model = build_model(args, task)
    for name, classes in heads.items():
        model.register_classification_head(name, classes)
    randomize(model)
    history = [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 3}]
    torch.save(
        {
            "args": args,
            "model": model.state_dict(),
            "optimizer_history": history,
            "extra_state": {"epoch": 1},
        },
        path,
    )
    return model.eval()


@pytest.fixture(scope="module")
def exports(data, text, tmp_path_factory):
    """Each export: its folder, the model it was made of, and what it computes elsewhere."""
    folder = tmp_path_factory.mktemp("exports")
    labels = folder / "labels"
    labels.mkdir()
    for file in ("dict.txt", "sentencepiece.bpe.model"):
        (labels / file).symlink_to(data / file)
    (labels / "label").mkdir()
    (labels / "label" / "dict.txt").write_text("yes 2\nno 1\nperhaps 1\n")
    models = {}
    for name, (options, heads) in EXPORTS.items():
        models[name] = make_checkpoint(options, heads, data, folder / f"{name}.pt")
        call(
            *("export", folder / f"{name}.pt", "--dest", folder / name),
            *("--data", labels if "answer" in heads else data),
        )
    torch.manual_seed(1)
    tokens = torch.randint(4, 200, (4, 20))
    tokens[0, 13:] = 1  # padding
    torch.save(tokens, folder / "tokens.pt")
    (folder / "lines.json").write_text(json.dumps(sentences(text)))
    inputs = [folder / name for name in ("lines.json", "tokens.pt", "found.pt", *EXPORTS)]
    subprocess.run(
        [sys.executable, "-c", STANDALONE, *map(str, inputs)],
        cwd=folder,
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    found = torch.load(folder / "found.pt")
    return {
        name: (folder / name, models[name], found[str(folder / name)]) for name in EXPORTS
    }, tokens


@pytest.mark.parametrize("name", EXPORTS)
def test_an_exported_model_computes_the_same_without_fairseq(name, exports):
    found, tokens = exports
    _, model, theirs = found[name]
    real = tokens != 1
    with torch.no_grad():
        words, _ = model(tokens)
        torch.testing.assert_close(theirs["words"][real], words[real], rtol=0, atol=1e-5)
        assert words.std() > 0.1
        for head in EXPORTS[name][1]:
            classes, _ = model(tokens, features_only=True, classification_head_name=head)
            torch.testing.assert_close(theirs["classes"], classes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EXPORTS)
def test_an_exported_model_fills_a_mask_as_ours_does(name, exports, data):
    folder, _, found = exports[0][name]
    ours = PKMRobertaModel.from_pretrained(str(folder.parent), f"{name}.pt", str(data))
    symbols = ours.task.source_dictionary.symbols
    assert_fills_alike(ours, "The <mask> is here.", found["filled"], symbols)


@pytest.mark.parametrize("name", EXPORTS)
def test_weights_come_back_as_they_were(name, exports, tmp_path):
    folder, model, _ = exports[0][name]
    call("import", folder, "--dest", tmp_path / "back")
    expected = {
        key.replace("answer", "sentence_classification_head"): tensor
        for key, tensor in model.state_dict().items()
        if not key.endswith(".version")
    }
    assert_same_state(load_model_state(tmp_path / "back/model.pt"), expected)


def test_an_exported_tokenizer_cuts_text_as_fairseq_does(exports, data, text):
    _, _, found = exports[0]["residual"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data / "sentencepiece.bpe.model"))
    dictionary = Dictionary.load(str(data / "dict.txt"))

    def encode(line):
        return [dictionary.index(piece) for piece in pieces.encode(line, out_type=str)]

    lines = sentences(text)
    numbers = [encode(line) for line in lines]
    assert found["numbers"] == [[0, *line, 2] for line in numbers]
    assert found["pair"] == [0, *numbers[0], 2, 2, *numbers[1], 2]
    assert found["mask"] == [0, *encode("The"), len(dictionary), *encode("is here."), 2]
    assert found["text"] == lines[0]
    assert found["long"] == DENSE["max_positions"]


def test_a_model_without_a_tokenizer_comes_back_with_its_dictionary(exports, tmp_path):
    folder, model, _ = exports[0]["dense"]
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(folder / "dict.txt", data)
    checkpoint = shutil.copy(folder.with_suffix(".pt"), data)
    call("export", checkpoint, "--data", data, "--dest", tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer_config.json").exists()
    call("import", tmp_path / "out", "--dest", tmp_path / "back")
    back, there = (Dictionary.load(str(of / "dict.txt")) for of in (tmp_path / "back", data))
    assert [*back.symbols, "<mask>"] == there.symbols
    state = load_model_state(tmp_path / "back/model.pt")
    expected = {key: value for key, value in model.state_dict().items() if key in state}
    assert_same_state(state, expected)


def test_labels_are_named_as_in_the_data(exports):
    assert exports[0]["replace"][2]["labels"] == {0: "yes", 1: "no", 2: "perhaps"}


def test_data_of_other_classes_are_refused(exports, data, tmp_path):
    checkpoint = exports[0]["replace"][0].with_suffix(".pt")
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "dict.txt").write_text("yes 2\nno 1\nmaybe 1\nperhaps 1\n")
    shutil.copy(data / "dict.txt", tmp_path)
    with pytest.raises(ValueError, match="--data has 4 classes .*, but the .* head has 3: name"):
        call("export", checkpoint, "--data", tmp_path, "--dest", tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activation_fn": "relu"}, "--activation-fn relu (only gelu)"),
        ({"pooler_activation_fn": "relu"}, "--pooler-activation-fn relu (only tanh)"),
        (
            {**MEMORY, "pkm_table_dtype": "int8"},
            "--pkm-table-dtype int8 cannot be exported (only model)",
        ),
    ],
)
def test_what_transformers_lacks_is_refused(options, reason, data, tmp_path):
    make_checkpoint(options, {}, data, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=re.escape(reason)):
        call(*("export", tmp_path / "model.pt", "--data", data, "--dest", tmp_path / "new"))
    assert not list(tmp_path.glob("new*"))


def test_every_memory_option_is_modeled_or_of_training_alone_or_refused():
    module = to_transformers
    options = {name for name in vars(PKMConfig()) if name.startswith("pkm_")}
    assert options >= module.MODELED | module.NOT_OF_MEMORY
    assert not module.MODELED & module.NOT_OF_MEMORY


def test_the_model_card_has_the_figures_of_a_report(data, exports, tmp_path):
    folder = exports[0]["residual"][0]
    checkpoint = folder.with_suffix(".pt")
    figures = {"pkm_top1_usage": 0.93125, "pkm_kl": 0.25}
    entries = [
        {"file": "another.pt", "figures": {"pkm_kl": 9}, "updates": 1},
        {"file": str(checkpoint), "figures": figures, "updates": 40},
    ]
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"data": "bin", "subset": "valid", "checkpoints": entries}))
    arguments = ("--data", data, "--report", report)
    call("export", checkpoint, "--dest", tmp_path / "new", *arguments)
    card = (tmp_path / "new" / "README.md").read_text()
    assert "| pkm_top1_usage | 0.93125 |\n| pkm_kl | 0.25 |" in card
    assert "144 slots" in card
    assert "valid set of bin, after 40 updates" in card
    assert "pkm_kl" not in (folder / "README.md").read_text()
    dense = folder.parent / "dense.pt"
    with pytest.raises(ValueError, match="has no figures of"):
        call("export", dense, "--dest", tmp_path / "other", *arguments)
