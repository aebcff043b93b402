"""Whatever ``model.fit`` takes, read once and in order, as batches of NumPy arrays."""

from __future__ import annotations

import functools
import itertools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from finetune_keras import arrays
from finetune_keras._errors import shown
from finetune_keras.cache import streams
from finetune_keras.cache.batch import Batch, batch_digest, convert, differs
from finetune_keras.cache.sliced import Arrays, split
from finetune_keras.data.dataset import Plan

__all__ = ["Batch", "Source", "batch_digest", "is_stream", "source", "split"]


def source(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    preprocess: Callable | None = None,
    what: str = "the training data",
) -> Source:
    """Makes one reader of all that ``model.fit`` takes.

    Args:
        x: arrays, tensors of any backend, data frames, lists of numbers or strings, and dicts,
            lists and tuples of these; or a stream of batches ``x``, ``(x,)``, ``(x, y)`` or
            ``(x, y, sample_weight)``: a ``tf.data.Dataset``, ``keras.utils.PyDataset``,
            ``torch.utils.data.DataLoader``, generator, iterator or any iterable object.
        y: labels, beside arrays only.
        sample_weight: weights, beside arrays only.
        batch_size: of arrays; as in ``fit`` 32 by default, or what ``steps`` makes it, and ignored
            for a stream.
        steps: batches in a pass, ``steps_per_epoch`` of ``fit``.
        preprocess: called as ``preprocess(x, y, sample_weight)`` on each batch, as
            ``preprocess_samples`` of KerasHub's tasks; strings come as lists of ``str``. It may be
            called from another thread.
        what: names the data in messages.

    Floats of arrays are cast to ``keras.config.floatx()``, as ``fit`` does, a batch at a time;
    what a stream gives, or goes through ``preprocess``, stays as it is.

    Raises:
        TypeError: if ``x`` is nothing that ``fit`` takes.
        ValueError: if the data are empty, of different lengths, endless without ``steps``, or of
            fewer batches than ``steps``, as far as this is known without reading.

    Examples:
        >>> import numpy as np
        >>> s = source(np.zeros((5, 2)), [0, 1, 0, 1, 0], batch_size=2)
        >>> s.spec, s.batches
        ('arrays of 5 examples', 3)
        >>> [batch.y.tolist() for batch in s.read()]
        [[0, 1], [0, 1], [0]]
    """
    for name, value in (("batch_size", batch_size), ("steps_per_epoch", steps)):
        number = isinstance(value, numbers.Real) and math.isfinite(value)
        if value is not None and (not number or int(value) != value or value < 1):
            raise ValueError(f"{name} is a whole number from 1 on; given {shown(value)}")
    if x is None:
        raise TypeError(f"{what}: x is missing")
    if not is_stream(x):
        reader = Arrays(
            x,
            y,
            sample_weight,
            batch_size=batch_size,
            steps=steps,
            cast=preprocess is None,
            what=what,
        )
        # Where the steps say how large a batch is, rounding can leave fewer of them.
        steps = min(steps, reader.batches) if steps and not batch_size else steps
        return Source(reader, steps, preprocess, what)
    indexed = isinstance(x, keras.utils.PyDataset)
    reader = streams.Indexed(x) if indexed else streams.Stream(x)
    beside = [n for n, v in (("y", y), ("sample_weight", sample_weight)) if v is not None]
    if beside:
        raise ValueError(
            f"{what}: {reader.spec} gives labels and weights itself, as (x, y) or "
            f"(x, y, sample_weight); given {' and '.join(beside)} beside it"
        )
    if batch_size is not None and preprocess is not None:  # which KerasHub's tasks refuse
        raise ValueError(
            f"{what}: {reader.spec} has batches of its own: leave out batch_size={batch_size}"
        )
    return Source(reader, steps, preprocess, what)


