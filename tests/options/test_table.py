"""The table of the page on options says what the sweep finds."""

import re
from pathlib import Path

from tests.options import declared, entries

PAGE = Path(__file__).parents[2] / "pkm_fairseq/README.md"
WORKING = {
    name
    for row in (
        *(*entries.PRETRAINED.values(), *entries.FINETUNED.values()),
        *(given for given, _ in (*entries.STOPPED, *entries.KEPT, *entries.STARTED)),
    )
    for name in row
}
REFUSED = {
    name
    for given, _ in (
        *(*entries.REFUSED, *entries.REFUSED_LATER),
        *(*entries.REFUSED_IN_FINETUNING, *entries.REFUSED_LATER_IN_FINETUNING),
    )
    for name in given
}


def rows_of_table():
    """Returns pairs of the options of fairseq that a row names, and what it says of them."""
    table = PAGE.read_text().split("| of fairseq | is |")[1].split("\n\n")[0]
    known = declared.everything().keys() | entries.NEWER
    for row in table.splitlines()[2:]:
        names, verdict = row.strip("| ").split(" | ")
        options = {name.replace("-", "_") for name in re.findall(r"`(?:--)?([\w-]+)", names)}
        yield options & known, verdict


def test_what_never_works_is_said_to_be_refused():
    said = set().union(*(options for options, verdict in rows_of_table() if "refused" in verdict))
    assert REFUSED - WORKING - said <= {"data"}  # which stands there as folders


def test_what_is_said_is_what_is_found():
    # What other tests show: with a BPE, for a pruned checkpoint, and by the command itself.
    working = WORKING | {"mask_whole_words", "mha_heads_to_keep"}
    refused = REFUSED | {"profile", "write_checkpoints_asynchronously"}
    for options, verdict in rows_of_table():
        assert options <= (refused if verdict.startswith("refused") else working), verdict
