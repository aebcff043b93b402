"""The reader of arrays: batches are slices, and nothing is copied whole."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from finetune_keras import arrays
from finetune_keras.cache import digest

__all__ = ["Arrays", "split"]

_ROWS, _BYTES = 256, 12 << 20  # of each input, for a digest


class Arrays:
    """Slices of ``(x, y, sample_weight)``, arrays of one length in any structure."""

    again, by_index, endless, copies, workers = True, True, False, False, 0

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        *,
        batch_size: int | None,
        steps: int | None,
        cast: bool,
        what: str,
    ):
        x, y, weight = _checked(x, y, sample_weight, what)
        self.data, self.cast = (x, y, weight), cast
        self.examples = int(keras.tree.flatten(x)[0].shape[0])
        self.size = batch_size or (math.ceil(self.examples / steps) if steps else 32)
        self.batches = math.ceil(self.examples / self.size)
        self.spec = f"arrays of {self.examples:,} examples"

    def tasks(self, loop: int | None) -> Iterator[Callable]:
        """Functions that give a batch each."""
        at = range(self.batches)
        return (functools.partial(self._batch, i) for i in (itertools.cycle(at) if loop else at))

    def _batch(self, i: int) -> tuple:
        return self.take(slice(i * self.size, min((i + 1) * self.size, self.examples)))

    def take(self, at: slice) -> tuple:
        """Any rows of all arrays; of NumPy's and data frames by an array of numbers too."""
        return arrays.each(lambda a: self._cast(arrays.rows(a, at)), self.data)

    def _cast(self, array: np.ndarray) -> np.ndarray:
        float_ = "float" in array.dtype.name
        return array.astype(keras.config.floatx(), copy=False) if float_ and self.cast else array

    def begin(self) -> None:
        """Nothing is to be told."""

    end = begin

    def digest(self) -> dict[str, Any]:
        """All labels and weights, and rows of the inputs spread evenly."""
        x, y, weight = self.data
        found = []
        for name, array in digest.named(x, "x"):
            at, limit = digest.spread(array, _ROWS, _BYTES)
            found.append(
                _described(name, array, rows=len(at), hash=digest.of_rows(array, at, limit))
            )
        for name, array in digest.named(y, "y") + digest.named(weight, "sample_weight"):
            at = digest.chunks(array)
            found.append(
                _described(name, array, rows=self.examples, hash=digest.of_rows(array, at))
            )
        return {"kind": "arrays", "examples": self.examples, "arrays": found}


def split(
    x: Any, y: Any = None, sample_weight: Any = None, validation_split: float = 0.0
) -> tuple[tuple, tuple]:
    """Takes the last fraction of arrays for validation, as ``fit`` does before it shuffles.

    Args:
        x: arrays, as for :func:`source`.
        y: labels.
        sample_weight: weights.
        validation_split: the fraction, between 0 and 1; the training part is rounded down.

    Returns:
        ``(x, y, sample_weight)`` to train on, and to validate on. Views where the arrays allow it.

    Raises:
        TypeError: for anything but arrays.
        ValueError: if the fraction leaves one part empty, or the lengths differ.

    Examples:
        >>> (x, y, _), (x_val, y_val, _) = split(np.arange(5), np.arange(5), None, 0.3)
        >>> x, x_val
        (array([0, 1, 2]), array([3, 4]))
    """
    if not 0 < validation_split < 1:
        raise ValueError(f"validation_split is between 0 and 1; given {validation_split}")
    try:
        data = _checked(x, y, sample_weight, "the training data", replicate=False)
    except TypeError:
        raise TypeError(
            f"validation_split={validation_split} takes a part of arrays; given "
            f"{arrays.short(x)}: give validation_data"
        ) from None
    n = int(keras.tree.flatten(data[0])[0].shape[0])
    at = math.floor(n * (1.0 - validation_split))
    if at in (0, n):
        raise ValueError(
            f"validation_split={validation_split} of {n} examples leaves {at} to train on and "
            f"{n - at} to validate on: give validation_data, or another fraction"
        )
    return (
        arrays.each(lambda a: arrays.cut(a, slice(0, at)), data),
        arrays.each(lambda a: arrays.cut(a, slice(at, n)), data),
    )


def _checked(x: Any, y: Any, weight: Any, what: str, *, replicate: bool = True) -> tuple:
    """Arrays in their structures, all of one length."""
    x, y, weight = (arrays.bare(part) for part in (x, y, weight))
    if replicate and keras.tree.is_nested(y) and weight is not None:
        if not keras.tree.is_nested(weight):  # one weight an example, for all outputs
            weight = arrays.each(lambda _: weight, y)
        if [p for p, _ in digest.named(y, "")] != [p for p, _ in digest.named(weight, "")]:
            raise ValueError(
                f"{what}: sample_weight is one array, or one for each output in the structure of "
                f"y: {', '.join(p for p, _ in digest.named(y, 'y'))}"
            )
    leaves = [
        pair
        for name, part in (("x", x), ("y", y), ("sample_weight", weight))
        for pair in digest.named(part, name)
    ]
    for name, leaf in leaves:
        if not hasattr(leaf, "shape") or not len(leaf.shape):
            raise TypeError(
                f"{what}: arrays, dicts or lists of arrays, or a data set of batches are needed; "
                f"{name} is {arrays.short(leaf)}"
            )
    lengths = {name: int(leaf.shape[0]) for name, leaf in leaves}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{n} of {name}" for name, n in lengths.items())
        raise ValueError(f"{what}: there are {found}: one of each for every example is needed")
    if not any(lengths.values()) or not leaves[0][0].startswith("x"):
        raise ValueError(f"{what}: there are 0 examples")
    return x, y, weight


def _described(name: str, array: Any, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "shape": [None if n is None else int(n) for n in array.shape],
        "dtype": digest.kind(arrays.rows(array, slice(0, 1))),
        **more,
    }
