"""Turns a model folder of Hugging Face transformers into a checkpoint of fairseq."""

import json
import shutil
from argparse import Namespace

import torch
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from fairseq.models.roberta.model import base_architecture
from safetensors.torch import load_file

from pkm_fairseq.checkpoints.models import stand_in_task
from pkm_fairseq.config import PKMConfig, flag
from pkm_fairseq.models import PKMRobertaModel
from pkm_fairseq.refusals import RefusalError

from .bert import as_roberta
from .fast_tokenizer import dictionary_name
from .names import ENCODER, to_fairseq

HEAD_NAME = "sentence_classification_head"  # of fairseq's sentence_prediction
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "pkm_roberta")
# What fairseq's RoBERTa is; transformers takes the same where a folder does not say.
REQUIRED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
DEFAULT_EPS = 1e-12  # of transformers
# Only in transformers: neither is used where the output is a word or a class.
IGNORED = ("roberta.embeddings.position_ids", "roberta.pooler.", "lm_head.decoder.bias")
TYPES = "roberta.embeddings.token_type_embeddings.weight"
POSITIONS = "roberta.embeddings.position_embeddings.weight"
EMBEDDINGS = "roberta.embeddings.word_embeddings.weight"
DICTIONARY_KEYS = (EMBEDDINGS, "lm_head.decoder.weight", "lm_head.bias")


