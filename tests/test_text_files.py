"""Text is read as people have it, or refused by file and line."""

import argparse
import bz2
import gzip
import lzma

import pytest

from pkm_fairseq.text.text_files import Text, find_files, raw_lines

LINES = ["One snowman ☃.", "", "Two.", " three"]
PLAIN = "\n".join(LINES).encode()


def pack_zstd(content):
    backports = pytest.importorskip("backports.zstd", reason="zstd is not installed")
    return backports.compress(content)


PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": pack_zstd}


def read(*files, **options):
    text = Text("--train", list(files), **options)
    text.check()
    return list(text.lines("reading"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", ["", "end"])
def test_marks_and_line_ends_are_no_text(tmp_path, end, mark, last):
    path = tmp_path / "text"
    path.write_bytes(mark + (end.join(LINES) + (end if last else "")).encode())
    assert read(path) == LINES


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("parts", [1, 2])
def test_packed_text_is_unpacked_whatever_it_is_called(tmp_path, ending, parts):
    path = tmp_path / "text"
    # Parts one after the other are what packing in parallel makes.
    lines = PLAIN + b"\n"
    path.write_bytes(PACKERS[ending](lines) * parts)
    assert read(path) == LINES * parts


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_text_that_was_cut_off_is_refused(tmp_path, ending):
    path = tmp_path / "text"
    path.write_bytes(PACKERS[ending](PLAIN)[:-6])
    with pytest.raises(ValueError, match=f"{path} cannot be read to its end: "):
        read(path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_bytes(pack_zstd(PLAIN))
    for module in ("compression", "backports", "backports.zstd"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match="packed by zstd: pip install backports.zstd"):
        read(path)


def test_a_line_separator_within_a_line_stays_there(tmp_path):
    path = tmp_path / "text"
    path.write_text("one\u2028line\x0bhere\x85\n", encoding="utf-8")
    assert read(path) == ["one\u2028line\x0bhere\x85"]


BAD = b"good\nbad \xff\r\nm\xc3\xa9\n\xe9 \xfe\n"


def test_bytes_that_are_no_utf8_are_reported_by_file_and_line(tmp_path, capsys):
    files = [tmp_path / "a", tmp_path / "b"]
    files[0].write_text("good\n")
    files[1].write_bytes(BAD)
    with pytest.raises(ValueError, match="--train has 2 lines with bytes that are no UTF-8"):
        read(*files)
    reported = [line for line in capsys.readouterr().err.splitlines() if "no UTF-8" in line]
    assert reported == [
        f"{files[1]}:2: byte 5 of the line, 0xff, is no UTF-8",
        f"{files[1]}:4: byte 1 of the line, 0xe9, is no UTF-8",
    ]


def test_they_are_replaced_when_asked(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_bytes(BAD)
    assert read(path, replace_bad_bytes=True) == ["good", "bad \ufffd", "mé", "\ufffd \ufffd"]
    assert "--train: bytes that are no UTF-8 replaced in 2 lines" in capsys.readouterr().out


def test_utf_16_is_named(tmp_path):
    path = tmp_path / "text"
    path.write_text("text", encoding="utf-16")
    with pytest.raises(ValueError, match=f"{path} is UTF-16: turn it into UTF-8"):
        read(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_text_without_words_is_refused(tmp_path, content):
    path = tmp_path / "text"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"--train has no words: {path}"):
        read(path)


def test_folders_and_patterns_are_their_files_and_a_document_ends_with_its_file(tmp_path):
    for name in ("b.txt", "sub/a.txt", ".hidden", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "a.txt").write_text("no line end")
    files = [tmp_path / name for name in ("a.txt", "b.txt", "sub/a.txt")]
    assert find_files(str(tmp_path)) == files
    assert find_files(str(tmp_path / "*.txt")) == files[:2]
    assert find_files(str(tmp_path / "**" / "a.txt")) == [files[0], files[2]]
    assert find_files(str(files[2])) == [files[2]]
    assert read(*files) == ["no line end", "", "b.txt", "", "sub/a.txt"]
    for nothing in ("none.txt", "*.gz", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a file, nor a folder or"):
            find_files(str(tmp_path / "none" / nothing))


def test_the_bar_ends_at_the_size_of_the_files_and_says_the_time_left(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_bytes(gzip.compress(b"line\n" * 2500))
    assert len(read(path)) == 2500
    shown = capsys.readouterr().err
    size = path.stat().st_size
    assert f"reading --train: 100%|██████████| {size}.0/{size}.0" in shown.replace("\r", "\n")
    assert "<00:00" in shown


def test_lines_can_be_read_as_bytes(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(gzip.compress(b"a\rb\xff\nc"))
    assert list(raw_lines(path)) == [b"a\rb\xff\n", b"c"]
