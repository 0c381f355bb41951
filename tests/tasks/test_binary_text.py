import re

import pytest
import torch
from fairseq.data import Dictionary, indexed_dataset

from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.tasks.binary_text import check_binary_text, check_dictionary


@pytest.fixture
def dictionary():
    made = Dictionary()
    for i in range(10):
        made.add_symbol(f"w{i}")
    return made


@pytest.fixture
def prefix(tmp_path, dictionary):
    """Two sentences, the last word of the dictionary among them."""
    prefix = str(tmp_path / "train")
    builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", vocab_size=len(dictionary))
    for sentence in ([4, 5, 2], [len(dictionary) - 1, 2]):
        builder.add_item(torch.tensor(sentence))
    builder.finalize(f"{prefix}.idx")
    return prefix


def test_whole_text_of_the_dictionary_is_taken(prefix, dictionary):
    check_binary_text(prefix, dictionary)
    check_binary_text(prefix + ".none", dictionary)


def test_text_of_another_dictionary_is_refused(prefix):
    with pytest.raises(ValueError, match="holds the number 13, but its dictionary ends at 3: put"):
        check_binary_text(prefix, Dictionary())


@pytest.mark.parametrize(("ending", "size"), [("bin", 4), ("bin", 3), ("bin", 0), ("idx", 30)])
def test_text_that_is_cut_off_is_refused(prefix, dictionary, ending, size):
    with open(f"{prefix}.{ending}", "r+b") as file:
        file.truncate(size)
    expected = f"^{re.escape(prefix)}.{ending} is .*: prepare the data again$"
    with pytest.raises(ValueError, match=expected):
        check_binary_text(prefix, dictionary)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 3\nb\n", "Incorrect dictionary format"),
        (b"a 3\n\xff 2\n", "Incorrect encoding"),
        (b"a 3\na 3\n", "Duplicate word found"),
    ],
)
def test_a_dictionary_that_cannot_be_read_is_named_with_the_cause(tmp_path, content, message):
    path = tmp_path / "dict.txt"
    path.write_bytes(content)
    with pytest.raises(RefusalError, match=f"^{path} cannot be read: .*{message}") as refusal:
        check_dictionary(str(path))
    assert len(str(refusal.value).splitlines()) == 1


def test_what_is_no_fault_of_a_dictionary_is_not_blamed_on_it(tmp_path, monkeypatch):
    path = tmp_path / "dict.txt"
    check_dictionary(str(path))  # fairseq says that it is not there
    path.write_text("a 3\n")
    check_dictionary(str(path))

    def fail(path):
        raise MemoryError("full")

    monkeypatch.setattr(Dictionary, "load", fail)
    with pytest.raises(MemoryError, match="^full$"):
        check_dictionary(str(path))
