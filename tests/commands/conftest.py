import pytest

from tests.commands.commands import BIN, ROOT, run
from tests.commands.forked import make_environment


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """An environment for scripts that start commands: these are forked."""
    folder = tmp_path_factory.mktemp("env")
    make_environment(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder with a little real text."""
    folder = tmp_path_factory.mktemp("text")
    run("python", ROOT / "scripts/sample_text.py", folder)
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
        "pkm-fairseq",
        "prepare-text",
        *("--train", text / "train.txt", "--valid", text / "valid.txt"),
        *("--dest", dest, "--vocab-size", 300, "--workers", 1),
    )
    return dest
