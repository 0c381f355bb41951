"""Prints the folder of the configurations: ``--config-dir "$(pkm-fairseq configs)/glue"``.

They name the user dir as ``pkm_fairseq``, which fairseq finds where both are installed beside each
other; elsewhere, give ``common.user_dir="$(pkm-fairseq user-dir)"`` with them.
"""

from .user_dir import PACKAGE


def add_arguments(parser):
    pass


def run(args):
    # Installed, they lie in the package; in a clone, beside it.
    installed = PACKAGE / "configs"
    print(installed if installed.is_dir() else PACKAGE.parent / "user_dir_examples")
