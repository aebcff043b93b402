"""Rows of text files, CSV or JSON lines, with the line that each began on and what is wrong."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune_keras._errors import nearest

__all__ = ["JSON", "TABLES", "read"]

TABLES = (".csv", ".tsv", ".txt", ".tab")
JSON = (".jsonl", ".ndjson")

_CODE = (".pkl", ".pickle", ".joblib")
_LIMIT = 16 * 2**20  # characters in one field; Python's own limit is 131,072
_LOCK = threading.Lock()


def read(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    quotes: bool | None = None,
    encoding: str = "utf-8",
) -> tuple[list[dict[str, Any]], list[int], dict[int, str]]:
    """The rows of a file.

    Args:
        path: of a CSV file, with a header unless ``columns`` is given, or of JSON lines.
        columns: names of the fields, of a CSV file without a header.
        delimiter: between fields; by default a comma, or a tab if the ending says so.
        quotes: whether ``"`` encloses fields with delimiters and line breaks; by default it does,
            unless fields are divided by tabs.
        encoding: of the text.

    Returns:
        The rows, the lines that they begin on, and what is wrong with rows, by their number.

    Raises:
        ValueError: if the file cannot be divided into rows.
    """
    ending = path.suffix.lower()
    if ending in _CODE or (ending not in TABLES + JSON and delimiter is None):
        known = nearest(ending, [*TABLES, *JSON])
        hint = "" if ending in _CODE else "; give delimiter= to read it as a table"
        raise ValueError(f"{str(path)!r} is no file of text by its ending: {known}{hint}")
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    try:
        # What is no text in this encoding is noticed by row, not here.
        text = path.read_bytes().decode(encoding, "surrogateescape")
    except LookupError:
        raise ValueError(f"there is no encoding {encoding!r}") from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{str(path)!r} is not {encoding}: {e.reason}") from None
    text = text.removeprefix("\ufeff")
    if ending in JSON:
        return _json(text, encoding)
    if delimiter is None:
        delimiter = "\t" if ending in (".tsv", ".tab") else ","
    quoted = delimiter != "\t" if quotes is None else quotes
    return _table(path, text, columns, delimiter, quoted, encoding)


def _json(text: str, encoding: str) -> tuple[list, list, dict]:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: dict[int, str] = {}
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row: Any = {}
        if _broken(line):
            bad[len(rows)] = f"not {encoding}"
        else:
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    bad[len(rows)] = f"a JSON {type(row).__name__}, not an object"
                elif any(isinstance(t, str) and _halved(t) for item in row.items() for t in item):
                    bad[len(rows)] = "half a character (an escape from \\ud800 to \\udfff)"
            except json.JSONDecodeError as e:
                bad[len(rows)] = f"not JSON ({e.msg})"
            except (ValueError, RecursionError) as e:
                why = "too deep" if isinstance(e, RecursionError) else "a number of too many digits"
                bad[len(rows)] = f"not JSON ({why})"
        rows.append(row if isinstance(row, dict) else {})
        lines.append(n)
    return rows, lines, bad


def _table(path, text, columns, delimiter, quoted, encoding) -> tuple[list, list, dict]:
    how = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    source = io.StringIO(text, newline="") if quoted else io.StringIO(text.replace("\r\n", "\n"))
    found: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        with _long_fields():
            reader = csv.reader(source, delimiter=delimiter, quoting=how, strict=quoted)
            for fields in reader:
                if any(f.strip() for f in fields):
                    found.append(fields)
                    lines.append(start)
                start = reader.line_num + 1
    except (csv.Error, TypeError) as e:
        hint = ": give quotes=False if quotation marks are text" if quoted else ""
        raise ValueError(f"line {start} of {str(path)!r}: {e}{hint}") from None
    if columns is None:
        if not found:
            raise ValueError(f"{str(path)!r} is empty")
        columns, found, lines = [n.strip() for n in found[0]], found[1:], lines[1:]
    columns = list(columns)
    if twice := [n for n in columns if columns.count(n) > 1]:
        raise ValueError(f"{str(path)!r} has the column {twice[0]!r} twice")
    bad = {}
    for i, fields in enumerate(found):
        if len(fields) != len(columns):
            bad[i] = f"{len(fields)} fields in place of {len(columns)}"
        elif any(_broken(f) for f in fields):
            bad[i] = f"not {encoding}"
    return [dict(zip(columns, f, strict=False)) for f in found], lines, bad


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """The limit is one for the whole process: two threads that read must not mix it up."""
    with _LOCK:
        before = csv.field_size_limit(_LIMIT)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _halved(text: str) -> bool:
    """Whether a surrogate is without its other half, so that no encoding has it."""
    return any("\ud800" <= c <= "\udfff" for c in text)


def _broken(text: str) -> bool:
    """Whether bytes were no characters."""
    return any("\udc80" <= c <= "\udcff" for c in text)
