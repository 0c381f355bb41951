"""Reads the rows of tables: tab- or comma-separated text, JSON lines, folders of ``datasets``.

Each reader yields the line number of a row and its cells, a dict from column to text or, of a bad
row, what is wrong. All raise a ValueError if a wanted column is not there.
"""

import csv
import json
import sys
from pathlib import Path

from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.text.text_files import raw_lines, read_lines

from .task import columns_of, is_test

SEPARATORS = {".tsv": "\t", ".csv": ","}
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
NO_QUOTES = "if the quotes are of the text, give --no-quotes"
PACKED_ENDINGS = (".gz", ".xz", ".bz2", ".zst")


def read_table(path, wanted, quotes=True):
    """Reads a file or folder by its ending, after which a further one may say how it is packed.

    Args:
        path: what to read.
        wanted: names of columns.
        quotes: whether cells of separated text may be in double quotes.

    Raises:
        RefusalError: if it is of no known kind.
    """
    ending = Path(path.stem).suffix if path.suffix in PACKED_ENDINGS else path.suffix
    if path.is_dir() or ending in JSON_ENDINGS:
        if not quotes:
            raise RefusalError(f"--no-quotes is for {' and '.join(SEPARATORS)}: remove it")
        return (read_dataset if path.is_dir() else read_json_lines)(path, wanted)
    if ending not in SEPARATORS:
        known = ", ".join([*SEPARATORS, *JSON_ENDINGS])
        raise RefusalError(f"{path} has none of the endings that say how to read it: {known}")
    read = read_quoted if quotes else read_unquoted
    return read(path, wanted, SEPARATORS[ending])


def read_official(task, path, split):
    """Reads an official file of a GLUE task."""
    columns = () if is_test(split) else task.headerless
    return read_unquoted(path, columns_of(task, split), columns=columns)


def read_quoted(path, wanted, separator):
    """Reads text with a header, in which cells may be in double quotes."""
    csv.field_size_limit(sys.maxsize)
    bad_bytes = []
    lines = (line + "\n" for line in read_lines(path, bad_bytes.append))
    table = csv.reader(lines, delimiter=separator, strict=True)
    columns = _check_columns(next(table, []), wanted)
    while True:
        number = table.line_num + 1  # cells may have line breaks
        bad_bytes.clear()
        try:
            row = next(table) or [""]  # the reader takes an empty line for no cells
        except StopIteration:
            return
        except csv.Error as error:
            cells = f"its quotes do not fit ({error}): {NO_QUOTES}"
            if table.line_num > number:  # who leaves out a bad row would lose others with it
                raise RefusalError(f"lines {number} to {table.line_num}: {cells}") from error
        else:
            cells = _by_column(columns, row)
            # No prose has both in one cell: its quotes have swallowed rows.
            if separator == "\t" and any("\n" in cell and "\t" in cell for cell in row):
                cells = f"a cell in quotes goes on to line {table.line_num}: {NO_QUOTES}"
        yield number, bad_bytes[0] if bad_bytes else cells


def read_unquoted(path, wanted, separator="\t", columns=()):
    """Reads text in which a quote is a quote, as GLUE's files are.

    Only line feeds end lines: sentences of GLUE have carriage returns.

    Args:
        path: the file.
        wanted: names of columns.
        separator: between the cells.
        columns: those of a file without a header.
    """
    for number, raw in enumerate(raw_lines(path), 1):
        try:
            cells = raw.decode("utf-8-sig").rstrip("\r\n").split(separator)
        except UnicodeDecodeError as error:
            if not columns:
                raise RefusalError(f"the header is no UTF-8: {error}") from error
            yield number, str(error)
            continue
        if columns:
            yield number, _by_column(columns, cells)
        else:
            columns = _check_columns(cells, wanted)


def read_json_lines(path, wanted):
    """Reads an object a line; null is an empty cell, and a number its text."""
    bad_bytes = []
    for number, line in enumerate(read_lines(path, bad_bytes.append), 1):
        try:
            cells = json.loads(line)
        except ValueError as error:
            cells = f"no JSON: {error}"
        if isinstance(cells, dict):
            missing = [name for name in wanted if name not in cells]
            cells = _no_column(missing[0], cells) if missing else _as_text(cells, wanted)
        elif not isinstance(cells, str):
            cells = "no JSON object"
        yield number, bad_bytes.pop() if bad_bytes else cells


def read_dataset(path, wanted):
    """Reads a folder that ``save_to_disk`` of the library ``datasets`` made of one split."""
    try:
        import datasets
    except ImportError:
        raise RefusalError(
            f"{path} is a folder: to read one of the library datasets, pip install datasets"
        ) from None
    try:
        dataset = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise RefusalError(f"{path} is no folder of the library datasets: {error}") from error
    if isinstance(dataset, dict):
        splits = ", ".join(str(path / split) for split in dataset)
        raise RefusalError(f"{path} has several splits: give one of {splits}")
    _check_columns(dataset.column_names, wanted)
    names = {
        column: feature.int2str
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    for number, row in enumerate(dataset.select_columns(list(wanted)), 1):
        for column in names.keys() & row.keys():
            # Of test sets without labels the class is -1.
            known = row[column] is not None and row[column] >= 0
            row[column] = names[column](row[column]) if known else None
        yield number, _as_text(row, wanted)


def _check_columns(columns, wanted):
    """Returns the columns, or raises for one that is wanted."""
    columns = [name.strip() for name in columns]
    for name in wanted:
        if name not in columns:
            raise RefusalError(_no_column(name, columns))
        if columns.count(name) > 1:
            raise RefusalError(f"there are {columns.count(name)} columns {name!r}")
    return columns


def _no_column(name, columns):
    return f"no column {name!r}, only {', '.join(columns)}"


def _by_column(columns, cells):
    if len(cells) != len(columns):
        return f"{len(cells)} columns instead of {len(columns)}"
    return dict(zip(columns, cells))


def _as_text(cells, wanted):
    """Turns cells of any type into text; says what is wrong if one is a list or an object."""
    texts = {}
    for name in wanted:
        cell = cells[name]
        if isinstance(cell, (list, dict)):
            return f"{name} is no text and no number"
        texts[name] = "" if cell is None else cell if isinstance(cell, str) else json.dumps(cell)
    return texts
