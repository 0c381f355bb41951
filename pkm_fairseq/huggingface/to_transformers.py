"""Writes a checkpoint, with or without memory, as a model folder of Hugging Face transformers."""

import json
import shutil
from pathlib import Path

from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.data import Dictionary
from jinja2 import Environment, FileSystemLoader
from safetensors.torch import save_file

from pkm_fairseq.checkpoints.models import stand_in_task
from pkm_fairseq.config import PKMConfig, flag
from pkm_fairseq.models import PKMRobertaModel
from pkm_fairseq.models.hub import find_bpe, make_ours
from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.text.dictionaries import class_names
from pkm_fairseq.text.encoders import BPE_FILES

from .names import HEAD, to_transformers

HERE = Path(__file__).parent
# The memory options that modeling_pkm_roberta.py acts on.
MODELED = {
    "pkm_layers",
    "pkm_mode",
    "pkm_subkeys",
    "pkm_heads",
    "pkm_topk",
    "pkm_key_dim",
    "pkm_value_dim",
    "pkm_query_norm",
    "pkm_score",
    "pkm_weights",
    "pkm_heads_merge",
    "pkm_gate",
    "pkm_share_values",
}
# Those that decide only how a memory starts and is trained, and transformers' layer_norm_eps.
NOT_OF_MEMORY = {
    "pkm_layer_norm_eps",
    "pkm_sync_query_norm",
    "pkm_query_dropout",
    "pkm_key_dropout",
    "pkm_value_dropout",
    "pkm_value_init",
    "pkm_grad",
}
# What transformers' RoBERTa is.
REQUIRED = {
    "encoder_normalize_before": False,
    "layernorm_embedding": True,
    "encoder_learned_pos": True,
    "no_token_positional_embeddings": False,
    "no_scale_embedding": True,
    "activation_fn": "gelu",
    "pooler_activation_fn": "tanh",
    "spectral_norm_classification_head": False,
}


def export(args, dest):
    """Writes all files to the folder ``dest``."""
    checkpoint = load_checkpoint_to_cpu(str(args.checkpoint))
    model = load_model(checkpoint)
    dictionary, labels = load_dictionaries(args.data)
    state = model.state_dict()
    head = choose_head(state, args.head)
    weights = convert(state, head, model.args.untie_weights_roberta)
    rows = len(weights["roberta.embeddings.word_embeddings.weight"])
    if len(dictionary) != rows:
        raise RefusalError(
            f"--data {args.data} has a dictionary of {len(dictionary)} entries, "
            f"but the checkpoint has {rows}: name the data it was trained on"
        )
    figures = read_figures(args.report, args.checkpoint) if args.report else {}
    config = make_config(model.args, weights, labels)

    save_file(weights, dest / "model.safetensors", metadata={"format": "pt"})
    write_json(dest / "config.json", config)
    if "auto_map" in config:
        shutil.copy(HERE / "modeling_pkm_roberta.py", dest)
    # Without one, sentence_prediction puts none between two sentences but the first one's end.
    trained = checkpoint["cfg"].task or {}
    separators = 1 if trained.get("separator_token", 2) is None else 2
    tokenizer = write_tokenizer(args, dictionary, dest, separators, model.args.max_positions)
    card = Environment(loader=FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True)
    values = {"config": config, "figures": figures, "name": args.dest.name, "tokenizer": tokenizer}
    (dest / "README.md").write_text(card.get_template("model_card.md").render(values))


def load_model(checkpoint):
    """Returns a checkpoint's model, its tensors named as fairseq names them today.

    Raises:
        RefusalError: if it is of a model that transformers lacks.
    """
    trained = checkpoint["cfg"].model
    make_ours(trained, {"load_checkpoint_heads": True})
    model = PKMRobertaModel.build_model(trained, stand_in_task(checkpoint["model"]))
    for name, needed in REQUIRED.items():
        given = getattr(model.args, name)
        if given != needed:
            raise RefusalError(f"transformers' RoBERTa has no {flag(name)} {given} (only {needed})")
    default = PKMConfig()
    for name, given in vars(PKMConfig.from_args(model.args)).items():
        only = getattr(default, name)
        if name not in MODELED | NOT_OF_MEMORY and given != only:
            raise RefusalError(f"{flag(name)} {given} cannot be exported (only {only})")
    model.load_state_dict(checkpoint["model"])
    return model


def load_dictionaries(data):
    """Returns the dictionary of ``data``, <mask> included, and its labels, maybe none."""
    folder = data / "input0" if (data / "input0").is_dir() else data
    if not (folder / "dict.txt").is_file():
        raise RefusalError(f"--data {data} has no dict.txt")
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    dictionary.add_symbol("<mask>")
    labels = []
    if (data / "label" / "dict.txt").is_file():
        labels = class_names(Dictionary.load(str(data / "label" / "dict.txt")))
    return dictionary, labels


def choose_head(state, wanted):
    """Returns the name of the classification head to write, None where there is none."""
    heads = sorted({name.split(".")[1] for name in state if name.startswith(HEAD)})
    if wanted in heads or not (wanted or heads):
        return wanted
    if wanted or len(heads) > 1:
        raise RefusalError(
            f"--head {wanted} is none of the checkpoint's: {', '.join(heads) or '-'}"
        )
    return heads[0]


