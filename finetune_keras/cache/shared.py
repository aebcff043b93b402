"""Features that several trainings share: equal rows through equal networks are computed once."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from finetune_keras._errors import CacheError
from finetune_keras.cache import digest
from finetune_keras.cache.engines.engine import Engine, Run
from finetune_keras.cache.fingerprint import fingerprint
from finetune_keras.cache.rows import MemoryRows
from finetune_keras.cache.store import available

__all__ = ["shares", "sharing", "through"]

_NOW: contextvars.ContextVar[_Shared | None] = contextvars.ContextVar("sharing", default=None)


@contextlib.contextmanager
def sharing(memory: int | None = None) -> Iterator[None]:
    """Within this, what a frozen network makes of an example is computed once.

    Whoever computes features (`finetune_keras.fit`, `fine_tune`, `features`) finds those of an
    earlier training, in whatever order or division of the data they come. Examples are equal if
    their inputs are equal to the bit; networks if graph, weights and engine are. What differs is
    computed, so that nothing has to be told apart by hand. `finetune_keras.cross_validate` does
    this by itself; around several of them it lets these share as well.

    Features are kept in memory as long as those of all networks take less than ``memory`` bytes.
    Then networks that were not used for the longest time go first, and what a single one makes
    goes on in a temporary file. All of it is let go of in the end.

    Args:
        memory: bytes; by default a quarter of what is free.

    Examples:
        >>> import finetune_keras as ftk
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> x = np.zeros((8, 24, 24, 3))
        >>> with sharing():
        ...     first = ftk.features(base.model, (x,), verbose=0)
        ...     again = ftk.features(base.model, (x[2:5],), verbose=0)  # looked up
        >>> np.array_equal(first.features[0][2:5], again.features[0])
        True
    """
    if _NOW.get() is not None:  # the outer one goes on for longer
        yield
        return
    shared = _Shared(available() if memory is None else memory)
    token = _NOW.set(shared)
    try:
        yield
    finally:
        _NOW.reset(token)
        shared.close()


def through(engine: Engine, network: keras.Model) -> Engine:
    """An engine that computes ``network``, made to look up what was computed already.

    It is the engine itself outside of `sharing`, and where a layer has no config to tell networks
    apart by.
    """
    shared, which = _NOW.get(), _which(network)
    if which is None:
        return engine
    run = functools.partial(shared.run, (*which, engine.record.name), engine.run)
    return dataclasses.replace(engine, _run=run)


def shares(network: keras.Model) -> bool:
    """Whether what ``network`` makes is kept, and looked up."""
    return _which(network) is not None


def _which(network: keras.Model) -> tuple | None:
    if _NOW.get() is None:
        return None
    try:
        # In inference, where a seed changes nothing.
        return tuple(fingerprint(network, seeds=False).values())
    except CacheError:
        return None


class _Shared:
    """Features by network and example. The network that was used last is the last one."""

    def __init__(self, budget: int):
        self.budget = budget
        self._made: dict[tuple, _Made] = {}

    def run(self, which: tuple, compute: Run, given: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Computes a batch, of which only the new rows go through the network."""
        key = (*which, *((a.shape[1:], digest.kind(a)) for a in given))
        made = self._made.pop(key, None) or _Made()
        self._made[key] = made
        size = len(given[0])
        names = [
            digest.of((str(k), a[i : i + 1]) for k, a in enumerate(given)) for i in range(size)
        ]
        first: dict[str, int] = {}
        for i, name in enumerate(names):
            first.setdefault(name, i)
        new = [i for name, i in first.items() if name not in made.at]
        if new:
            # As many rows as always: another size would be compiled anew.
            rows = np.array(new + new[-1:] * (size - len(new)))
            found = compute([a[rows] for a in given])
            if any(not f.shape or len(f) != size for f in found):
                return compute(given)  # not one row an example: whoever asked refuses it
            found = [f[: len(new)] for f in found]
            self._evict(sum(f.nbytes for f in found))
            try:
                made.add([names[i] for i in new], found, self._left())
            except OSError:  # a full disk: what cannot be kept is computed again
                return compute(given)
        return made.take(names)

    def close(self) -> None:
        """Lets go of everything."""
        for made in self._made.values():
            made.close()
        self._made.clear()

    def _evict(self, more: int) -> None:
        while len(self._made) > 1 and sum(m.nbytes for m in self._made.values()) + more > (
            self.budget
        ):
            self._made.pop(next(iter(self._made))).close()

    def _left(self) -> int:
        return self.budget - sum(m.nbytes for m in self._made.values())


class _Made:
    """What one network made: of each example one row of bytes, all outputs one after another."""

    def __init__(self) -> None:
        self.at: dict[str, int] = {}
        self._spec: list[tuple[tuple[int, ...], np.dtype, slice]] = []
        self._memory: MemoryRows | None = None
        self._file: Any = None
        self._width = 0

    @property
    def nbytes(self) -> int:
        return len(self.at) * self._width

    def add(self, names: list[str], found: list[np.ndarray], room: int) -> None:
        """Keeps new rows: in memory if there is room for them, else in a file."""
        flat = [
            np.ascontiguousarray(f).reshape(len(f), math.prod(f.shape[1:])).view("uint8")
            for f in found
        ]
        if self._memory is None:
            for f, b in zip(found, flat, strict=True):
                at = slice(self._width, self._width + b.shape[1])
                self._spec.append((f.shape[1:], f.dtype, at))
                self._width = at.stop
            self._memory = MemoryRows((self._width,), np.dtype("uint8"))
        rows = np.concatenate(flat, axis=1)
        if self._file is None and rows.nbytes <= room:
            self._memory.append(rows)
        else:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115
            self._file.seek(self._place(len(self.at)))
            self._file.write(rows.data)
        first = len(self.at)
        self.at.update((name, first + i) for i, name in enumerate(names))

    def take(self, names: list[str]) -> list[np.ndarray]:
        """The rows of some examples, as the network gave them."""
        at = np.array([self.at[name] for name in names])
        rows = np.empty((len(at), self._width), "uint8")
        kept = at < self._memory.rows
        rows[kept] = self._memory.array()[at[kept]]
        for i in np.flatnonzero(~kept):
            self._file.seek(self._place(int(at[i])))
            rows[i] = np.frombuffer(self._file.read(self._width), "uint8")
        return [
            np.ascontiguousarray(rows[:, where]).view(dtype).reshape(len(at), *shape)
            for shape, dtype, where in self._spec
        ]

    def _place(self, row: int) -> int:
        return (row - self._memory.rows) * self._width

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