def convert(folder, dest):
    """Writes the checkpoint and the files of its text to the folder ``dest``."""
    config = read_config(folder)
    weights = load_weights(folder, config)
    encoder = read_encoder(folder)
    order, symbols = read_vocabulary(folder, config["vocab_size"], encoder)
    dictionary = Dictionary()
    for symbol in symbols[dictionary.nspecial : -1]:
        dictionary.add_symbol(symbol)
    if len(dictionary) != len(symbols) - 1:
        raise RefusalError("two entries of the vocabulary are alike")
    dictionary.save(str(dest / "dict.txt"))
    encoder.write(dict(zip(order, symbols)), dest)
    state = make_state(weights, order, config)
    args = make_args(config, weights)
    # Refuses what does not fit together, before anything is trained from it.
    PKMRobertaModel.build_model(args, stand_in_task(state)).load_state_dict(dict(state))
    checkpoint = {
        "args": args,
        "model": state,
        # What fairseq asks of every checkpoint, here of a training that has not begun.
        "optimizer_history": [
            {"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "extra_state": {"epoch": 0},
    }
    torch.save(checkpoint, dest / "model.pt")


def read_config(folder):
    """Returns the folder's config.json.

    Raises:
        RefusalError: if fairseq has no such model.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise RefusalError("config.json holds no options")
    given = config.get("model_type")
    if given not in MODEL_TYPES:
        raise RefusalError(f"model_type {given} is not among {', '.join(MODEL_TYPES)}")
    # A RoBERTa counts its positions from the padding index.
    required = REQUIRED if given == "bert" else {**REQUIRED, "pad_token_id": 1}
    for name, needed in required.items():
        if config.get(name, needed) != needed:
            raise RefusalError(f"fairseq has no {name} {config[name]} (only {needed})")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        raise RefusalError(f"hidden_size {width} cannot be divided by num_attention_heads {heads}")
    return config


def load_weights(folder, config):
    """Returns the tensors of a folder, of one file or several, as a RoBERTa names them."""
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.is_file():
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    weights = {}
    for name in sorted(files):
        if not (folder / name).is_file():
            raise RefusalError(f"{name} is missing (of weights, only safetensors are read)")
        weights.update(load_file(folder / name))
    if config["model_type"] == "bert":
        return as_roberta(weights, print)
    if not any(name.startswith("roberta.") for name in weights):  # saved without a head
        weights = {f"roberta.{name}": tensor for name, tensor in weights.items()}
    return weights


class Sentencepiece:
    """The encoder of XLM-R, of CamemBERT and of what prepare.py makes."""

    def __init__(self, file):
        self.file = file

    def name(self, token):
        """Returns what a token is called in fairseq's dictionary."""
        return token

    def write(self, symbols, dest):
        """Writes fairseq's files of the encoder."""
        shutil.copy(self.file, dest / "sentencepiece.bpe.model")


class ByteLevel:
    """GPT-2's encoder, whose tokens are numbers in fairseq's dictionary.

    GPT-2 numbers the bytes first, then what each merge makes; so do these, which lets the published
    encoder.json and dict.txt be used with a published model.

    Args:
        vocabulary: a dict from token to its row in the embeddings.
        merges: pairs of tokens.
    """

    def __init__(self, vocabulary, merges):
        self.vocabulary = vocabulary
        self.merges = merges
        tokens = [*bytes_to_unicode().values(), *map("".join, merges), "<|endoftext|>"]
        self.numbers = {}
        for number, token in enumerate(tokens):
            self.numbers.setdefault(token, number)

    def name(self, token):
        """Returns what a token is called in fairseq's dictionary."""
        return str(self.numbers.get(token, token))

    def write(self, symbols, dest):
        """Writes fairseq's files of the encoder; ``symbols`` are the dictionary's, by row."""
        # A dict.txt that came with the model may number its tokens in another way.
        known = {token: symbols[row] for token, row in self.vocabulary.items()}
        numbers = {token: int(symbol) for token, symbol in known.items() if symbol.isdigit()}
        encoder = json.dumps({**self.numbers, **numbers})
        (dest / "encoder.json").write_text(encoder, encoding="utf-8")
        merges = "".join(f"{first} {second}\n" for first, second in self.merges)
        (dest / "vocab.bpe").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


class FastTokenizer:
    """Any other encoder, by the ``tokenizer.json`` of a fast tokenizer.

    Args:
        tokenizer: of the library ``tokenizers``.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def name(self, token):
        """Returns what a token is called in fairseq's dictionary."""
        return dictionary_name(token, self.tokenizer.token_to_id(token))

    def write(self, symbols, dest):
        """Writes fairseq's file of the encoder."""
        self.tokenizer.save(str(dest / "tokenizer.json"))


class NoEncoder:
    """That of a folder that was exported without one, only its dictionary."""

    def write(self, symbols, dest):
        """Says that there is nothing to write."""
        print("no tokenizer in the folder: name its files to the commands that cut text")


def read_encoder(folder):
    """Returns the encoder of a folder: ``Sentencepiece``, ``ByteLevel`` or ``FastTokenizer``."""
    pieces = folder / "sentencepiece.bpe.model"
    if pieces.is_file():
        return Sentencepiece(pieces)
    listed = folder / "tokenizer.json"
    content = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
    elif is_byte_level(content):
        vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    elif (folder / "dict.txt").is_file() and not content:
        return NoEncoder()
    else:
        return FastTokenizer(load_tokenizer(folder).backend_tokenizer)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return ByteLevel(vocabulary, pairs)


def is_byte_level(content):
    """Tells whether a ``tokenizer.json`` cuts text as GPT-2 does."""
    before = content.get("pre_tokenizer") or {}
    return content.get("model", {}).get("type") == "BPE" and before.get("type") == "ByteLevel"


def load_tokenizer(folder):
    """Returns the tokenizer of a folder, as transformers loads it.

    Raises:
        RefusalError: if there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RefusalError(
            f"it has none of sentencepiece.bpe.model, vocab.json and tokenizer.json that can be "
            f"read: {reason}"
        ) from error
    if not tokenizer.is_fast:
        raise RefusalError("tokenizer.json is missing: save the folder's fast tokenizer there")
    return tokenizer


def read_vocabulary(folder, size, encoder):
    """Finds out which row of the embeddings is which symbol of a dictionary of fairseq.

    Returns:
        The rows in fairseq's order, in which <s>, <pad>, </s> and <unk> come first and <mask>
        last, and the symbols in that order.
    """
    listed = folder / "dict.txt"
    if listed.is_file():
        dictionary = Dictionary.load(str(listed))
        dictionary.add_symbol("<mask>")
        if len(dictionary) != size or dictionary.symbols[-1] != "<mask>":
            raise RefusalError(f"dict.txt has {len(dictionary)} entries, config.json {size}")
        return list(range(size)), dictionary.symbols
    tokenizer = load_tokenizer(folder)
    first = {
        "<s>": tokenizer.cls_token_id,
        "<pad>": tokenizer.pad_token_id,
        "</s>": tokenizer.sep_token_id,
        "<unk>": tokenizer.unk_token_id,
    }
    special = {*first.values(), tokenizer.mask_token_id}
    if None in special or len(special) < 5:
        raise RefusalError("the tokenizer lacks one of cls, pad, sep, unk and mask")
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(tokens) >= size:
        raise RefusalError(f"the tokenizer has {max(tokens) + 1} entries, config.json {size}")
    rest = [row for row in range(size) if row not in special]
    names = [encoder.name(tokens.get(row, f"madeupword{row}")) for row in rest]
    return [*first.values(), *rest, tokenizer.mask_token_id], [*first, *names, "<mask>"]


def make_state(weights, order, config):
    """Returns the state dict of fairseq's model; the dictionary's entries come in ``order``."""
    weights = dict(weights)
    if "lm_head.decoder.bias" in weights:  # the one that transformers adds
        weights["lm_head.bias"] = weights["lm_head.decoder.bias"]
    if config.get("tie_word_embeddings", True) and "lm_head.bias" in weights:
        weights["lm_head.decoder.weight"] = weights[EMBEDDINGS]
    types = weights.pop(TYPES)
    if types.any():
        # fairseq has no token types: the first, which all tokens have, goes to the positions.
        weights[POSITIONS] = weights[POSITIONS] + types[0]
    state = {}
    for name, tensor in weights.items():
        if name.startswith(IGNORED):
            continue
        new = to_fairseq(name, HEAD_NAME)
        if new is None:
            raise RefusalError(f"fairseq's RoBERTa has no place for {name}")
        state[new] = tensor[order] if name in DICTIONARY_KEYS else tensor
    if config.get("pkm_share_values"):
        layers = [f"{ENCODER}layers.{layer}.pkm.values.weight" for layer in config["pkm_layers"]]
        (table,) = (state[name] for name in layers if name in state)
        state.update(dict.fromkeys(layers, table))
    return state


def make_args(config, weights):
    """Returns the options with which fairseq builds the model."""
    memory = {name: value for name, value in config.items() if name.startswith("pkm_")}
    eps = config.get("layer_norm_eps", DEFAULT_EPS)
    if eps != PKMConfig().pkm_layer_norm_eps:
        print(f"to go on from it, give {flag('pkm_layer_norm_eps')} {eps}")
        memory["pkm_layer_norm_eps"] = eps
    dropout = config.get("hidden_dropout_prob", 0.1)
    classifier_dropout = config.get("classifier_dropout")
    args = Namespace(
        arch="pkm_roberta" if memory else "roberta",
        task="masked_lm",
        criterion="masked_lm",
        encoder_layers=config["num_hidden_layers"],
        encoder_embed_dim=config["hidden_size"],
        encoder_ffn_embed_dim=config["intermediate_size"],
        encoder_attention_heads=config["num_attention_heads"],
        dropout=dropout,
        attention_dropout=config.get("attention_probs_dropout_prob", 0.1),
        pooler_dropout=dropout if classifier_dropout is None else classifier_dropout,
        # fairseq keeps two positions for itself and counts without them.
        max_positions=len(weights[POSITIONS]) - 2,
        untie_weights_roberta=not config.get("tie_word_embeddings", True),
        **memory,
    )
    base_architecture(args)
    return args
