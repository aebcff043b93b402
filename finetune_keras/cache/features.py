"""One pass of a frozen network over a data set."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune_keras import graph
from finetune_keras._errors import CacheError, nearest
from finetune_keras.cache import engines, fingerprint, source
from finetune_keras.cache.augment import augmented
from finetune_keras.cache.featureset import FeatureSet
from finetune_keras.cache.rows import dtype_of
from finetune_keras.cache.store import Folder, Memory, available
from finetune_keras.check import shapes

__all__ = ["compute", "features"]

_DTYPES = (None, "float32", "float16", "bfloat16")


def features(
    prefix: keras.Model,
    data: Any,
    *,
    directory: str | Path | None = None,
    views: int = 1,
    dtype: str | None = None,
    engine: str = "keras",
    tolerance: float = 0.01,
    batch_size: int | None = None,
    steps: int | None = None,
    key: str | None = None,
    memory: int | None = None,
    verbose: int | str = "auto",
) -> FeatureSet:
    """Runs a network over a data set once, in inference mode, and keeps what comes out.

    Args:
        prefix: the network: what `split` gives first, or any functional ``keras.Model``, such as
            a backbone's ``.model``.
        data: what ``fit`` takes: ``(x, y)`` or ``(x, y, sample_weight)`` of arrays, ``x`` alone,
            a ``tf.data.Dataset``, a ``keras.utils.PyDataset``, a generator, a PyTorch
            ``DataLoader``. The order is kept.
        directory: where to keep the features as ``.npy`` files with a manifest. If they are there
            already they are used; a pass that was stopped goes on from where it was. By default
            they are kept in memory, or in a temporary folder if they are more than ``memory``.
        views: how many draws of each example. With more than one, random layers before the first
            weights of ``prefix`` (augmentation) are active, and the data are read as often.
        dtype: ``"float16"`` or ``"bfloat16"`` halves what is kept of float32 features.
        engine: what computes: ``"keras"``, exactly; ``"auto"``, the fastest that is installed and
            agrees with Keras; or ``"openvino"``, ``"openvino-bfloat16"``, ``"onnxruntime"``.
        tolerance: how far an engine may be from Keras, relative to the norm of the features.
        batch_size: of arrays, 32 by default.
        steps: batches in a pass, for data without an end.
        key: your name for the data, in place of a fingerprint of them; needed for data that come
            in another order each time.
        memory: bytes that may be kept in memory; by default a quarter of what is free.
        verbose: 1 or ``"auto"`` for a progress bar with the rate and the time left, 0 for none.

    Returns:
        A `FeatureSet`.

    Raises:
        CacheError: if ``directory`` holds features of something else or cannot be written, with
            the reason; what is there stays as it is.
        ValueError: if the data are empty, or features or labels change shape on the way.

    Examples:
        >>> import finetune_keras as ftk
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> found = ftk.features(base.model, (np.zeros((40, 24, 24, 3)), np.zeros(40)), verbose=0)
        >>> len(found), found.features[0].shape
        (40, (40, 3, 3, 96))
    """
    x, y, sample_weight = _unpacked(data)
    return compute(
        prefix,
        source.source(x, y, sample_weight, batch_size=batch_size, steps=steps, what="the data"),
        directory=directory,
        views=views,
        dtype=dtype,
        engine=engine,
        tolerance=tolerance,
        key=key,
        memory=memory,
        verbose=verbose,
    )


def _unpacked(data: Any) -> tuple[Any, Any, Any]:
    """A tuple is ``(x, y)`` or ``(x, y, sample_weight)``, as everywhere in Keras."""
    if not isinstance(data, tuple):
        return data, None, None
    try:
        return keras.utils.unpack_x_y_sample_weight(data)
    except ValueError:
        raise ValueError(
            f"the data are (x, y) or (x, y, sample_weight); given a tuple of {len(data)}: give "
            "several inputs as a list or a dict"
        ) from None


def compute(
    prefix: keras.Model,
    data: source.Source,
    *,
    directory: str | Path | None = None,
    views: int = 1,
    dtype: str | None = None,
    engine: str = "keras",
    tolerance: float = 0.01,
    key: str | None = None,
    memory: int | None = None,
    verbose: int | str = "auto",
) -> FeatureSet:
    """`features` of a `source.Source`."""
    if not isinstance(prefix, keras.Model):
        hint = (
            "; pass its .model" if isinstance(getattr(prefix, "model", None), keras.Model) else ""
        )
        raise TypeError(f"expected a keras.Model; given a {type(prefix).__name__}{hint}")
    if not graph.is_functional(prefix):
        raise ValueError(
            f"the graph of {prefix.name!r} cannot be read: features takes a functional model, such "
            "as finetune_keras.split gives"
        )
    for what, value in (("views", views), ("memory", memory)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ValueError(f"{what} must be an integer of 1 or more; given {value!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, _DTYPES))}; given {dtype!r}")
    if engine not in engines.NAMES:
        raise ValueError(f"there is no engine {engine!r}: {nearest(str(engine), engines.NAMES)}")
    if key is not None and not isinstance(key, str):
        raise TypeError(f"key is a string of yours that names the data; given {key!r}")
    if views > 1 and not data.again and data.batches is None:
        raise ValueError(
            f"views={views} reads the data {views} times, and {data.spec} can be read once: give "
            "steps, or make it a tf.data.Dataset"
        )
    work = _Pass(prefix, data, views, dtype, engine, tolerance, verbose)
    if directory is None:
        return work.run(Memory(available() if memory is None else memory))
    path = Path(directory).expanduser()
    identity = {
        **fingerprint.fingerprint(prefix),
        "data": None if key is not None else data.digest(),
        "key": key,
        "views": views,
        "dtype": dtype,
        "engine": engine,
    }
    store = Folder(path, identity)
    if store.complete:
        return work.found(store)
    with store.locked():
        return work.run(store)


class _Pass:
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
        except BaseException:
            store.close()
            raise
        if self.spec is None:
            raise ValueError(f"the data are empty: {self.data.spec} gave no batch")
        rows = store.done["rows"]
        if rows % self.views:
            raise ValueError(
                f"the data gave another number of examples at each of {self.views} readings, "
                f"{rows} in all: views are draws of the same examples"
            )
        record = self._record(store)
        if bar.rate:
            record["examples_per_second"] = round(bar.rate, 1)  # of this pass, reading included
        told = {"structure": self.structure, "engine_record": record, "engine": record["name"]}
        arrays = store.finish({**told, "batch_size": self.data.batch_size})
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
                done |= {"batch_size": self.data.batch_size, "last": source.batch_digest(batch)}
                store.append(arrays, done)
                store.done = done
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
            self.chosen = engines.choose(self.core, padded, self.engine, tolerance=self.tolerance)
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
        size = store.found["batch_size"] if reused else self.data.batch_size
        return FeatureSet(
            features=tuple(found),
            labels=labels,
            sample_weight=weights,
            views=self.views,
            batch_size=size,
            directory=directory,
            engine=record,
            reused=reused,
            _owner=store.owner,
        )


class _Bar:
    """Keras' progress bar, with the rate."""

    def __init__(self, total: int | None, done: int, verbose: int):
        self.bar = None
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
    """A structure as JSON, with numbers for its leaves."""
    leaves = itertools.count()
    return keras.tree.map_structure(lambda _: next(leaves), structure)


def _filled(skeleton: Any, arrays: dict[str, np.ndarray], name: str) -> Any:
    return keras.tree.map_structure(lambda n: arrays[f"{name}_{n}"], skeleton)
