"""Images that a table names, with their labels, as a data set."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_keras.data import folders, pixels, records
from finetune_keras.data.images import from_files
from finetune_keras.data.labels import encode, named

__all__ = ["listed", "table"]

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
    encoding: str = "utf-8",
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
        rows: path of a CSV file with a header, or of JSON lines; a data frame; a dict of columns.
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
        delimiter: between fields; by default a tab in a file that ends in ``.tsv``, or else what
            the header has: commas, or semicolons or tabs, as Excel writes.
        encoding: of a file, such as ``"cp1252"``, which Excel writes on Windows. One that begins
            with a byte order mark, of UTF-8 or UTF-16, is read as that says.
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
    files, targets, names = listed(
        rows, x, y, folder, named(class_names), labels, delimiter, encoding
    )
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
    encoding: str = "utf-8",
) -> tuple[list[str], np.ndarray, list[str]]:
    """The files, their labels and the names of the classes, all as of `table`."""
    if isinstance(rows, str | os.PathLike) and (beside := folders.located(rows)).is_dir():
        raise ValueError(
            f"{str(beside)!r} is a folder; expected a CSV file. finetune_keras.data.images reads "
            "folders"
        )
    columns, places = _columns(rows, delimiter, encoding)
    where = places.__getitem__
    paths = columns[records.column(columns, x, _X, "x")]
    several = not isinstance(y, str | None)
    if several:
        named = [records.column(columns, n, (), "y") for n in y]
        parts = [encode(columns[n], kind="numbers", where=where)[0] for n in named]
        if not parts:
            raise ValueError("y is a column of labels, or a list of columns; given an empty list")
        targets, names = np.stack(parts, axis=1), []
    else:
        values = columns[records.column(columns, y, _Y, "y")]
        targets, names = encode(values, class_names, kind=labels, where=where)
    if folder is None:
        folder = folders.located(rows).parent if isinstance(rows, str | os.PathLike) else "."
    base = folders.root(folder)
    files = [_inside(base, path, where(i)) for i, path in enumerate(paths)]
    _one_label_each(files, targets, where)
    if not any(map(os.path.lexists, files)):
        raise ValueError(
            f"none of {len(files)} files is there, the first is {files[0]!r}: give folder=, that "
            "the paths begin from"
        )
    return files, targets, names


def _columns(rows: Any, delimiter: str | None, encoding: str) -> tuple[dict[str, list], list[str]]:
    """The columns of a table and what to call its rows; what is wrong with a row is an error."""
    found = records.read(rows, delimiter=delimiter, quotes=True, encoding=encoding, any_ending=True)
    if not found.rows:
        raise ValueError("the table has no rows")
    for i, why in sorted(found.bad.items()):
        raise ValueError(f"{found.places[i]} is broken: {why}")
    columns = {name: [_stripped(row.get(name)) for row in found.rows] for name in found.names}
    for i, place in enumerate(found.places):
        fields = [f for f in (c[i] for c in columns.values()) if isinstance(f, str)]
        if any(ord(c) < 32 or c in _CONTROLS for f in fields for c in f):
            raise ValueError(f"{place} has a line break or control character")
    return columns, found.places


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _inside(folder: Path, path: Any, where: str) -> str:
    """A path of a table below its folder; what is written there does not choose another place."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ValueError(f"the path in {where} is missing or no text: {path!r}")
    path = os.fspath(path)
    base = os.path.abspath(folder)
    if "\\" in path and not os.path.lexists(os.path.join(base, path)):  # written on Windows
        path = path.replace("\\", "/")
    # An archive made on a Mac may write letters with accents in two characters.
    forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    path = next((p for p in forms if os.path.lexists(os.path.join(base, p))), path)
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
