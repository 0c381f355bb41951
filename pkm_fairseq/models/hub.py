"""Loads checkpoints for use from Python, offline."""

import re
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from fairseq import utils
from fairseq.checkpoint_utils import load_checkpoint_to_cpu, load_model_ensemble_and_task
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.roberta import RobertaHubInterface, RobertaModel
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf, open_dict

from pkm_fairseq.config import PKMConfig
from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.text.encoders import BPE_FILES

MASK = "<mask>"
# Symbols of a dictionary that are no pieces of text: special ones, CamemBERT's unused ones, which
# begin like them, and those that fill it up.
NO_PIECE = re.compile(r"</?s>|<pad>|<unk>|<mask>|madeupword_?\d+$")


class PKMRobertaHubInterface(RobertaHubInterface):
    """fairseq's interface, whose ``fill_mask`` gives each piece its own probability.

    Args:
        cfg: fairseq's configuration of a checkpoint.
        task: its task.
        model: its model.
        without_bpe: why there are no files to cut text with, None where there are.
    """

    def __init__(self, cfg, task, model, without_bpe=None):
        super().__init__(cfg, task, model)
        if without_bpe is not None:
            self.bpe = MissingBPE(without_bpe)

    @torch.no_grad()
    def fill_mask(self, masked_input, topk=5):
        """Returns the best pieces for the one ``<mask>`` in a text.

        Args:
            masked_input: the text.
            topk: how many pieces; all there are, if they are fewer.

        Returns:
            Tuples, the best first, of the text with the piece in it, the probability of the piece,
            and the piece. Probabilities are those of the whole dictionary; its symbols that are no
            pieces, special ones and those that fill it up, are left out.

        Raises:
            RefusalError: if the text has not one mask or is too long, or no piece is asked for.
        """
        spans = masked_input.split(MASK)
        if len(spans) != 2:
            raise RefusalError(f"give a text with one {MASK}, not {len(spans) - 1}: {masked_input}")
        if topk < 1:
            raise RefusalError(f"topk={topk} asks for no piece: give 1 or more")
        dictionary = self.task.source_dictionary
        pieces = f" {MASK} ".join(self.bpe.encode(span.rstrip()) for span in spans)
        tokens = dictionary.encode_line(
            f"<s> {pieces} </s>", append_eos=False, add_if_not_exist=False
        )
        longest = self.model.max_positions()
        if len(tokens) > longest:
            raise RefusalError(
                f"the text has {len(tokens)} tokens, and the model takes {longest}: shorten it"
            )
        with utils.model_eval(self.model):
            logits, _ = self.model(tokens.long().to(self.device).unsqueeze(0))
        logits = logits[0, tokens.tolist().index(dictionary.index(MASK))]
        probabilities = logits.float().softmax(0)  # (symbols,)
        found = filter(self._is_piece, probabilities.argsort(descending=True).tolist())
        replaced = f" {MASK}" if f" {MASK}" in masked_input else MASK
        filled = []
        for number in islice(found, topk):
            text = self._text_of(dictionary[number])
            in_place = masked_input.replace(replaced, text)
            filled.append((in_place, probabilities[number].item(), text))
        return filled

    def _is_piece(self, number):
        """Tells whether a symbol of the dictionary stands for text."""
        symbol = self.task.source_dictionary[number]
        if number < self.task.source_dictionary.nspecial or NO_PIECE.match(symbol):
            return False
        return symbol.isdigit() or not isinstance(self.bpe, GPT2BPE)

    def _text_of(self, symbol):
        """Returns the text of a piece, with the space before it where it begins a word."""
        if hasattr(self.bpe, "text_of"):
            return self.bpe.text_of(symbol)
        text = self.bpe.decode(symbol)
        return f" {text}" if symbol.startswith("\u2581") else text


class MissingBPE:
    """Takes the place of a BPE whose files are not there.

    Args:
        reason: what to say when text is to be cut or put together.
    """

    def __init__(self, reason):
        self._reason = reason

    def encode(self, text):
        raise RefusalError(self._reason)

    decode = encode


def load_interface(model_class, folder, checkpoint_file, data, bpe, overrides):
    """Same as ``PKMRobertaModel.from_pretrained``, for it or a subclass."""
    folder = Path(folder)
    data = folder / data if str(data).startswith(".") else Path(data)
    path = folder / checkpoint_file
    if not path.exists():
        raise RefusalError(f"there is no checkpoint {path}")
    memory = {name: value for name, value in overrides.items() if name.startswith("pkm_")}
    PKMConfig.from_args({"pkm_layers": [], **memory})  # refuses what is unknown or of a wrong type
    files, without_bpe = None, None
    try:
        files = find_bpe(bpe, overrides, (folder, data))
    except ValueError as error:
        if bpe or any(option in overrides for names in BPE_FILES.values() for option in names):
            raise
        without_bpe = str(error)  # for who gives text; token ids need no files
    overrides = {**overrides, "data": str(data), "load_checkpoint_heads": True}
    state = load_checkpoint_to_cpu(str(path), overrides)
    arch = next(arch for arch, model in ARCH_MODEL_REGISTRY.items() if model is model_class)
    make_ours(state.get("args") or state["cfg"].model, memory, arch)
    drop_unknown_task_options(state.get("cfg"))
    (model,), cfg, task = load_model_ensemble_and_task([str(path)], state=state)
    with open_dict(cfg):
        cfg.bpe = files and {"_name": files.pop("bpe"), **files}  # whatever the training's was
    return PKMRobertaHubInterface(cfg, task, model, without_bpe)


def find_bpe(bpe, given, folders):
    """Finds out which BPE to use and where its files are.

    Args:
        bpe: sentencepiece, gpt2, tokenizer_json, or None for the one whose files there are.
        given: options that may name the files.
        folders: where to look for the others.

    Returns:
        The options to give to fairseq.

    Raises:
        RefusalError: if files are missing; fairseq itself would try to download them.
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
