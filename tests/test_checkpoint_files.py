"""Checkpoint files after kills, full disks and other damage."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from pkm_fairseq.checkpoints.safe_reading import is_cut_off
from pkm_fairseq.checkpoints.whole_files import mend


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, the last the newest."""
    for age, name in enumerate(["checkpoint_last.pt", "checkpoint_1_20.pt", "checkpoint_1_10.pt"]):
        torch.save({"name": name}, tmp_path / name)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    return tmp_path


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


def test_a_copy_that_stops_half_way_leaves_the_file_that_was_there(folder, monkeypatch):
    def copy_half(source, dest):
        Path(dest).write_bytes(Path(source).read_bytes()[:200])
        raise OSError("No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copy_half)
    last = folder / "checkpoint_last.pt"
    before = last.read_bytes()
    with pytest.raises(OSError, match=f"{last} cannot be written, and is as it was: No space"):
        PathManager.copy(str(folder / "checkpoint_1_20.pt"), str(last), overwrite=True)
    assert last.read_bytes() == before
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("covered", [False, True])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_that_was_there(
    folder, monkeypatch, covered
):
    def save_half(checkpoint, opened):
        opened.write(b"PK half of it")
        try:
            raise OSError("No space left on device")
        finally:
            if covered:
                raise RuntimeError("unexpected pos 100544 vs 100432")

    monkeypatch.setattr(torch, "save", save_half)
    last = folder / "checkpoint_last.pt"
    before = last.read_bytes()
    with pytest.raises(OSError, match=f"{last} cannot be written, and is as it was: No space"):
        checkpoint_utils.torch_persistent_save({"name": "new"}, str(last))
    assert last.read_bytes() == before
    assert not list(folder.glob("*.tmp"))


def test_a_checkpoint_is_what_was_given(folder):
    checkpoint_utils.torch_persistent_save({"name": "new"}, str(folder / "new.pt"))
    assert torch.load(folder / "new.pt") == {"name": "new"}
    assert not list(folder.glob("*.tmp"))


def test_a_copy_is_the_file(folder):
    source, last = folder / "checkpoint_1_20.pt", folder / "checkpoint_last.pt"
    assert PathManager.copy(str(source), str(last), overwrite=True)
    assert last.read_bytes() == source.read_bytes()
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_off_is_replaced_by_the_newest_that_is_whole(folder, share):
    last, newest = folder / "checkpoint_last.pt", folder / "checkpoint_1_20.pt"
    whole = last.stat().st_size
    cut(last, int(share * whole))
    mend(last)
    assert last.read_bytes() == newest.read_bytes()
    cut(newest, int(share * whole))
    cut(last, int(share * whole))
    mend(last)
    assert torch.load(last)["name"] == "checkpoint_1_10.pt"


def test_where_none_is_whole_it_says_which_file_to_remove(folder):
    for file in folder.iterdir():
        cut(file, 100)
    with pytest.raises(ValueError, match="checkpoint_last.pt is cut off.*: remove it to begin"):
        mend(folder / "checkpoint_last.pt")


def test_a_checkpoint_that_is_whole_or_not_there_is_left_alone(folder):
    last = folder / "checkpoint_last.pt"
    mend(last)
    assert torch.load(last)["name"] == last.name
    # As torch saved before 1.6, and as published checkpoints are.
    torch.save({}, last, _use_new_zipfile_serialization=False)
    assert not is_cut_off(last)
    last.unlink()
    mend(last)
    assert not last.exists()
