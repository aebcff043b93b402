"""The pass of a frozen network over the data, batch by batch, into a store."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from finetune_keras import graph
from finetune_keras._errors import CacheError
from finetune_keras.cache import engines, shared, source
from finetune_keras.cache.augment import augmented
from finetune_keras.cache.featureset import FeatureSet
from finetune_keras.cache.rows import dtype_of
from finetune_keras.cache.store import Folder, Memory
from finetune_keras.check import shapes

__all__ = ["Pass", "telling"]

_Tell = Callable[[int, int | None, float], None]
_TELL: contextvars.ContextVar[_Tell | None] = contextvars.ContextVar("tell", default=None)


@contextlib.contextmanager
def telling(tell: _Tell) -> Iterator[None]:
    """Has passes without a bar of their own told: batches done, of how many (``None`` if that is
    not known), and seconds since the first.
    """
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


class Pass:
    """The pass over one data set."""

    def __init__(self, prefix, data, views, dtype, engine, tolerance, verbose) -> None:
        self.prefix, self.data, self.views = prefix, data, views
        self.dtype, self.engine, self.tolerance = dtype, engine, tolerance
        self.verbose = 1 if verbose == "auto" else verbose
        self.augment, self.core = augmented(prefix) if views > 1 else (None, prefix)
        self.chosen: Any = None
        self.structure: dict[str, Any] = {}
        self.spec: dict[str, tuple] | None = None

    def found(self, store: Folder) -> FeatureSet:
        """What an earlier pass left."""
        told = store.found
        made = self._set(store, store.arrays(), told["engine_record"], reused=True)
        if self.verbose:
            print(f"features: {len(made):,} examples from {store.path}, computed before")
        return made

    def run(self, store: Memory | Folder) -> FeatureSet:
        """Computes all that is not there yet."""
        try:
            self._resume(store)
            bar = self._compute(store)
            if self.spec is None:
                raise ValueError(f"the data are empty: {self.data.spec} gave no batch")
            rows = store.done["rows"]
            if rows % self.views:
                raise ValueError(
                    f"the data gave another number of examples at each of {self.views} readings, "
                    f"{rows} in all: views are draws of the same examples"
                )
        except BaseException:
            store.close()
            raise
        record = self._record(store)
        if bar.rate:
            record["examples_per_second"] = round(bar.rate, 1)  # of this pass, reading included
        told = {"structure": self.structure, "engine_record": record, "engine": record["name"]}
        arrays = store.finish(told)
        return self._set(store, arrays, record)

    def _record(self, store: Memory | Folder) -> dict[str, Any]:
        """What is known of the engine; that of an earlier run if there was nothing left to do."""
        return self.chosen.record.to_dict() if self.chosen else store.found["engine_record"]

    def _resume(self, store: Memory | Folder) -> None:
        if not store.done:
            return
        if store.done["batch_size"] != self.data.batch_size:
            store.restart()
            return
        self.structure = store.found["structure"]
        self.engine = store.found["engine_record"]["name"]  # not one half by another

    def _compute(self, store: Memory | Folder) -> _Bar:
        total = None if self.data.batches is None else self.data.batches * self.views
        done = store.done or {"view": 0, "batch": 0, "rows": 0}
        rows, count = done["rows"], done.get("count", 0)
        bar = _Bar(total, count, self.verbose)
        for view in range(done["view"], self.views):
            start = done["batch"] if view == done["view"] else 0
            for number, batch in enumerate(self._read(view, start, store), start):
                arrays = self._arrays(batch, number)
                if self.spec is None:
                    self._start(store, arrays, rows)
                self._check(arrays, number)
                rows, count = rows + batch.size, count + 1
                done = {"view": view, "batch": number + 1, "rows": rows, "count": count}
                if isinstance(store, Folder):  # only there a pass can go on
                    done["batch_size"] = self.data.batch_size
                    done["last"] = source.batch_digest(batch)
                store.append(arrays, done)
                bar.step(batch.size)
        bar.end()
        if self.spec is None and store.done:  # killed when all was computed
            self._start(store, None, rows)
        return bar

    def _read(self, view: int, start: int, store: Any):
        """The batches of one pass from ``start`` on; the one before is looked at again, since a
        pass goes on only if the data come in the order in which they came.
        """
        if start == 0:
            yield from self.data.read()
            return
        batches = self.data.read(start - 1)
        last = next(batches, None)
        if last is None or source.batch_digest(last) != store.done["last"]:
            raise CacheError(
                f"the pass in {store.path} was stopped after {store.done['count']} batches and "
                "cannot go on: the data come in another order now. Take shuffling out of the data "
                "(training shuffles features itself), or delete the folder"
            )
        yield from batches

    def _arrays(self, batch: source.Batch, number: int) -> dict[str, np.ndarray]:
        given = _flat(self.prefix, batch.x, number)
        if self.augment is not None:
            given = [
                keras.ops.convert_to_numpy(t)
                for t in keras.tree.flatten(
                    self.augment(_struct(self.augment, given), training=True)
                )
            ]
        size = self.data.batch_size
        padded = [_padded(a, size) for a in given]
        if self.chosen is None:
            chosen = engines.choose(self.core, padded, self.engine, tolerance=self.tolerance)
            self.chosen = shared.through(chosen, self.core)
        made = {}
        for i, value in enumerate(self.chosen.run(padded)):
            if not value.shape or len(value) != len(padded[0]):
                raise ValueError(
                    f"output {i} of {self.prefix.name!r} is of shape {value.shape} for "
                    f"{len(padded[0])} examples: features are one row an example"
                )
            value = value[: batch.size]
            if self.dtype is not None and value.dtype.kind in "fV":
                value = value.astype(dtype_of(self.dtype))
            made[f"features_{i}"] = value
        for name, part in (("labels", batch.y), ("weights", batch.sample_weight)):
            leaves = [] if part is None else keras.tree.flatten(part)
            for i, leaf in enumerate(leaves):
                made[f"{name}_{i}"] = _label(leaf)
            self.structure[name] = None if part is None else _skeleton(part)
        return made

    def _start(self, store: Any, arrays: dict[str, np.ndarray] | None, rows: int) -> None:
        if rows:
            self.spec = store.spec()
        else:
            self.spec = {n: (a.shape[1:], a.dtype) for n, a in arrays.items()}
        expected = None if self.data.examples is None else self.data.examples * self.views
        told = {"structure": self.structure, "engine_record": self._record(store)}
        store.start(self.spec, expected, told)

    def _check(self, arrays: dict[str, np.ndarray], number: int) -> None:
        for name, (shape, dtype) in self.spec.items():
            found = arrays.get(name)
            if found is not None and found.shape[1:] == shape and found.dtype == dtype:
                continue
            what = name.split("_")[0]
            told = "none" if found is None else f"{found.shape[1:]} {found.dtype}"
            fix = "; pad all examples to one length, or train with model.fit"
            raise ValueError(
                f"the {what} of batch {number} are {told} an example, those before {shape} "
                f"{dtype}{fix if what == 'features' else ''}"
            )
        if len(arrays) != len(self.spec):
            raise ValueError(
                f"batch {number} has {', '.join(sorted(set(arrays) - set(self.spec)))}, which the "
                "batches before had not"
            )

    def _set(self, store: Any, arrays: dict, record: dict, reused: bool = False) -> FeatureSet:
        told = store.found["structure"] if reused else self.structure
        found = [a for n, a in arrays.items() if n.startswith("features_")]
        labels, weights = (
            None if told[n] is None else _filled(told[n], arrays, n) for n in ("labels", "weights")
        )
        directory = store.path if isinstance(store, Folder) else None
        return FeatureSet(
            features=tuple(found),
            labels=labels,
            sample_weight=weights,
            views=self.views,
            batch_size=self.data.batch_size,  # of now: what is kept serves batches of any size
            directory=directory,
            engine=record,
            reused=reused,
            _owner=store.owner,
        )


class _Bar:
    """Keras' progress bar, with the rate."""

    def __init__(self, total: int | None, done: int, verbose: int):
        self.bar = None
        self.tell, self.first = None if verbose else _TELL.get(), done
        self.done, self.total, self.examples = done, total, 0
        self.start = time.perf_counter()
        if verbose and (total is None or done < total):
            print("features of the frozen part" + (f", from batch {done} on" if done else ""))
            self.bar = keras.utils.Progbar(
                total, verbose=verbose, unit_name="batch", stateful_metrics=["examples/s"]
            )

    def step(self, size: int) -> None:
        self.done, self.examples = self.done + 1, self.examples + size
        if self.bar is not None:
            self.bar.update(self.done, [("examples/s", self.rate)], finalize=False)
        if self.tell is not None:
            total = None if self.total is None else self.total - self.first
            self.tell(self.done - self.first, total, time.perf_counter() - self.start)

    @property
    def rate(self) -> float:
        """Examples a second so far."""
        return self.examples / (time.perf_counter() - self.start)

    def end(self) -> None:
        if self.bar is not None and self.examples:
            self.bar.update(self.done, [("examples/s", self.rate)], finalize=True)