def convert(state, head, untied):
    """Returns the tensors of ``state`` as transformers names them, each once."""
    weights, seen = {}, set()
    for name, tensor in state.items():
        new = to_transformers(name, head)
        if new is None:
            if name.startswith(HEAD) or name.endswith(".version"):
                continue
            raise RefusalError(f"transformers' RoBERTa has no place for {name}")
        # The embeddings are the LM head's, too, and memories may share their values.
        if tensor.data_ptr() not in seen:
            weights[new] = tensor.detach().contiguous()
        seen.add(tensor.data_ptr())
    if untied:
        weights["lm_head.decoder.bias"] = weights["lm_head.bias"].clone()
    embeddings = weights["roberta.embeddings.word_embeddings.weight"]
    weights["roberta.embeddings.token_type_embeddings.weight"] = embeddings.new_zeros(
        1, embeddings.shape[1]
    )
    return weights


def make_config(options, weights, labels):
    """Returns what config.json says, of a model with fairseq's ``options``."""
    config = {
        "model_type": "roberta",
        "architectures": ["RobertaForMaskedLM"],
        "vocab_size": len(weights["roberta.embeddings.word_embeddings.weight"]),
        "hidden_size": options.encoder_embed_dim,
        "num_hidden_layers": options.encoder_layers,
        "num_attention_heads": options.encoder_attention_heads,
        "intermediate_size": options.encoder_ffn_embed_dim,
        "hidden_act": options.activation_fn,
        "hidden_dropout_prob": options.dropout,
        "attention_probs_dropout_prob": options.attention_dropout,
        "classifier_dropout": options.pooler_dropout,
        "max_position_embeddings": len(weights["roberta.embeddings.position_embeddings.weight"]),
        "type_vocab_size": 1,
        "layer_norm_eps": options.pkm_layer_norm_eps,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": not options.untie_weights_roberta,
    }
    if "classifier.out_proj.weight" in weights:
        classes = len(weights["classifier.out_proj.weight"])
        if labels and classes not in (1, len(labels)):
            raise RefusalError(
                f"--data has {len(labels)} classes ({', '.join(labels)}), but the checkpoint's "
                f"head has {classes}: name the data that it was finetuned on"
            )
        named = labels if labels and classes > 1 else [f"LABEL_{i}" for i in range(classes)]
        config["architectures"] = ["RobertaForSequenceClassification"]
        config["id2label"] = dict(enumerate(named))
        config["label2id"] = {label: i for i, label in config["id2label"].items()}
    if options.pkm_layers:
        classes = ("Config", "ForMaskedLM", "ForSequenceClassification")
        config["model_type"] = "pkm_roberta"
        config["architectures"] = [f"PKM{name}" for name in config["architectures"]]
        config["auto_map"] = {
            f"Auto{name if name == 'Config' else 'Model' + name}": (
                f"modeling_pkm_roberta.PKMRoberta{name}"
            )
            for name in classes
        }
        memory = vars(PKMConfig.from_args(options))
        config.update({name: memory[name] for name in sorted(MODELED)})
    return config


def write_tokenizer(args, dictionary, dest, separators, max_positions):
    """Writes the files with which AutoTokenizer cuts text as fairseq does.

    Args:
        args: the command line.
        dictionary: fairseq's.
        dest: folder to write to.
        separators: how many </s> stand between two sentences.
        max_positions: how many tokens the model takes.

    Returns:
        The name of the encoder's BPE in fairseq, or None where its files are not found.
    """
    options = [option for files in BPE_FILES.values() for option in files]
    given = {name: str(getattr(args, name)) for name in options if getattr(args, name)}
    dictionary.save(str(dest / "dict.txt"))
    try:
        files = find_bpe(None, given, (args.data, args.checkpoint.parent))
    except ValueError:
        print(f"no tokenizer: {args.data} has no encoder, and none is named")
        return None
    if files["bpe"] == "sentencepiece":
        shutil.copy(files["sentencepiece_model"], dest / "sentencepiece.bpe.model")
        shutil.copy(HERE / "tokenization_pkm_roberta.py", dest)
        config = {
            "tokenizer_class": "FairseqTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_pkm_roberta.FairseqTokenizer", None]},
        }
    elif files["bpe"] == "tokenizer_json":
        # The library is needed only for this encoder.
        from .fast_tokenizer import write_renumbered

        source = Path(files["tokenizer_json"])
        config = write_renumbered(source, dictionary, dest / "tokenizer.json", separators)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["model_input_names"] = ["input_ids", "attention_mask"]
    else:
        numbers = json.loads(Path(files["gpt2_encoder_json"]).read_text(encoding="utf-8"))
        lacking = [token for token in numbers if str(numbers[token]) not in dictionary]
        if set(lacking) - {"<|endoftext|>"}:  # which no text is cut into
            print(f"no tokenizer: the dictionary lacks {len(lacking)} tokens of the encoder")
            return None
        tokens = {str(number): token for token, number in numbers.items()}
        symbols = [tokens.get(symbol, symbol) for symbol in dictionary.symbols]
        write_json(dest / "vocab.json", {token: i for i, token in enumerate(symbols)})
        shutil.copy(files["gpt2_vocab_bpe"], dest / "merges.txt")
        # Takes the space before it, as fairseq's fill_mask does.
        mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "special": True}
        mask.update(dict.fromkeys(("rstrip", "normalized", "single_word"), False))
        config = {"tokenizer_class": "RobertaTokenizer", "mask_token": mask}
    write_json(dest / "tokenizer_config.json", {**config, "model_max_length": max_positions})
    return files["bpe"]


def read_figures(report, checkpoint):
    """Returns the figures that a report has of a checkpoint, by name."""
    read = json.loads(report.read_text())
    found = [
        entry
        for entry in read["checkpoints"]
        if Path(entry["file"]).resolve() == checkpoint.resolve()
    ]
    if not found:
        raise RefusalError(f"--report {report} has no figures of {checkpoint}")
    return {**found[-1], "data": read["data"], "subset": read["subset"]}


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
