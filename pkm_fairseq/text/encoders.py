"""The encoders, fairseq's BPEs, that cut text into pieces, and the files each of them needs."""

from fairseq.data.encoders import build_bpe
from omegaconf import OmegaConf

# BPE -> option that names a file -> name under which the file usually lies beside a model.
BPE_FILES = {
    "sentencepiece": {"sentencepiece_model": "sentencepiece.bpe.model"},
    "gpt2": {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"},
    "tokenizer_json": {"tokenizer_json": "tokenizer.json"},
}


def encoder_files(args):
    """Returns the files that ``args`` name, by the name that each has beside a model."""
    return {
        file: getattr(args, option)
        for files in BPE_FILES.values()
        for option, file in files.items()
        if getattr(args, option)
    }


def make_encoder(args):
    """Returns the function that turns a line into its pieces, separated by spaces."""
    given = {
        option: str(getattr(args, option))
        for files in BPE_FILES.values()
        for option in files
        if getattr(args, option)
    }
    (name,) = (name for name, files in BPE_FILES.items() if files.keys() == given.keys())
    return build_bpe(OmegaConf.create({"_name": name, **given})).encode