class Source:
    """Data in order; made by :func:`source`.

    Attributes:
        again: whether it can be read from the start once more; a generator cannot.
        endless: whether it has no end.
        arrays: whether it is arrays, of which any rows can be taken.
        batches: in one pass, ``None`` if only reading can tell.
        examples: in one pass, ``None`` if only reading can tell.
        spec: what it is, in words.
    """

    def __init__(self, reader: Any, steps: int | None, preprocess: Callable | None, what: str):
        self._reader, self._steps, self._preprocess, self._what = reader, steps, preprocess, what
        if reader.batches == 0:
            raise self._short(0)
        if reader.endless and steps is None:
            raise ValueError(f"{what}: {reader.spec}: give steps_per_epoch=, the batches of a pass")
        if steps and reader.batches is not None and steps > reader.batches:
            raise self._short(reader.batches)
        self.again: bool = reader.again
        self.endless: bool = reader.endless
        self.arrays = isinstance(reader, Arrays)
        self.spec: str = reader.spec
        self.batches: int | None = steps or reader.batches
        self.examples: int | None = None
        if self.arrays:
            self.examples = min(self.batches * reader.size, reader.examples)
        # The next read begins with these; what was only looked at has been begun already.
        self._kept: list[Callable] = []
        self._rest: Iterator[Callable] | None = None
        self._begun = False
        self._first: Batch | None = None  # which all the others are like
        self._batch_size: int | None = reader.size if self.arrays else None
        self._digest: dict[str, Any] | None = None

    @property
    def batch_size(self) -> int:
        """Of a full batch of arrays; of a stream its first batch's, which ``read`` gives again."""
        if self._batch_size is None:
            self._batch_size = self.first().size
        return self._batch_size

    def first(self) -> Batch:
        """The first batch; ``read`` gives it again."""
        return self._peek(1)[0]

    def read(self, start: int = 0, passes: int = 1) -> Iterator[Batch]:
        """Gives the batches; those of a stream are read ahead by a thread, three at most.

        Each call begins anew, but for a generator or iterator, which goes on where it was. A
        ``PyDataset`` hears of each pass by ``on_epoch_begin`` and ``on_epoch_end``. Without
        ``steps`` each pass is all of the data. With ``steps`` each takes the next so many batches,
        as the epochs of ``fit`` do, and where the data end they begin anew: an endless data set
        goes on from pass to pass, and begins anew with each call.

        Args:
            start: how many batches to leave out, counted over all passes: by index, or where there
                is none by reading them and dropping them.
            passes: how many epochs.

        Raises:
            ValueError: for more than one pass over a generator without ``steps``; while reading,
                if there is no batch or there are fewer than ``steps``, if a batch is no
                batch (rank 0, unequal lengths), or if structure, or shape or type of the labels,
                change from one batch to the next. Batches may differ in size.
        """
        if passes > 1 and not self.again and self._steps is None:
            raise ValueError(
                f"{self._what}: {self.spec} can be read only once, and {passes} passes are "
                "needed: make it a tf.data.Dataset or keras.utils.PyDataset, or give "
                "steps_per_epoch="
            )
        return self._read(start, passes)

    def digest(self) -> dict[str, Any]:
        """A fingerprint of the data, of JSON's types, to tell later whether they are the same.

        Of arrays: names, shapes and types, a hash of all labels and weights, and one of each input
        over up to 256 rows from the first to the last, and 12 MB of these. Of a stream: what is
        known of it and a hash of its first two batches, which ``read`` gives again; of a generator
        these are read before the first one is given. So a data set
        that is shuffled anew at each reading has another digest each time it is opened, and has
        to: its order is not the same. With ``preprocess`` the first batches are hashed after it.
        Data sets of ``finetune_keras.data`` say themselves whether their files have changed.
        """
        if self._digest is None and self._preprocess is None:
            self._digest = self._known()
        if self._digest is None:
            made = self._reader.digest() if self.arrays else {"kind": self.spec}
            if not self.arrays or self._preprocess is not None:
                first = self._peek(2)
                made |= {
                    "batches": self.batches,
                    "elements": [
                        [name, list(array.shape[1:]), array.dtype.name]
                        for name, array in first[0].leaves()
                    ],
                    "first": [batch_digest(batch, whole=True) for batch in first],
                }
            self._digest = made
        return self._digest

    def _known(self) -> dict[str, Any] | None:
        """What a data set of ``finetune_keras.data`` says: which examples, however divided."""
        data = getattr(self._reader, "data", None)
        if not isinstance(getattr(data, "plan", None), Plan) or (known := data.digest()) is None:
            return None
        rows = len(data.order)
        rows = min(rows, self._steps * data.plan.batch_size) if self._steps else rows
        return {"kind": "a data set of files", "examples": rows, "fingerprint": known}

    def _read(self, start: int, passes: int) -> Iterator[Batch]:
        if not self.again:
            self.digest()  # while the first batches are still there
        tasks = None
        workers = self._reader.workers or (1 if self._preprocess is not None else 0)
        for _ in range(passes):
            if not self._begun:
                self._reader.begin()
            self._begun = False
            if tasks is None or self._steps is None:
                tasks = self._open()
            of_pass = itertools.islice(tasks, self._steps)
            n = self._drop(of_pass, start)
            start -= n
            converting = (functools.partial(self._convert, task) for task in of_pass)
            for batch in streams.ahead(converting, workers, self._give_back):
                n += 1
                self._look(batch, n)
                yield batch
            if n < (self._steps or 1):
                raise self._short(n)
            self._reader.end()

    def _open(self) -> Iterator[Callable]:
        """Functions that give the batches from the start, or from where a generator is."""
        if self._rest is None:
            self._kept, self._rest = [], self._reader.tasks(self._steps)
        tasks = itertools.chain(self._kept, self._rest) if self._kept else self._rest
        self._kept, self._rest = [], None if self.again else tasks
        return tasks

    def _peek(self, most: int) -> list[Batch]:
        """The first batches, or as many as there are; the next ``read`` begins with them."""
        if self._rest is None:
            self._reader.begin()
            self._begun = True
        tasks, found = self._open(), []
        for task in itertools.islice(tasks, min(most, self._steps or most)):
            if (batch := self._convert(task)) is streams.END:
                break
            found.append(batch)
        self._kept, self._rest = [functools.partial(_given, b) for b in found], tasks
        if not found:
            raise self._short(0)
        return found

    def _drop(self, tasks: Iterator[Callable], most: int) -> int:
        n = 0
        for task in itertools.islice(tasks, most):
            if not self._reader.by_index and task() is streams.END:
                break
            n += 1
        return n

    def _give_back(self, tasks: list[Callable]) -> None:
        if not self.again:
            self._kept = tasks + self._kept

    def _convert(self, task: Callable) -> Any:
        raw = task()
        if raw is streams.END or isinstance(raw, Batch):
            return raw
        return convert(raw, self._preprocess, copy=self._reader.copies, what=self._what)

    def _look(self, batch: Batch, n: int) -> None:
        if n == 1 and self._batch_size is None:
            self._batch_size = batch.size
        self._first = self._first or batch
        if found := differs(batch, self._first):
            raise ValueError(f"{self._what}: batch {n} {found}")

    def _short(self, n: int) -> ValueError:
        spec, steps = self._reader.spec, self._steps
        if n:
            return ValueError(
                f"{self._what}: {spec} ended after {n} of steps_per_epoch={steps} batches: "
                f"give {n} or leave it out, or let the data repeat"
            )
        used = "" if self._reader.again else ", or was read to its end before"
        return ValueError(f"{self._what}: {spec} gives no batch: it is empty{used}")


def is_stream(x: Any) -> bool:
    """Whether this gives batches, rather than being arrays."""
    if isinstance(x, keras.utils.PyDataset) or hasattr(x, "__next__"):
        return True
    if arrays.is_array(x) or isinstance(x, Mapping | list | tuple | str | bytes):
        return False
    return hasattr(x, "__iter__")


def _given(batch: Batch) -> Batch:
    return batch
