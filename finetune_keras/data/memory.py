"""Arrays that are in memory, or mapped from a file, as a data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from finetune_keras import arrays as _arrays
from finetune_keras.data.dataset import Examples, Plan, dataset
from finetune_keras.data.labels import checked, encode, halved, named, numeric

__all__ = ["arrays"]

_MOST = 100_000  # classes; a larger number is an id


def arrays(
    x: Any,
    y: Any,
    *,
    batch_size: int = 32,
    class_names: Sequence[str] | None = None,
    labels: str = "auto",
    shuffle: bool = True,
    seed: int = 0,
) -> Any:
    """Arrays as a ``tf.data.Dataset`` of ``(x, y)`` in batches.

    Args:
        x: an array or tensor of any backend, or a dict or list of these; the first axis counts the
            examples. A ``numpy.memmap`` is read a batch at a time. Floats become
            ``keras.config.floatx()``, and so do images of uint8; other types stay.
        y: labels: text or whole numbers are classes, others are numbers; see ``labels``. Text is
            sorted; whole numbers from 0 on stay what they are, also where one of them is missing,
            up to 100,000: what is larger is an id and sorted too. An array of more axes is kept,
            as ``floatx``.
        batch_size: examples in a batch.
        class_names: the names of the classes, such as ``train.class_names`` for a second data set.
            With labels that are text, or if all names are numbers, they give the order, and any
            other label is an error; other names are those of the labels 0, 1, ...
        labels: ``"classes"`` or ``"numbers"`` where ``"auto"`` would guess wrong.
        shuffle: whether each epoch has an order of its own.
        seed: of the order.

    Returns:
        A ``tf.data.Dataset`` with the attributes of `dataset`.

    Raises:
        ValueError: if lengths differ, there are no examples, or a label is missing or unknown.

    Examples:
        >>> ds = arrays(np.zeros((5, 2)), ["b", "a", "b", "b", "a"], batch_size=2)
        >>> ds.class_names, ds.counts.tolist(), ds.element_spec[0]
        (['a', 'b'], [2, 3], TensorSpec(shape=(None, 2), dtype=tf.float32, name=None))
    """
    import tensorflow as tf

    if y is None:
        raise ValueError("y, the labels, is missing")
    x = _arrays.each(_arrays.to_numpy, _arrays.bare(x))
    leaves = [v for v in keras.tree.flatten(x) if v is not None]
    checked(labels)
    class_names = named(class_names)
    targets = _arrays.to_numpy(_arrays.bare(y))
    lengths = [len(v) if v.ndim else 0 for v in (*leaves, targets)]
    if not leaves or len(set(lengths)) > 1:
        raise ValueError(f"x and y are of different lengths: {', '.join(map(str, lengths))}")
    if any(v.dtype.kind == "O" for v in leaves) and not all(
        isinstance(t, str | bytes) for v in leaves if v.dtype.kind == "O" for t in v.ravel()
    ):
        raise ValueError("x holds Python objects; expected numbers or text")
    if any(halved(t) for v in leaves if v.dtype.kind in "OU" for t in v.ravel()):
        raise ValueError("x holds text with half a character (from \\ud800 to \\udfff)")
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    names: list[str] = []
    if targets.ndim == 1:
        targets, names = _encoded(targets, class_names, labels)
    else:
        targets, names = targets.astype(keras.config.floatx()), list(class_names or ())
    dtypes = [_dtype(v) for v in leaves]

    def load(numbers: Any) -> Any:
        found = tf.numpy_function(
            lambda i: [v[i].astype(d) for v, d in zip(leaves, dtypes, strict=True)],
            [numbers],
            [tf.string if d.kind in "OSU" else tf.as_dtype(d) for d in dtypes],
        )
        found = [
            tf.ensure_shape(f, [None, *v.shape[1:]]) for f, v in zip(found, leaves, strict=True)
        ]
        return keras.tree.pack_sequence_as(x, found)

    examples = Examples(load, targets, tuple(names), batched=True)
    return dataset(Plan(examples, batch_size=batch_size, shuffle=shuffle, seed=seed))


def _encoded(
    targets: np.ndarray, class_names: Sequence[str] | None, kind: str
) -> tuple[np.ndarray, list[str]]:
    """Labels as ``encode`` gives them, but whole numbers are places among the classes."""
    whole = targets.dtype.kind in "iub" and kind != "numbers" and len(targets) > 0
    if not whole or (class_names is not None and numeric(class_names)):
        return encode(targets.tolist(), class_names, kind=kind)
    low, high = int(targets.min()), int(targets.max())
    if class_names is not None:
        names = list(map(str, class_names))
        if not 0 <= low <= high < len(names):
            raise ValueError(
                f"labels go from {low} to {high}, and there are {len(names)} class_names: "
                f"expected 0 to {len(names) - 1}"
            )
    elif targets.dtype.kind == "b":
        names = ["False", "True"]
    elif 0 <= low <= high < _MOST:
        names = [str(n) for n in range(high + 1)]
        if low > 0:
            warnings.warn(
                f"labels go from {low} to {high}, so that the class 0 has no example: give "
                "class_names= if the first class is another one",
                stacklevel=3,
            )
    else:
        return encode(targets.tolist(), kind=kind)
    return targets.astype("int32"), names


def _dtype(array: np.ndarray) -> np.dtype:
    image = array.dtype == "uint8" and array.ndim >= 3
    if array.dtype.kind == "f" or image:
        return np.dtype(keras.config.floatx())
    return np.dtype(object) if array.dtype.kind in "OSU" else array.dtype
