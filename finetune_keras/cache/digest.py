"""Short hashes that tell two sets of data apart, the same on every machine and backend."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from finetune_keras import arrays

__all__ = ["named", "of", "of_rows"]

_BLOCK = 1024  # bytes that are taken together where not all are
_CHUNK = 1 << 26  # bytes of an array that are read at a time


def named(structure: Any, root: str) -> list[tuple[str, Any]]:
    """The leaves of a structure, each with the expression that gives it; without ``None``.

    Examples:
        >>> named({"a": 1, "b": [2, None]}, "x")
        [("x['a']", 1), ("x['b'][0]", 2)]
    """
    return [
        (root + "".join(f"[{key!r}]" for key in path), leaf)
        for path, leaf in keras.tree.flatten_with_path(structure)
        if leaf is not None
    ]


def of(leaves: Iterable[tuple[str, np.ndarray]], limit: int | None = None) -> str:
    """A hash of named arrays: their names, types, shapes and bytes.

    Args:
        leaves: as of :func:`named`.
        limit: about how many bytes of each to take, in blocks spread evenly; all if ``None``.

    Examples:
        >>> of([("x", np.arange(3))]) == of([("x", np.arange(3))], limit=10)
        True
    """
    hashed = hashlib.blake2b(digest_size=16)
    for name, array in leaves:
        hashed.update(f"{name} {kind(array)} {array.shape}\n".encode())
        _add(hashed, array, limit)
    return hashed.hexdigest()


def of_rows(array: Any, at: Iterable[slice], limit: int | None = None) -> str:
    """A hash of some rows of an array of any kind, which are read one slice after the other."""
    hashed = hashlib.blake2b(digest_size=16)
    for piece in at:
        _add(hashed, arrays.rows(array, piece), limit)
    return hashed.hexdigest()


def chunks(array: Any) -> list[slice]:
    """All rows of an array, in slices of bounded size."""
    n = int(array.shape[0])
    row = arrays.rows(array, slice(0, 1)).nbytes or 1
    step = max(1, _CHUNK // row)
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def spread(array: Any, most: int, limit: int) -> tuple[list[slice], int]:
    """Single rows from the first to the last, and how many bytes of each make ``limit`` in all."""
    n = int(array.shape[0])
    at = np.unique(np.linspace(0, n - 1, min(n, most)).astype("int64"))
    return [slice(int(i), int(i) + 1) for i in at], max(limit // max(len(at), 1), _BLOCK)


def kind(array: np.ndarray) -> str:
    """The name of a type; every kind of string is a string."""
    return "string" if array.dtype.kind in "OSU" else array.dtype.name


def _add(hashed: Any, array: np.ndarray, limit: int | None) -> None:
    if kind(array) == "string":
        for item in array.ravel():
            item = item if isinstance(item, bytes) else str(item).encode()
            hashed.update(len(item).to_bytes(8, "little") + item)
        return
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat = array.reshape(-1).view("uint8")
    every = math.ceil(flat.size / limit) if limit else 1
    if every > 1:
        whole = flat.size // _BLOCK * _BLOCK
        hashed.update(flat[whole:])
        flat = np.ascontiguousarray(flat[:whole].reshape(-1, _BLOCK)[::every])
    hashed.update(flat)
