"""Trainings in this process, through the functions that fairseq-train calls, on little data."""

import copy
import random

import sentencepiece
import torch
from fairseq import checkpoint_utils, options
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import make_builder
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, omegaconf_no_object_check
from fairseq.distributed import utils as distributed_utils
from fairseq_cli import train as command
from omegaconf import OmegaConf

MODEL = {
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 16,
    "encoder_attention_heads": 2,
}
MEMORY = {"pkm_layers": 1, "pkm_subkeys": 6, "pkm_topk": 4, "pkm_heads": 2, "pkm_key_dim": 4}
ALWAYS = {
    "arch": "pkm_roberta",
    **MODEL,
    **MEMORY,
    "cpu": True,
    "batch_size": 8,
    "lr": 0.01,
    "max_update": 2,
    "num_workers": 0,
    "required_batch_size_multiple": 1,
    "optimizer": "pkm_adam",
    "log_format": "none",
    "skip_invalid_size_inputs_valid_test": True,
}
PRETRAINING = {
    "task": "pkm_masked_lm",
    "criterion": "pkm_masked_lm",
    "tokens_per_sample": 16,
    "sample_break_mode": "complete",
}
FINETUNING = {
    "task": "pkm_sentence_prediction",
    "criterion": "pkm_sentence_prediction",
    "num_classes": 2,
    "max_positions": 40,
    "init_token": 0,
    "separator_token": 2,
}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
ROWS = {"train": 48, "valid": 12}


def flags(data, save_dir, given):
    """Returns the arguments of a training with fairseq-train.

    Args:
        data: folder of data.
        save_dir: folder for its checkpoints.
        given: the options; True stands for a flag without a value, False for what a YAML alone can
            switch off, None for what is not given.
    """
    words = [str(data), "--save-dir", str(save_dir)]
    for name, value in {**ALWAYS, **given}.items():
        if value is not None and value is not False and name not in ONLY_IN_YAML:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def parse(data, save_dir, given):
    """Returns the options of a training as fairseq-train reads them; arguments as of ``flags``."""
    args = options.parse_args_and_arch(
        options.get_training_parser(), input_args=flags(data, save_dir, given)
    )
    for name, value in given.items():
        if value is False or name in ONLY_IN_YAML:
            setattr(args, name, value)
    return convert_namespace_to_omegaconf(args)


# Of RoBERTa, without a flag.
ONLY_IN_YAML = {"adaptive_input", "no_token_positional_embeddings"}


def change(cfg, given):
    """Returns the options of a training with others in the place of some, wherever they stand."""
    cfg = copy.deepcopy(cfg)
    with omegaconf_no_object_check():
        cfg.model = copy.deepcopy(cfg.model)  # a namespace, of which OmegaConf makes no copy
    for name, value in given.items():
        for part in cfg.values():
            if OmegaConf.is_config(part) and name in part:
                part[name] = value
        setattr(cfg.model, name, value)
    return cfg


def train(cfg, **changed):
    """Trains as fairseq-train does.

    Args:
        cfg: what ``parse`` returned; it stays as it is.
        changed: options in whose place others stand.
    """
    # What fairseq keeps in its functions from one training to the next of the same process.
    for function in (checkpoint_utils.save_checkpoint, command.should_stop_early):
        for name in ("best", "num_runs"):
            vars(function).pop(name, None)
    distributed_utils.call_main(change(cfg, changed), command.main)


def read(cfg, name="checkpoint_last.pt"):
    """Returns a checkpoint of a training and the number of updates that it has seen."""
    checkpoint = torch.load(f"{cfg.checkpoint.save_dir}/{name}", weights_only=True)
    return checkpoint, checkpoint["optimizer_history"][-1]["num_updates"]


def draw_lines(count, seed=1):
    """Returns lines of words, each tenth empty as between documents."""
    draws = random.Random(seed)
    return [
        "" if row % 10 == 9 else " ".join(draws.choices(WORDS, k=draws.randint(3, 8)))
        for row in range(count)
    ]


def make_sentencepiece(folder):
    """Trains a model that cuts the words into pieces, and returns its path."""
    prefix = folder / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(draw_lines(200)),
        model_prefix=str(prefix),
        vocab_size=24,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


def write_set(prefix, dictionary, lines):
    """Writes a set of tokenised lines as fairseq-preprocess does."""
    builder = make_builder(f"{prefix}.bin", "mmap", vocab_size=len(dictionary))
    for line in lines:
        builder.add_item(dictionary.encode_line(line, add_if_not_exist=False).long())
    builder.finalize(f"{prefix}.idx")


def make_text(folder, encode, seed=1):
    """Writes text to pretrain on.

    Args:
        folder: to make.
        encode: cuts a line into its tokens, written with spaces between them.
        seed: of the text.
    """
    folder.mkdir()
    lines = {name: [*map(encode, draw_lines(rows, seed))] for name, rows in ROWS.items()}
    dictionary = Dictionary()
    # Of any seed, so that all folders have the same tokens.
    for line in map(encode, draw_lines(200)):
        dictionary.encode_line(line)
    dictionary.save(str(folder / "dict.txt"))
    for name, tokens in lines.items():
        write_set(folder / name, dictionary, tokens)


def make_sentences(folder):
    """Writes pairs of sentences with a class and a score to finetune on."""
    words, classes = Dictionary(), Dictionary()
    for word in WORDS:
        words.add_symbol(word)
    for name in "01":
        classes.add_symbol(name)
    for part, dictionary in (("input0", words), ("input1", words), ("label", classes)):
        (folder / part).mkdir(parents=True)
        dictionary.save(str(folder / part / "dict.txt"))
    for name, rows in ROWS.items():
        for seed, part in enumerate(("input0", "input1")):
            lines = draw_lines(2 * rows, seed)
            write_set(folder / part / name, words, [line for line in lines if line][:rows])
        labels = [str(row % 2) for row in range(rows)]
        builder = make_builder(str(folder / "label" / f"{name}.bin"), "mmap")
        for label in labels:
            builder.add_item(classes.encode_line(label).long())
        builder.finalize(str(folder / "label" / f"{name}.idx"))
        (folder / "label" / f"{name}.label").write_text("".join(f"0.{i}\n" for i in labels))
