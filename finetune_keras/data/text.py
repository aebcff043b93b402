"""Text with labels, from tables, JSON lines and folders, as a data set."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_keras._errors import nearest
from finetune_keras.data import folders, records
from finetune_keras.data.dataset import Examples, Plan, dataset, shown
from finetune_keras.data.labels import encode, missing, named

__all__ = ["from_texts", "text"]

_X = ("text", "sentence", "review", "content", "message", "document", "body", "title")
_Y = ("label", "labels", "class", "category", "target", "sentiment", "y")
_ENDINGS = (".txt", ".md", ".text")


def text(
    source: str | os.PathLike | Mapping[str, Sequence[Any]] | Any,
    *,
    x: str | None = None,
    y: str | None = None,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    quotes: bool | None = None,
    encoding: str = "utf-8",
    class_names: Sequence[str] | None = None,
    labels: str = "auto",
    preprocessor: Callable | None = None,
    batch_size: int = 32,
    shuffle: bool | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Any:
    r"""Text with labels as a ``tf.data.Dataset`` of ``(x, y)`` in batches.

    ``x`` are strings of shape (batch,), or what ``preprocessor`` makes of them; ``y`` are int32,
    the place of the class among the sorted names. Rows that are broken, without text or without a
    label, are left out, and a warning names their lines.

    Args:
        source: one of

            - a CSV file with a header (``.csv``; ``.tsv`` for tabs), or JSON lines (``.jsonl``);
            - a folder of classes, ``class/file.txt``, or one with ``train``, ``val`` and ``test``;
            - a data frame or a dict of columns.
        x: the column of text; by default one called ``text``, ``sentence``, ``review``, ...
        y: the column of labels; by default one called ``label``, ``class``, ``category``, ...
        columns: names of the fields, for a file without a header.
        delimiter: between fields; by default a tab in a ``.tsv`` file, or else what the header
            has: commas, or semicolons or tabs, as Excel writes.
        quotes: whether ``"`` encloses fields with delimiters and line breaks in them; by default it
            does with commas, and not with tabs.
        encoding: of the text, such as ``"latin-1"``. A table that begins with a byte order mark, of
            UTF-8 or UTF-16, is read as that says.
        class_names: the classes in the order of their numbers; any other label is then an error.
        labels: ``"classes"`` or ``"numbers"`` where ``"auto"`` would guess wrong.
        preprocessor: called on a batch of strings inside TensorFlow, such as a preprocessor or
            tokenizer of KerasHub. Plain Keras takes strings on TensorFlow only.
        batch_size: texts in a batch.
        shuffle: whether each epoch has an order of its own; all but ``val`` and ``test`` do.
        seed: of the order.
        strict: whether a row that cannot be used is an error.

    Returns:
        A ``tf.data.Dataset`` with the attributes of `dataset`, or a dict of these by split.

    Raises:
        ValueError: if there is nothing to read, a column is not there, or a label is no class.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mail.csv"
        >>> _ = path.write_text('text,label\n"Hello, you",ham\nBuy now,spam\n')
        >>> ds = text(path, shuffle=False)
        >>> ds.class_names, next(iter(ds))[0].numpy().tolist()
        (['ham', 'spam'], [b'Hello, you', b'Buy now'])
    """
    if preprocessor is not None and not callable(preprocessor):
        raise TypeError(f"preprocessor is called on strings; given {preprocessor!r}")
    settings = {"preprocessor": preprocessor, "batch_size": batch_size, "seed": seed}
    chosen = {"class_names": named(class_names), "kind": labels, "strict": strict}
    if isinstance(source, str | os.PathLike):
        path = folders.located(source)
        if path.is_dir():
            return _from_folder(path, encoding, shuffle, chosen, settings)
    found = records.read(
        source, columns=columns, delimiter=delimiter, quotes=quotes, encoding=encoding
    )
    if not found.rows:
        shown = str(source) if isinstance(source, str | os.PathLike) else "the table"
        raise ValueError(f"{shown!r} has no rows")
    x = records.column(found.names, x, _X, "x")
    y = records.column(found.names, y, _Y, "y")
    values, bad = [(row.get(x), row.get(y)) for row in found.rows], dict(found.bad)
    for i, (words, label) in enumerate(values):
        if i not in bad and missing(words):
            bad[i] = f"no text in {x!r}"
        meant = [label] if labels == "classes" else chosen["class_names"]
        if i not in bad and missing(label, meant):
            bad[i] = f"no label in {y!r}"
    return _made(values, found.places, bad, chosen, {**settings, "shuffle": shuffle is not False})


def from_texts(
    texts: Sequence[str | bytes],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    names: Sequence[str] = (),
    skipped: Sequence[str] = (),
    preprocessor: Callable | None = None,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int = 0,
) -> Any:
    """The data set of texts with labels; see `text`.

    Args:
        texts: in UTF-8 if they are bytes.
        labels: one a text.
        class_names: by label.
        names: what to call each in messages.
        skipped: what to call those that were left out.
        preprocessor: called on a batch of strings.
        batch_size: texts in a batch.
        shuffle: whether each epoch has an order of its own.
        seed: of the order.
    """
    import tensorflow as tf

    with tf.device("CPU:0"):
        strings = tf.constant(list(texts), tf.string)

    def load(i: Any) -> Any:
        found = tf.gather(strings, i)
        return found if preprocessor is None else preprocessor(found)

    digest = hashlib.blake2b(labels.tobytes(), digest_size=16)
    for item in strings.numpy():
        digest.update(len(item).to_bytes(8, "little") + item)
    examples = Examples(
        load,
        labels,
        tuple(class_names),
        names=names,
        batched=True,
        fingerprint=digest.hexdigest if preprocessor is None else None,
        what="texts",
        skipped=skipped,
    )
    return dataset(Plan(examples, batch_size=batch_size, shuffle=shuffle, seed=seed))


def _from_folder(folder: Path, encoding: str, shuffle: bool | None, chosen, settings) -> Any:
    base = folders.root(folder)
    parts = folders.splits(base)
    first = parts.get("train", base)
    names = folders.chosen(folders.classes(first), chosen["class_names"], str(first))
    made = {}
    for part, path in (parts or {"": base}).items():
        here = folders.classes(path)
        if other := [n for n in here if n not in names and not chosen["class_names"]]:
            raise ValueError(
                f"{str(path)!r} has a class {other[0]!r} that the training data have not: "
                f"{nearest(other[0], names)}"
            )
        values, places, bad = [], [], {}
        for name in names:
            for file in folders.files(here[name], _ENDINGS) if name in here else []:
                found = ""
                try:
                    found = Path(file).read_bytes().decode(encoding)
                    if not found.strip():
                        bad[len(values)] = "no text"
                except (OSError, UnicodeDecodeError):
                    bad[len(values)] = f"not {encoding}"
                values.append((found, name))
                places.append(repr(os.path.relpath(file, base)))
        if not values:
            raise ValueError(
                f"{str(path)!r} has no folder of a class with text ({', '.join(_ENDINGS)}): "
                "expected class/file.txt, or train/class/file.txt"
            )
        mixed = part in ("", "train") if shuffle is None else shuffle
        made[part] = _made(
            values, places, bad, {**chosen, "class_names": names}, {**settings, "shuffle": mixed}
        )
    return made if parts else made[""]


def _made(values: list, places: list[str], bad: dict[int, str], chosen, settings) -> Any:
    """The data set of what is whole; the rest is named."""
    if bad:
        worst = [f"{places[i]}: {why}" for i, why in sorted(bad.items())]
        if chosen["strict"]:
            raise ValueError(f"{worst[0]}; strict=True stops at the first")
        if len(bad) == len(values):
            raise ValueError(f"none of {len(values)} texts can be used, the first: {worst[0]}")
        warnings.warn(
            f"{len(bad)} of {len(values)} texts are left out: {shown(worst)}", stacklevel=4
        )
    kept = [i for i in range(len(values)) if i not in bad]
    labels, names = encode(
        [values[i][1] for i in kept],
        chosen["class_names"],
        kind=chosen["kind"],
        where=lambda n: places[kept[n]],
    )
    texts = [_string(values[i][0]) for i in kept]
    left = [places[i] for i in sorted(bad)]
    kept = [places[i] for i in kept]
    return from_texts(texts, labels, names, names=kept, skipped=left, **settings)


def _string(value: Any) -> str | bytes:
    return value if isinstance(value, str | bytes) else str(value)
