"""Which examples can be read, found out by reading them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from finetune_keras.data.formats import reason

__all__ = ["tried", "why"]

_AT_ONCE = 256


def tried(load: Callable, rows: np.ndarray, *, stop: bool = False) -> dict[int, bool]:
    """Reads examples, in parallel and once, and tells which of them could be.

    Args:
        load: as of `finetune_keras.data.dataset.Examples`, of one example.
        rows: the numbers of the examples.
        stop: whether it is enough to know the first that cannot be read.

    Examples:
        >>> import tensorflow as tf
        >>> tried(lambda i: tf.io.decode_png(tf.fill([], "no image")), np.array([4, 7]))
        {4: False, 7: False}
    """
    import tensorflow as tf

    rows = np.unique(np.asarray(rows, "int64"))

    def read(i: Any) -> Any:
        # A value of each goes along: what nobody asks for, TensorFlow does not compute.
        return i, [tf.reshape(x, [-1])[:1] for x in tf.nest.flatten(load(i))]

    ds = tf.data.Dataset.from_tensor_slices(rows).map(read, tf.data.AUTOTUNE, deterministic=True)
    sound: list[int] = []
    for batch, _ in ds.ignore_errors().batch(_AT_ONCE).as_numpy_iterator():
        sound += batch.tolist()
        if stop and sound[-1] != rows[len(sound) - 1]:
            rows = rows[rows <= sound[-1]]
            break
    return dict.fromkeys(rows.tolist(), False) | dict.fromkeys(sound, True)


def why(load: Callable, row: int) -> str:
    """Why an example cannot be read, in a line."""
    import tensorflow as tf

    try:
        load(tf.constant(row, tf.int64))
    except Exception as e:  # of any kind, as decoders meet anything in a broken file
        return reason(e)
    return "it could be read a moment later"
