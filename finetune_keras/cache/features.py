"""One pass of a frozen network over a data set."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras

from finetune_keras import graph
from finetune_keras._errors import nearest
from finetune_keras.cache import engines, fingerprint, source
from finetune_keras.cache.augment import augments
from finetune_keras.cache.featureset import FeatureSet
from finetune_keras.cache.forward import Pass
from finetune_keras.cache.store import Folder, Memory, available

__all__ = ["compute", "features", "unpacked"]

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
        >>> import numpy as np
        >>> import finetune_keras as ftk
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> found = ftk.features(base.model, (np.zeros((40, 24, 24, 3)), np.zeros(40)), verbose=0)
        >>> len(found), found.features[0].shape
        (40, (40, 6, 6, 96))
    """
    x, y, sample_weight = unpacked(data)
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


def unpacked(data: Any) -> tuple[Any, Any, Any]:
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
    if views > 1 and data.arrays and not augments(prefix):
        warnings.warn(
            f"views={views} are so many equal copies: there is no random layer at the start of "
            f"{prefix.name!r}, such as build(..., augment=keras.layers.RandomFlip())",
            stacklevel=3,
        )
    work = Pass(prefix, data, views, dtype, engine, tolerance, verbose)
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
        store = Folder(path, identity)  # again: another process may have finished just now
        return work.found(store) if store.complete else work.run(store)
