"""Images that a table names, with their labels, as a data set."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_keras._errors import nearest
from finetune_keras.data import folders, pixels
from finetune_keras.data.images import from_files
from finetune_keras.data.labels import encode, named

__all__ = ["listed", "read", "table"]

_X = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
_Y = ("label", "labels", "class", "class_name", "target", "category", "y")
_CONTROLS = "\x7f\x85\u2028\u2029"


def table(
    rows: Any,
    *,
    x: str | None = None,
    y: str | Sequence[str] | None = None,
    folder: str | os.PathLike | None = None,
    size: int | tuple[int, int] = (224, 224),
    batch_size: int = 32,
    class_names: Sequence[str] | None = None,
    labels: str = "auto",
    delimiter: str | None = None,
    shuffle: bool = True,
    seed: int = 0,
    resize: str = "squash",
    interpolation: str = "bilinear",
    channels: int = 3,
    draft: bool = True,
    strict: bool = False,
) -> Any:
    r"""Images that a CSV file or a data frame names, with their labels, as a ``tf.data.Dataset``.

    Args:
        rows: path of a CSV file with a header, in UTF-8; or a data frame, or a dict of columns.
        x: the column of paths, relative to ``folder``; by default one that is called ``path``,
            ``file``, ``filename`` or ``image``.
        y: the column of labels, ``label`` or ``class`` by default. Text and whole numbers are
            classes, other numbers are numbers to predict. Several columns, in a list, are numbers.
        folder: where the images are; by default where the CSV file is. A path that leads out of
            it is an error.
        size: as of `images`, like the others that are not explained here.
        batch_size: images in a batch.
        class_names: the classes in the order of their numbers; any other label is then an error.
            By default they are what the table holds, sorted.
        labels: ``"classes"`` or ``"numbers"`` where ``"auto"`` would guess wrong, such as for ages.
        delimiter: between fields; by default a comma, or a tab in a file that ends in ``.tsv``.
        shuffle: whether each epoch has an order of its own.
        seed: of the order.
        resize: ``"crop"``, ``"squash"`` or ``"pad"``.
        interpolation: a name of Keras'.
        channels: 3 for RGB, 1 for grey.
        draft: decode a JPEG that is much too large at a fraction of its size.
        strict: whether a file that cannot be read is an error; all are read once to find out.

    Returns:
        A ``tf.data.Dataset`` with the attributes of `dataset`. A file that is listed several times
        comes as often, and is in one part only of its ``split``.

    Raises:
        ValueError: if the file is no such table, with the line; if a label is missing or unknown;
            if a file has two labels; if a path leads out of the folder; if no image can be read.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a.png", "b.png"):
        ...     Image.new("RGB", (40, 30)).save(folder / name)
        >>> _ = (folder / "all.csv").write_text("path,label\na.png,cat\nb.png,dog\n")
        >>> ds = table(folder / "all.csv", size=32)
        >>> ds.class_names, ds.labels.tolist()
        (['cat', 'dog'], [0, 1])
    """
    settings = {
        "size": pixels.checked(size, resize, interpolation, channels),
        "resize": resize,
        "interpolation": interpolation,
        "channels": channels,
        "draft": draft,
    }
    files, targets, names = listed(rows, x, y, folder, named(class_names), labels, delimiter)
    return from_files(
        files,
        targets,
        names,
        settings,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        strict=strict,
    )


def listed(
    rows: Any,
    x: str | None = None,
    y: str | Sequence[str] | None = None,
    folder: str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
    labels: str = "auto",
    delimiter: str | None = None,
) -> tuple[list[str], np.ndarray, list[str]]:
    """The files, their labels and the names of the classes, all as of `table`."""
    columns, where, beside = read(rows, delimiter)
    paths = columns[_column(columns, x, _X, "x")]
    several = not isinstance(y, str | None)
    named = [_column(columns, n, (), "y") for n in y] if several else []
    if several:
        parts = [encode(columns[n], kind="numbers", where=where)[0] for n in named]
        if not parts:
            raise ValueError("y is a column of labels, or a list of columns; given an empty list")
        targets, names = np.stack(parts, axis=1), []
    else:
        values = columns[_column(columns, y, _Y, "y")]
        targets, names = encode(values, class_names, kind=labels, where=where)
    if not len(paths):
        raise ValueError("the table has no rows")
    base = folders.root(folder if folder is not None else beside)
    files = [_inside(base, path, where(i)) for i, path in enumerate(paths)]
    _one_label_each(files, targets, where)
    if not any(map(os.path.lexists, files)):
        raise ValueError(
            f"none of {len(files)} files is there, the first is {files[0]!r}: give folder=, that "
            "the paths begin from"
        )
    return files, targets, names


def read(rows: Any, delimiter: str | None = None) -> tuple[dict[str, list], Any, Path]:
    """The columns of a table, what to call a row in messages, and the folder that it is in.

    Args:
        rows: as of `table`.
        delimiter: as of `table`.

    Raises:
        ValueError: if the file is no table, with the line.
    """
    if not isinstance(rows, str | os.PathLike):
        return _columns(rows), "row {}".format, Path()
    path = Path(rows).expanduser()
    if path.suffix.lower() in (".pkl", ".pickle", ".joblib"):
        raise ValueError(f"{str(path)!r} is a pickle, which can run any code when it is read")
    if path.is_dir():
        raise ValueError(
            f"{str(path)!r} is a folder; expected a CSV file. finetune_keras.data.images reads "
            "folders"
        )
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    if delimiter is None:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise ValueError(f"line {line} of {str(path)!r} is not UTF-8") from None
    lines: list[int] = []
    found: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                lines.append(start)
                found.append([field.strip() for field in fields])
            start = reader.line_num + 1
    except csv.Error as e:
        raise ValueError(f"line {max(start, 1)} of {str(path)!r}: {e}") from None
    if len(found) < 2:
        raise ValueError(f"{str(path)!r} has no row below a header")
    header, *body = found
    if len(header) == 1:
        other = next((d for d in ";\t|," if d in header[0]), None)
        hint = f": give delimiter={other!r}" if other else ""
        raise ValueError(f"{str(path)!r} has a single column, {header[0]!r}{hint}")
    if twice := [n for n in header if header.count(n) > 1]:
        raise ValueError(f"{str(path)!r} has the column {twice[0]!r} twice")
    for line, fields in zip(lines[1:], body, strict=True):
        if len(fields) != len(header):
            raise ValueError(
                f"line {line} of {str(path)!r} has {len(fields)} fields, the header {len(header)}"
            )
        if any(ord(c) < 32 or c in _CONTROLS for field in fields for c in field):
            raise ValueError(f"line {line} of {str(path)!r} has a line break or control character")
    columns = {name: [fields[i] for fields in body] for i, name in enumerate(header)}
    return columns, lambda i: f"line {lines[i + 1]}", path.parent


def _columns(rows: Any) -> dict[str, list]:
    keys = getattr(rows, "columns", None)
    if not isinstance(rows, Mapping) and keys is None:
        raise TypeError(
            "expected the path of a CSV file, a data frame or a dict of columns; given a "
            f"{type(rows).__name__}"
        )
    columns = {str(k): list(rows[k]) for k in (rows if keys is None else list(keys))}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns are of different lengths: {lengths}")
    return columns


def _column(columns: Mapping, name: str | None, usual: Sequence[str], what: str) -> str:
    if name is None:
        name = next((n for n in columns if n.lower() in usual), None)
        if name is None:
            raise ValueError(f"give {what}=, the name of a column; {nearest('', columns)}")
    if name not in columns:
        raise ValueError(f"no column {name!r}: {nearest(str(name), columns)}")
    return name


def _inside(folder: Path, path: Any, where: str) -> str:
    """A path of a table below its folder; what is written there does not choose another place."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ValueError(f"the path in {where} is missing or no text: {path!r}")
    path = os.fspath(path)
    base = os.path.abspath(folder)
    if "\\" in path and not os.path.lexists(os.path.join(base, path)):  # written on Windows
        path = path.replace("\\", "/")
    full = os.path.normpath(os.path.join(base, path))
    if os.path.commonpath([base, full]) != base or full == base:
        raise ValueError(
            f"the path in {where} leads out of {str(folder)!r}: {path!r}; give folder= that "
            "holds all"
        )
    return os.path.join(folder, os.path.relpath(full, base))


def _one_label_each(files: Sequence[str], targets: np.ndarray, where: Any) -> None:
    first: dict[str, int] = {}
    for i, path in enumerate(files):
        j = first.setdefault(path, i)
        if not np.array_equal(targets[i], targets[j]):
            raise ValueError(
                f"{path!r} has two labels: one in {where(j)}, another one in {where(i)}"
            )
