"""Arrays as a `tf.data.Dataset` that has an order of its own in each epoch.

Keras shuffles arrays on TensorFlow by an operation whose state begins anew at each epoch, so that
after ``keras.utils.set_random_seed`` every epoch has one and the same order. Here the order is a
permutation by NumPy, a function of a seed and the number of the epoch: different in each, equal
after a restart. Everything else is as Keras does it, and as fast.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from finetune_keras import _private

__all__ = ["Shuffled", "Turning", "in_order", "shuffled"]


class Shuffled:
    """Batches of arrays.

    Args:
        parts: ``(x, y, sample_weight)``; the last two may be ``None``.
        batch_size: examples in a batch.
        seed: of the orders.

    Attributes:
        batches: a ``tf.data.Dataset`` for ``fit``, of one epoch.
        epoch: the number of the epoch that is read next.
    """

    def __init__(self, parts: tuple[Any, Any, Any], batch_size: int, seed: int):
        import tensorflow as tf

        self.seed, self.epoch = seed, 0
        self._count = int(keras.tree.flatten(parts)[0].shape[0])
        full = self._count // batch_size
        given = keras.utils.pack_x_y_sample_weight(*parts)
        given = keras.tree.map_structure(_tensor, given)

        def order(_: Any) -> Any:
            return tf.ensure_shape(tf.numpy_function(self._order, [], tf.int64), (self._count,))

        def batches(order: Any) -> Any:
            whole = tf.reshape(order[: full * batch_size], (full, batch_size))
            # Of a size that is not known beforehand, whether there is a rest or not: what was
            # traced for one number of examples goes for another.
            whole = tf.compat.v1.placeholder_with_default(whole, (None, None))
            found = tf.data.Dataset.from_tensor_slices(whole)
            rest = tf.data.Dataset.from_tensors(order[full * batch_size :])
            return found.concatenate(rest) if self._count % batch_size else found

        def taken(rows: Any, all_: Any) -> Any:
            return keras.tree.map_structure(lambda a: a if a is None else tf.gather(a, rows), all_)

        found = tf.data.Dataset.range(1).map(order).flat_map(batches)
        every = tf.data.Dataset.from_tensors(keras.tree.lists_to_tuples(given)).repeat()
        found = tf.data.Dataset.zip((found, every)).map(taken, num_parallel_calls=tf.data.AUTOTUNE)
        found = found.apply(
            tf.data.experimental.assert_cardinality(math.ceil(self._count / batch_size))
        )
        options = tf.data.Options()
        options.experimental_optimization.apply_default_optimizations = False
        self.batches = found.with_options(options).prefetch(tf.data.AUTOTUNE)

    def turn(self, epoch: int) -> None:
        """Says which epoch is read next."""
        self.epoch = epoch

    def _order(self) -> np.ndarray:
        return np.random.default_rng((self.seed, self.epoch)).permutation(self._count)


class Turning(keras.callbacks.Callback):
    """Tells data that turn with the epoch which one comes.

    After an epoch rather than before the next: ``fit`` reads ahead.

    Args:
        data: with a method ``turn``.
        first: the first epoch, unless another callback restores one.
    """

    def __init__(self, data: Any, first: int):
        super().__init__()
        self._data, self._first = data, first

    def on_train_begin(self, logs: Any = None) -> None:
        """The first epoch."""
        restored = _private.start_of(self.model)
        self._data.turn(self._first if restored is None else restored)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The next one."""
        self._data.turn(epoch + 1)


def shuffled(parts: tuple[Any, Any, Any], batch_size: int) -> Shuffled | None:
    """The batches of arrays, with a seed that NumPy's global random state gives; ``None`` where
    Keras' own shuffling is as good or the arrays are of a kind that only Keras knows.

    Examples:
        >>> shuffled((["texts", "of", "a", "task"], None, None), 2)
    """
    if keras.backend.backend() != "tensorflow":
        return None
    leaves = [leaf for leaf in keras.tree.flatten(parts) if leaf is not None]
    if not all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" and a.ndim for a in leaves):
        return None
    if len({len(a) for a in leaves}) != 1 or not len(leaves[0]):
        return None  # ``fit`` says what is wrong
    return Shuffled(parts, batch_size, int(np.random.randint(2**31)))


def in_order(model: keras.Model, plain: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``model.fit``, with batches in an order of each epoch's own in place of
    arrays that Keras would shuffle; as they are where that makes no difference.
    """
    usual = plain["shuffle"] is True and plain["steps_per_epoch"] is None
    if not usual or plain["validation_split"] or plain["y"] is None or not model.compiled:
        return plain
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is not None and strategy.num_replicas_in_sync > 1:
        return plain
    size = plain["batch_size"] or 32
    made = shuffled((plain["x"], plain["y"], plain["sample_weight"]), size)
    if made is None:
        return plain
    given = getattr(plain["callbacks"], "callbacks", plain["callbacks"])
    given = keras.tree.flatten(given) if given else []
    return {
        **plain,
        **dict.fromkeys(("y", "sample_weight", "batch_size")),
        "x": made.batches,
        "shuffle": False,
        "callbacks": [*given, Turning(made, plain["initial_epoch"])],
        "validation_batch_size": plain["validation_batch_size"] or size,
    }


def _tensor(array: np.ndarray | None) -> Any:
    """As Keras makes it: any float is one of the usual size."""
    import tensorflow as tf

    if array is None:
        return None
    return tf.convert_to_tensor(array, keras.config.floatx() if array.dtype.kind == "f" else None)
