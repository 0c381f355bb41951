"""Prints the folder of the configurations: ``--config-dir "$(pkm-fairseq configs)/glue"``.

They name the user dir as ``pkm_fairseq``, which fairseq finds where both are installed beside each
other; elsewhere, give ``common.user_dir="$(pkm-fairseq user-dir)"`` with them.
"""

from omegaconf import OmegaConf

from .user_dir import PACKAGE


def add_arguments(parser):
    pass


def run(args):
    # Installed, they lie in the package; in a clone, beside it.
    installed = PACKAGE / "configs"
    print(installed if installed.is_dir() else PACKAGE.parent / "user_dir_examples")


def load_config(path):
    """Returns a configuration as Hydra composes it of its file and of those its defaults name.

    Args:
        path: a ``pathlib.Path``.
    """
    config = OmegaConf.load(path)
    shared = [name for name in config.pop("defaults", []) if name != "_self_"]
    return OmegaConf.merge(*(OmegaConf.load(path.with_name(f"{n}.yaml")) for n in shared), config)
