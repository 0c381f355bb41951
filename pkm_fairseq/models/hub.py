"""Loads checkpoints for use from Python, offline."""

from contextlib import nullcontext
from pathlib import Path

from fairseq.checkpoint_utils import load_checkpoint_to_cpu, load_model_ensemble_and_task
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.roberta import RobertaHubInterface, RobertaModel
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf, open_dict

from pkm_fairseq.config import PKMConfig
from pkm_fairseq.refusals import RefusalError

# The files that fairseq's BPEs need: option -> name under which they usually lie beside a model.
BPE_FILES = {
    "sentencepiece": {"sentencepiece_model": "sentencepiece.bpe.model"},
    "gpt2": {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"},
    "tokenizer_json": {"tokenizer_json": "tokenizer.json"},
}


def load_interface(model_class, folder, checkpoint_file, data, bpe, overrides):
    """Does what ``PKMRobertaModel.from_pretrained`` says, for it or a subclass."""
    folder = Path(folder)
    data = folder / data if str(data).startswith(".") else Path(data)
    path = folder / checkpoint_file
    if not path.exists():
        raise RefusalError(f"there is no checkpoint {path}")
    memory = {name: value for name, value in overrides.items() if name.startswith("pkm_")}
    PKMConfig.from_args({"pkm_layers": [], **memory})  # refuses what is unknown or of a wrong type
    overrides = {
        **overrides,
        **find_bpe(bpe, overrides, (folder, data)),
        "data": str(data),
        "load_checkpoint_heads": True,
    }
    state = load_checkpoint_to_cpu(str(path), overrides)
    arch = next(arch for arch, model in ARCH_MODEL_REGISTRY.items() if model is model_class)
    make_ours(state.get("args") or state["cfg"].model, memory, arch)
    drop_unknown_task_options(state.get("cfg"))
    (model,), cfg, task = load_model_ensemble_and_task([str(path)], state=state)
    return RobertaHubInterface(cfg, task, model)


def find_bpe(bpe, given, folders):
    """Finds out which BPE to use and where its files are.

    Args:
        bpe: sentencepiece, gpt2, tokenizer_json, or None for the one whose files there are.
        given: options that may name the files.
        folders: where to look for the others.

    Returns:
        The options to give to fairseq.

    Raises:
        ValueError: if files are missing; fairseq itself would try to download them.
    """
    if bpe is not None and bpe not in BPE_FILES:
        raise RefusalError(f"bpe={bpe} is not {' or '.join(BPE_FILES)}")
    for option in (option for files in BPE_FILES.values() for option in files):
        if option in given and not Path(given[option]).exists():
            raise RefusalError(f"{option}={given[option]} does not exist")
    # What is named comes before what merely lies there.
    by_mention = sorted(BPE_FILES, key=lambda name: not any(o in given for o in BPE_FILES[name]))
    for name in [bpe] if bpe else by_mention:
        found = {}
        for option, file in BPE_FILES[name].items():
            places = [given[option]] if option in given else [folder / file for folder in folders]
            existing = [str(place) for place in places if Path(place).exists()]
            if existing:
                found[option] = existing[0]
        if len(found) == len(BPE_FILES[name]):
            return {"bpe": name, **found}
    options = " or ".join(
        " and ".join(f"{option}=" for option in files)
        for name, files in BPE_FILES.items()
        if bpe in (None, name)
    )
    raise RefusalError(f"found no files to cut text into tokens with: give {options}")


def make_ours(args, memory, arch="pkm_roberta"):
    """Makes the saved options of a RoBERTa, of either command line, those of one with memory."""
    with open_dict(args) if OmegaConf.is_config(args) else nullcontext():
        trained = getattr(args, "_name", None) or args.arch
        if ARCH_MODEL_REGISTRY.get(trained) is RobertaModel:
            args._name = args.arch = arch
        for name, value in memory.items():
            setattr(args, name, value)


def drop_unknown_task_options(cfg):
    """Leaves out options of the task that a newer fairseq has saved and this one does not know."""
    dataclass = TASK_DATACLASS_REGISTRY.get(cfg.task._name) if cfg and cfg.task else None
    if dataclass is not None:
        with open_dict(cfg):
            for name in set(cfg.task) - set(dataclass.__dataclass_fields__):
                del cfg.task[name]
