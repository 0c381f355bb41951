"""The pages: every option is explained, with its default; links and commands are right."""

import re
import shlex
from argparse import ArgumentParser
from pathlib import Path

import pytest

from pkm_fairseq.commands.cli import COMMANDS, find_command
from pkm_fairseq.commands.options import as_table
from pkm_fairseq.config import OTHER_OPTIONS, PKMConfig

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    *(
        page
        for folder in ("pkm_fairseq", "scripts", "user_dir_examples")
        for page in sorted((ROOT / folder).rglob("README.md"))
    ),
]


def name_of(page):
    return str(page.relative_to(ROOT))


def test_every_option_is_in_the_table_and_nothing_else():
    options = {name for name in vars(PKMConfig()) if name.startswith("pkm_")} | OTHER_OPTIONS
    flags = re.findall(r"^\| `(--pkm-[\w-]+)", as_table(), re.MULTILINE)
    assert sorted(flags) == sorted("--" + name.replace("_", "-") for name in options)


def test_the_table_of_options_is_what_the_command_prints():
    assert f"\n\n{as_table()}\n" in (ROOT / "pkm_fairseq/README.md").read_text()


def test_the_first_page_is_short():
    assert len(README.read_text().splitlines()) <= 150


def links_of(page):
    """Yields the file, and the anchor or None, of each link to a page or file of the project."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors_of(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, anchor in links_of(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors_of(target), f"{target}#{anchor}"


def test_every_page_can_be_reached_from_the_first():
    found, new = set(), {README}
    while new:
        found |= new
        new = {link for page in new if page.suffix == ".md" for link, _ in links_of(page)} - found
    assert {*PAGES} <= found


def commands_of(page):
    """Yields the words of each command of ``pkm-fairseq`` in a page's blocks."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("pkm-fairseq "):
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_known_with_their_options(page):
    for command, *words in commands_of(page):
        assert command in COMMANDS
        parser = ArgumentParser()
        find_command(command).add_arguments(parser)
        known = {flag for action in parser._actions for flag in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= known, command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_and_configurations_are_there(page):
    text = page.read_text()
    for path in re.findall(r"(?:scripts|user_dir_examples)/[\w/.]+\.(?:py|sh|yaml)", text):
        assert (ROOT / path).exists(), path
