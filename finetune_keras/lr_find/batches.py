"""A few batches of what ``fit`` takes, in random order, without moving on what is read."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from finetune_keras import arrays
from finetune_keras.cache import batch, sliced, source
from finetune_keras.data.dataset import Plan, dataset

__all__ = ["WHAT", "Batches"]

WHAT = "the data"  # as messages call them


class Batches:
    """The first ``most`` batches of the data, or all where there are fewer.

    Arrays are shuffled, and so are the batches of a ``PyDataset``, whose ``on_epoch_begin`` and
    ``on_epoch_end`` are not called. A data set of ``finetune_keras.data`` is read through a copy.

    Args:
        x: as in ``fit``.
        y: labels, beside arrays only.
        sample_weight: weights, beside arrays only.
        batch_size: of arrays, 32 by default.
        most: how many batches are wanted.
        preprocess: what a KerasHub task does to each batch.

    Raises:
        ValueError: if there is no batch.
    """

    def __init__(
        self, x: Any, y: Any, sample_weight: Any, *, batch_size: int | None, most: int, preprocess
    ):
        self.most, self.preprocess, self.again = most, preprocess, True
        if x is None:
            raise TypeError(f"{WHAT}: x is missing")
        if not source.is_stream(x):
            reader = sliced.Arrays(
                x,
                y,
                sample_weight,
                batch_size=batch_size,
                steps=None,
                cast=preprocess is None,
                what=WHAT,
            )
            reader.data = arrays.each(_indexed, reader.data)
            size = min(reader.size, reader.examples)
            order = np.random.default_rng(0).permutation(reader.examples)
            order = order[: len(order) // size * size].reshape(-1, size)[:most]
            self._lap = lambda: map(reader.take, order)
        else:
            if y is not None or sample_weight is not None:
                raise ValueError(
                    f"{WHAT}: a data set gives labels and weights itself, as (x, y) or "
                    "(x, y, sample_weight); given some beside it"
                )
            self._lap = self._stream(x)
        lap = iter(self._lap())
        raw = next(lap, None)
        if raw is None:
            raise ValueError(f"{WHAT}: {arrays.short(x)} gives no batch: it is empty")
        self.first = self._batch(raw)
        self._begun = itertools.chain([raw], lap)

    def _stream(self, data: Any) -> Any:
        if isinstance(data, keras.utils.PyDataset):
            n = data.num_batches
            order = range(self.most) if n is None else np.random.default_rng(0).permutation(n)
            return lambda: (data[int(i)] for i in order[: self.most])
        if isinstance(getattr(data, "plan", None), Plan):
            skipped = list(data.plan.skipped or ())
            epoch, data = data.order.epoch, dataset(dataclasses.replace(data.plan, skipped=skipped))
            data.order.epoch = epoch
        if hasattr(data, "__next__"):
            self.again = False
            warnings.warn(
                f"what is read from a {type(data).__name__} is gone: fit will begin after these "
                "batches",
                stacklevel=4,
            )
        return lambda: itertools.islice(iter(data), self.most)

    def source(self) -> source.Source:
        """One lap, for `finetune_keras.cache`."""
        return source.source(self._open(), preprocess=self.preprocess, what=WHAT)

    def __iter__(self) -> Iterator[batch.Batch]:
        """Batches as large as the first, over and over."""
        held: list[batch.Batch] = []
        for raw in self._open():
            one = self._batch(raw)
            if not self.again:
                held.append(one)
            if one.size == self.first.size:
                yield one
        while True:
            n = 0
            for one in held or map(self._batch, self._lap()):
                if one.size == self.first.size:
                    n += 1
                    yield one
            if not n:
                raise ValueError(f"{WHAT} give no batch when they are read again")

    def _open(self) -> Iterator[Any]:
        begun, self._begun = self._begun, None
        return iter(self._lap()) if begun is None else begun

    def _batch(self, raw: Any) -> batch.Batch:
        return batch.convert(raw, self.preprocess, copy=True, what=WHAT)


def _indexed(array: Any) -> Any:
    """An array that any rows can be taken of."""
    kept = isinstance(array, np.ndarray) or hasattr(array, "iloc") or hasattr(array, "tocsr")
    return array if kept else arrays.to_numpy(array)