def _flat(model: keras.Model, x: Any, number: int) -> list[np.ndarray]:
    """Inputs of a batch in the order of the model's, in their dtypes."""
    if number == 0:
        wrong = next(shapes.inputs(model, x), None)
        if wrong is not None:
            raise ValueError(f"{wrong.message}: {wrong.fix}")
    inputs = graph.ends(model)[0]
    if isinstance(x, dict) and not isinstance(inputs, dict):
        x = [x[t.name] for t in model.inputs]
    elif isinstance(x, dict):
        x = {name: x[name] for name in inputs}
    found = []
    for value, t in zip(keras.tree.flatten(x), model.inputs, strict=True):
        dtype = keras.backend.standardize_dtype(t.dtype)
        if value.ndim == len(t.shape) - 1 and t.shape[-1] == 1:
            value = value[..., None]
        found.append(value if dtype == "string" else value.astype(dtype_of(dtype), copy=False))
    return found


def _struct(model: keras.Model, flat: list) -> Any:
    return keras.tree.pack_sequence_as(graph.ends(model)[0], flat)


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """Filled up with its last row: the batch is of one size always, so compiled once."""
    short = size - len(array)
    if short <= 0:
        return array
    return np.concatenate([array, np.repeat(array[-1:], short, axis=0)])


def _label(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "biufV":
        raise ValueError(
            f"labels and weights are numbers; given {value.dtype}: turn names into integers first"
        )
    return value.astype(keras.config.floatx()) if value.dtype == "float64" else value


def _skeleton(structure: Any) -> Any:
    """A structure as JSON, with numbers for its leaves, in the order in which Keras flattens it:
    on PyTorch ``map_structure`` goes through a dict in another one.
    """
    return keras.tree.pack_sequence_as(structure, range(len(keras.tree.flatten(structure))))


def _filled(skeleton: Any, arrays: dict[str, np.ndarray], name: str) -> Any:
    return keras.tree.map_structure(lambda n: arrays[f"{name}_{n}"], skeleton)
