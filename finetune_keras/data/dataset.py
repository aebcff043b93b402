"""From numbered examples to the finished ``tf.data.Dataset``.

Every source ends here. It says how many examples there are, how one of them is loaded, and what
its label is; the order, the batches, the split and what is skipped are then the same for all.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune_keras.data.order import Order
from finetune_keras.data.split import stratified

__all__ = ["Examples", "Plan", "dataset", "shown"]

_AT_ONCE = min(4, os.cpu_count() or 1)  # batches that are loaded at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What a source has to say about its examples.

    Attributes:
        load: a function of TensorFlow that is traced once. It takes the number of an example as a
            scalar int64 tensor, and returns its ``x`` of a fixed shape, without a batch axis.
        labels: one a row; integers from 0 on are classes.
        class_names: by label; empty if labels are no classes or have no names.
        names: what each example is called in messages, such as its path.
        batched: whether ``load`` takes the numbers of a whole batch, and returns a batch.
        fallible: whether ``load`` may fail. Then an example for which it raises is skipped.
        fingerprint: a string that is another one when the examples are others; ``None`` if only
            reading them tells.
        what: the plural of an example, in messages.
        skipped: names of the examples that could not be read so far.
    """

    load: Callable
    labels: np.ndarray
    class_names: Sequence[str] = ()
    names: Sequence[str] = ()
    batched: bool = False
    fallible: bool = False
    fingerprint: str | None = None
    what: str = "examples"
    skipped: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All that a data set is made of; ``dataclasses.replace`` gives another one.

    Attributes:
        examples: the source.
        batch_size: examples in a batch; the last one may be smaller.
        shuffle: whether each epoch has an order of its own.
        seed: of the order, the split and the transforms.
        rows: the numbers of the examples that belong to it, all by default.
        transforms: functions ``(x, y, seed) -> (x, y)`` of TensorFlow, called in turn on each
            batch; ``seed`` is an int32 tensor of shape (2,) for ``tf.random.stateless_*``, another
            one for each seed, epoch and batch.
        strict: whether an example that cannot be read is an error.
    """

    examples: Examples
    batch_size: int = 32
    shuffle: bool = True
    seed: int = 0
    rows: np.ndarray | None = None
    transforms: tuple[Callable, ...] = ()
    strict: bool = False


def dataset(plan: Plan) -> Any:
    """Makes the ``tf.data.Dataset`` of ``(x, y)`` in batches, loaded in parallel and prefetched.

    It has these attributes beside those of TensorFlow; ``map`` and the like lose them.

    | attribute                        | what it is                                              |
    | -------------------------------- | ------------------------------------------------------- |
    | ``class_names``, ``num_classes`` | in the order of the labels; ``None`` without classes    |
    | ``counts``                       | examples of each class, for ``class_weight="balanced"`` |
    | ``labels``, ``file_paths``       | by example, not shuffled                                |
    | ``order``                        | an `Order`; ``order.epoch`` is the next epoch           |
    | ``skipped``                      | names of what could not be read, so far                 |
    | ``split(fraction, seed=None)``   | two data sets; the second one is not shuffled           |
    | ``in_order()``                   | the same, not shuffled                                  |
    | ``fingerprint``                  | tells whether files have changed, or ``None``           |
    | ``plan``                         | what it was made of                                     |

    Raises:
        ValueError: if there are no examples, or the batch size or seed are not possible.

    Examples:
        >>> import tensorflow as tf
        >>> x = tf.constant([[1.0], [2.0], [3.0]])
        >>> examples = Examples(lambda i: tf.gather(x, i), np.array([0, 1, 0]), ["a", "b"])
        >>> ds = dataset(Plan(examples, batch_size=2))
        >>> len(ds), ds.num_classes, ds.counts.tolist(), ds.order(0).tolist()
        (2, 2, [2, 1], [2, 0, 1])
        >>> [y.numpy().tolist() for x, y in ds]
        [[0, 0], [1]]
    """
    import tensorflow as tf

    plan = _checked(plan)
    examples, rows = plan.examples, plan.rows
    order = Order(rows, plan.seed, shuffle=plan.shuffle)
    log = _Log(examples, order, plan.strict)
    batches = -(-len(rows) // plan.batch_size)
    with tf.device("CPU:0"):
        labels = tf.constant(examples.labels)

    def epoch(_: Any) -> Any:
        number, indices = tf.numpy_function(log.begin, (), (tf.int64, tf.int64))
        indices.set_shape([len(rows)])
        indices = tf.data.Dataset.from_tensor_slices(indices)
        return indices.map(lambda i: (i, tf.reshape(number, [])))

    load = _batches(examples, plan.batch_size, log)

    def loaded(numbers: Any, epochs: Any) -> Any:
        x, numbers = load(numbers)
        return x, tf.gather(labels, numbers), epochs[0]

    def transform(n: Any, batch: Any) -> Any:
        x, y, number = batch
        seed = tf.stack([tf.constant(plan.seed % 2**31, tf.int32), 0])
        for value in (number, n):
            seed = tf.random.experimental.stateless_fold_in(seed, value)
        for i, function in enumerate(plan.transforms):
            x, y = function(x, y, tf.random.experimental.stateless_fold_in(seed, i))
        return n, (x, y, number)

    def hand_out(n: Any, batch: Any) -> Any:
        x, y, number = batch
        tf.cond(
            n == batches - 1,
            lambda: tf.numpy_function(log.end, [number], tf.int64),
            lambda: number,
        )
        return x, y

    ds = tf.data.Dataset.from_tensors(0).flat_map(epoch)
    ds = ds.batch(plan.batch_size).map(loaded, _AT_ONCE, deterministic=True)
    if examples.fallible:
        ds = ds.filter(lambda x, y, n: tf.shape(y)[0] > 0)
    # So that the number of batches is known, and stays what it is if a whole batch is skipped:
    # another one of the same epoch takes its place.
    ds = ds.repeat().take(batches).enumerate()
    if plan.transforms:
        ds = ds.map(transform, tf.data.AUTOTUNE, deterministic=True)
    ds = ds.prefetch(tf.data.AUTOTUNE).map(hand_out)
    options = tf.data.Options()
    # Nothing is read ahead after ``hand_out``: the epoch moves on when the last batch is taken.
    options.experimental_optimization.inject_prefetch = False
    ds = ds.with_options(options)
    return _described(ds, plan, order)


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first few of a list of names, quoted, for a message.

    Examples:
        >>> shown(["a", "b", "c"], 2)
        "'a', 'b' and 1 more"
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(str(n)) for n in names[:most]) + more


class _Log:
    """What a data set asks and tells of Python, once an epoch and for each failure."""

    def __init__(self, examples: Examples, order: Order, strict: bool):
        self.examples, self.order, self.strict = examples, order, strict
        self.told = 0

    def begin(self) -> tuple[np.int64, np.ndarray]:
        epoch = self.order.epoch
        return np.int64(epoch), self.order(epoch)

    def end(self, epoch: np.int64) -> np.int64:
        self.order.epoch = int(epoch) + 1
        skipped = self.examples.skipped
        if len(skipped) > self.told:
            self.told = len(skipped)
            warnings.warn(
                f"{len(skipped)} {self.examples.what} could not be read and were skipped: "
                f"{shown(skipped, 20)}",
                stacklevel=2,
            )
        return epoch

    def failed(self, numbers: np.ndarray, read: np.ndarray) -> np.ndarray:
        names = self.examples.names
        missing = numbers[~np.isin(numbers, read)]
        found = [str(names[i]) if len(names) else f"example {i}" for i in missing]
        if self.strict:
            raise ValueError(f"{found[0]!r} cannot be read, and strict=True")
        skipped = self.examples.skipped
        skipped.extend(name for name in found if name not in skipped)
        return read


def _batches(examples: Examples, size: int, log: _Log) -> Callable:
    """A function from the numbers of a batch to its ``x``, and the numbers that could be read."""
    import tensorflow as tf

    if examples.batched:
        return lambda numbers: (examples.load(numbers), numbers)
    spec = tf.function(examples.load).get_concrete_function(tf.TensorSpec([], tf.int64))
    nothing = tf.nest.map_structure(
        lambda s: tf.zeros([0, *s.shape], s.dtype), spec.structured_outputs
    )
    threads = -(-(os.cpu_count() or 1) // _AT_ONCE)

    def load(numbers: Any) -> Any:
        # TensorFlow has no ``try``, but a data set can leave out what fails. A small one for each
        # batch costs next to nothing; one for each example would cost a fifth of decoding it.
        one = tf.data.Dataset.from_tensor_slices(numbers)
        one = one.map(lambda i: (examples.load(i), i), threads, deterministic=True)
        if examples.fallible:
            one = one.ignore_errors()
        one = one.batch(size)
        if examples.fallible:
            empty = (nothing, tf.zeros([0], tf.int64))
            one = one.concatenate(tf.data.Dataset.from_tensors(empty)).take(1)
        x, read = one.get_single_element()
        if examples.fallible:
            read = tf.cond(
                tf.size(read) < tf.size(numbers),
                lambda: tf.numpy_function(log.failed, [numbers, read], tf.int64),
                lambda: read,
            )
        return x, tf.ensure_shape(read, [None])

    return load


def _checked(plan: Plan) -> Plan:
    for name, value, low in (("batch_size", plan.batch_size, 1), ("seed", plan.seed, 0)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < low:
            raise ValueError(f"{name} is a whole number from {low} on; given {value!r}")
    rows = np.arange(len(plan.examples.labels)) if plan.rows is None else np.asarray(plan.rows)
    if not len(rows):
        raise ValueError(f"there are no {plan.examples.what}")
    return dataclasses.replace(plan, rows=rows)


def _described(ds: Any, plan: Plan, order: Order) -> Any:
    """The attributes, which Keras' own ``image_dataset_from_directory`` gives in the same way."""
    examples, rows = plan.examples, plan.rows
    labels = examples.labels[rows]
    classes = labels.ndim == 1 and labels.dtype.kind in "iu"
    names = list(examples.class_names)
    ds.num_classes = ds.counts = None
    if classes:
        ds.num_classes = len(names) or int(examples.labels.max()) + 1
        ds.counts = np.bincount(labels, minlength=ds.num_classes)
    ds.class_names = names or None
    ds.labels, ds.order, ds.skipped, ds.plan = labels, order, examples.skipped, plan
    ds.file_paths = [str(examples.names[i]) for i in rows] if len(examples.names) else None
    ds.fingerprint = None
    if examples.fingerprint is not None and not plan.transforms:
        ds.fingerprint = f"{examples.fingerprint}:{_hash(rows)}"

    def in_order() -> Any:
        return dataset(dataclasses.replace(plan, shuffle=False))

    def split(fraction: float, seed: int | None = None) -> tuple[Any, Any]:
        parts = stratified(labels, fraction, plan.seed if seed is None else seed)
        first, second = (dataclasses.replace(plan, rows=rows[part]) for part in parts)
        # What is validated on is neither shuffled nor augmented.
        return dataset(first), dataset(dataclasses.replace(second, shuffle=False, transforms=()))

    ds.in_order, ds.split = in_order, split
    return ds


def _hash(rows: np.ndarray) -> str:
    import hashlib

    return hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=8).hexdigest()
