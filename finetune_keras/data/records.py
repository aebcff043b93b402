"""Rows of tables: CSV files, JSON lines, data frames, dicts of columns.

There is one reader for all that takes a table. It says where each row stands and what is wrong with
it; whether such a row is an error or is left out is a matter of who asks.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune_keras._errors import nearest
from finetune_keras.data import folders
from finetune_keras.data.labels import halved

__all__ = ["JSON", "TABLES", "Records", "column", "read"]

TABLES = (".csv", ".tsv", ".txt", ".tab")
JSON = (".jsonl", ".ndjson")

_CODE = (".pkl", ".pickle", ".joblib")
_BINARY = {".xlsx": "excel", ".xls": "excel", ".parquet": "parquet", ".feather": "feather"}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LIMIT = 16 * 2**20  # characters in one field; Python's own limit is 131,072
_LOCK = threading.Lock()


class Records(NamedTuple):
    """What was read.

    Attributes:
        names: of the columns.
        rows: by name of the column; of JSON lines some may lack one.
        places: what to call each row in messages: ``line 3 of 'all.csv'``, ``row 2``.
        bad: what is wrong with rows, by their number.
    """

    names: list[str]
    rows: list[dict[str, Any]]
    places: list[str]
    bad: dict[int, str]


def read(
    source: Any,
    *,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    quotes: bool | None = None,
    encoding: str = "utf-8",
    any_ending: bool = False,
) -> Records:
    """The rows of a table.

    Args:
        source: the path of a CSV file, with a header unless ``columns`` is given, or of JSON
            lines; a data frame; a dict of columns.
        columns: names of the fields, of a CSV file without a header.
        delimiter: between fields; by default a tab if the ending says so, or else what the header
            has: commas, or semicolons or tabs, as Excel writes.
        quotes: whether ``"`` encloses fields with delimiters and line breaks; by default it does,
            unless fields are divided by tabs.
        encoding: of a file, unless it begins with a mark that says it is UTF-8, 16 or 32.
        any_ending: whether a file with another ending than those of tables is one too, also
            without ``delimiter``.

    Raises:
        TypeError: if it is no table.
        ValueError: if the file cannot be divided into rows.

    Examples:
        >>> read({"path": ["a.png"], "label": ["cat"]}).rows
        [{'path': 'a.png', 'label': 'cat'}]
    """
    if isinstance(source, Mapping) or hasattr(source, "columns"):
        return _columns(source)
    if not isinstance(source, str | Path) and not hasattr(source, "__fspath__"):
        raise TypeError(
            "expected the path of a CSV or JSONL file, a data frame or a dict of columns; given a "
            f"{type(source).__name__}"
        )
    path = folders.located(source)
    ending = path.suffix.lower()
    if ending in _CODE:
        raise ValueError(f"{str(path)!r} is a pickle, which can run any code when it is read")
    if ending in _BINARY:
        raise ValueError(
            f"{str(path)!r} is no file of text: hand in the data frame that "
            f"pandas.read_{_BINARY[ending]} makes of it, or save it as CSV"
        )
    if ending not in (*TABLES, *JSON) and delimiter is None and not any_ending:
        raise ValueError(
            f"{str(path)!r} is no table by its ending: {nearest(ending, (*TABLES, *JSON))}; give "
            "delimiter= to read it as one"
        )
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    text, encoding = _decoded(path, encoding)
    if ending in JSON:
        return _json(path, text, encoding)
    return _table(path, text, columns, delimiter, quotes, encoding)


def column(names: Sequence[str], name: str | None, usual: Sequence[str], what: str) -> str:
    """The name of a column: the one that is asked for, or the first of the usual ones.

    Raises:
        ValueError: if it is not there.

    Examples:
        >>> column(["File", "kind"], None, ["path", "file"], "x")
        'File'
    """
    if name is None:
        name = next((n for wanted in usual for n in names if n.lower() == wanted), None)
        if name is None:
            raise ValueError(
                f"give {what}=, the name of a column; {nearest('', names)} (columns= of a text "
                "file without a header)"
            )
    if name not in names:
        raise ValueError(f"no column {name!r}: {nearest(str(name), names)}")
    return name


def _columns(source: Any) -> Records:
    keys = source if isinstance(source, Mapping) else list(source.columns)
    columns: dict[str, list] = {}
    for key in keys:
        values = source[key]
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise TypeError(f"the column {str(key)!r} is no list of values; given {values!r:.80}")
        columns[str(key)] = list(values)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns are of different lengths: {lengths}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    bad = {
        i: "half a character (from \\ud800 to \\udfff)"
        for i, row in enumerate(rows)
        if any(map(halved, row.values()))
    }
    return Records(list(columns), rows, [f"row {i}" for i in range(len(rows))], bad)


def _decoded(path: Path, encoding: str) -> tuple[str, str]:
    data = path.read_bytes()
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if marked is None and encoding == "utf-8" and b"\0" in data[:4]:
        raise ValueError(
            f"{str(path)!r} is not utf-8: if it is UTF-16 without a mark, give encoding='utf-16-le'"
        )
    encoding = marked or encoding
    try:
        # What is no text in this encoding is noticed by row, not here.
        return data.decode(encoding, "surrogateescape").removeprefix("\ufeff"), encoding
    except (LookupError, TypeError):
        raise ValueError(f"there is no encoding {encoding!r}") from None
    except UnicodeError as e:
        reason = getattr(e, "reason", e)
        raise ValueError(f"{str(path)!r} is not {encoding}: {reason}") from None


def _json(path: Path, text: str, encoding: str) -> Records:
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    bad: dict[int, str] = {}
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row: Any = {}
        if _broken(line):
            bad[len(rows)] = _not(encoding)
        else:
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    bad[len(rows)] = f"a JSON {type(row).__name__}, not an object"
                elif any(halved(t) for item in row.items() for t in item):
                    bad[len(rows)] = "half a character (an escape from \\ud800 to \\udfff)"
            except json.JSONDecodeError as e:
                bad[len(rows)] = f"not JSON ({e.msg})"
            except (ValueError, RecursionError) as e:
                why = "too deep" if isinstance(e, RecursionError) else "a number of too many digits"
                bad[len(rows)] = f"not JSON ({why})"
        rows.append(row if isinstance(row, dict) else {})
        places.append(f"line {n} of {path.name!r}")
    names = list(dict.fromkeys(str(n) for row in rows for n in row))
    return Records(names, rows, places, bad)


def _table(path, text, columns, delimiter, quotes, encoding) -> Records:
    text, delimiter, skipped = _divided(text, delimiter, path.suffix.lower(), columns is None)
    quoted = delimiter != "\t" if quotes is None else quotes
    try:
        found = _fields(text, delimiter, quoted)
    except TypeError as e:  # of a delimiter that is none
        raise ValueError(f"delimiter={delimiter!r}: {e}") from None
    except csv.Error as e:
        line, why = e.args
        hint = ": give quotes=False if quotation marks are text" if quoted else ""
        raise ValueError(f"line {line + skipped} of {str(path)!r}: {why}{hint}") from None
    if columns is None:
        if not found:
            raise ValueError(f"{str(path)!r} is empty")
        columns, found = [n.strip() for n in found[0][1]], found[1:]
    columns = list(columns)
    if len(columns) == 1:
        raise ValueError(
            f"{str(path)!r} has a single column, {columns[0]!r}: is it divided by something else "
            f"than {delimiter!r}? Give delimiter="
        )
    if twice := [n for n in columns if columns.count(n) > 1]:
        raise ValueError(f"{str(path)!r} has the column {twice[0]!r} twice")
    bad = {}
    for i, (_, fields) in enumerate(found):
        if len(fields) != len(columns):
            bad[i] = f"{len(fields)} fields in place of {len(columns)}"
        elif any(map(_broken, fields)):
            bad[i] = _not(encoding)
    return Records(
        columns,
        [dict(zip(columns, fields, strict=False)) for _, fields in found],
        [f"line {line + skipped} of {path.name!r}" for line, _ in found],
        bad,
    )


def _divided(text: str, delimiter: str | None, ending: str, header: bool) -> tuple[str, str, int]:
    """What divides the fields, and the text without a first line that only tells Excel so."""
    told = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)
    if told and delimiter in (None, told[1]):
        return text[told.end() :], told[1], 1
    if delimiter is not None:
        return text, delimiter, 0
    if ending in (".tsv", ".tab"):
        return text, "\t", 0
    first = text.lstrip("\r\n").split("\n", 1)[0] if header else ""
    return text, next((d for d in ",;\t|" if d in first), ","), 0


def _fields(text: str, delimiter: str, quoted: bool) -> list[tuple[int, list[str]]]:
    """The fields of each row that is not blank, and the line that it begins on."""
    # Python has one limit of the length of fields for the whole process. So it is left alone until
    # a file needs more, and then raised for the time of reading, by one thread at once.
    try:
        return _parsed(text, delimiter, quoted)
    except csv.Error as e:
        if "field larger than field limit" not in str(e):
            raise
    with _LOCK:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, _LIMIT))
        try:
            return _parsed(text, delimiter, quoted)
        finally:
            csv.field_size_limit(before)


def _parsed(text: str, delimiter: str, quoted: bool) -> list[tuple[int, list[str]]]:
    how = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    source = io.StringIO(text, newline="") if quoted else io.StringIO(text.replace("\r\n", "\n"))
    reader = csv.reader(source, delimiter=delimiter, quoting=how, strict=quoted)
    found: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for fields in reader:
            if any(f.strip() for f in fields):
                found.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as e:
        raise csv.Error(start, e) from None
    return found


def _not(encoding: str) -> str:
    hint = "; give encoding='cp1252' if Excel wrote it, say" if encoding == "utf-8" else ""
    return f"not {encoding}{hint}"


def _broken(text: str) -> bool:
    """Whether bytes were no characters."""
    return any("\udc80" <= c <= "\udcff" for c in text)
