import sys
from importlib import import_module

import pytest

from tests.commands.commands import BIN, ROOT, run


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder with a little real text."""
    folder = tmp_path_factory.mktemp("text")
    run("python", ROOT / "scripts/pretraining/sample_text.py", folder)
    for name, lines in (("train", 800), ("valid", 80)):
        path = folder / f"{name}.txt"
        path.write_text("\n".join(path.read_text().splitlines()[:lines]) + "\n")
    assert (BIN / "fairseq-train").exists()
    return folder


@pytest.fixture(scope="session")
def data(text):
    """The same text as fairseq reads it."""
    dest = text / "data"
    run(
        "python",
        ROOT / "scripts/pretraining/prepare.py",
        *("--train", text / "train.txt", "--valid", text / "valid.txt"),
        *("--dest", dest, "--vocab-size", 300, "--workers", 1),
    )
    return dest


@pytest.fixture(scope="session")
def scripts():
    """Calls the scripts in this process: each import of fairseq and transformers takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts/huggingface"))

        def call(name, *args):
            patch.setattr(sys, "argv", [name, *map(str, args)])
            import_module(name).main()

        yield call
