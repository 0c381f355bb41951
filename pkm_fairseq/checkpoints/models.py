"""Checkpoints as files of a model without its training."""

from types import SimpleNamespace

from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from omegaconf import OmegaConf


def write_checkpoint(checkpoint, dest):
    """Writes a checkpoint, whole or not at all, and says so."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    checkpoint_utils.torch_persistent_save(checkpoint, str(dest))
    print(f"wrote {dest}")


def with_model(checkpoint, state):
    """Returns a checkpoint with another model, as plain types: what its optimizer knew is gone."""
    checkpoint.pop("last_optimizer_state", None)
    cfg = OmegaConf.to_container(checkpoint["cfg"], enum_to_str=True)
    return {**checkpoint, "args": None, "cfg": cfg, "model": state}


def stand_in_task(state):
    """Makes what a model needs of its task without the data: a dictionary of the right length."""
    sizes = [
        len(state[key]) for key in state if key.endswith("sentence_encoder.embed_tokens.weight")
    ]
    dictionary = Dictionary()
    for i in range(max(sizes, default=0) - len(dictionary)):
        dictionary.add_symbol(str(i))
    return SimpleNamespace(source_dictionary=dictionary, max_positions=lambda: None)
