"""From numbered examples to the finished ``tf.data.Dataset``.

Every source ends here. It says how many examples there are, how one of them is loaded, and what
its label is; the order, the batches, the split and what is skipped are then the same for all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune_keras._errors import whole
from finetune_keras.data.order import Order
from finetune_keras.data.split import stratified
from finetune_keras.data.trial import tried, why

__all__ = ["Examples", "Plan", "dataset", "shown"]


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
        fallible: whether ``load`` may fail. Then an example for which it raises is skipped, and one
            from the start of the same epoch comes in its place.
        fingerprint: gives a string that is another one when the examples are others; ``None`` if
            only reading them tells.
        what: the plural of an example, in messages.
        skipped: names of what the source left out already, with a warning of its own.
        tried: which examples were read in full, and whether they could be; grows.
    """

    load: Callable
    labels: np.ndarray
    class_names: Sequence[str] = ()
    names: Sequence[str] = ()
    batched: bool = False
    fallible: bool = False
    fingerprint: Callable[[], str] | None = None
    what: str = "examples"
    skipped: Sequence[str] = ()
    tried: dict[int, bool] = dataclasses.field(default_factory=dict)


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
        strict: whether an example that cannot be read is an error, before anything is given.
        check: whether all examples are tried first if ``strict`` or not shuffled. What cannot be
            read is then no row, so that rows keep their places.
        one_hot: whether ``y`` are one-hot, for the transforms too.
        skipped: names of what could not be read so far; a list that grows.
    """

    examples: Examples
    batch_size: int = 32
    shuffle: bool = True
    seed: int = 0
    rows: np.ndarray | None = None
    transforms: tuple[Callable, ...] = ()
    strict: bool = False
    check: bool = True
    one_hot: bool = False
    skipped: list[str] | None = None

    @property
    def sure(self) -> bool:
        """Whether what cannot be read was left out before, so that a later failure is an error."""
        one = self.examples.fallible and not self.examples.batched
        return self.check and one and (self.strict or not self.shuffle)

    @property
    def once(self) -> bool:
        """Whether what cannot be read is left out on the way, and nothing comes in its place: the
        order is that of the rows, and an example twice would stand in another's.
        """
        one = self.examples.fallible and not self.examples.batched
        return one and not self.check and not self.shuffle


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
    | ``split(fraction, seed=None)``   | two data sets without a file in common, the second one  |
    |                                  | neither shuffled nor augmented                          |
    | ``in_order(check=True)``         | the same, not shuffled; ``check=False`` does not try    |
    |                                  | all examples first, and gives fewer if some fail        |
    | ``digest()``                     | another one if a file is another one now; or ``None``   |
    | ``plan``                         | what it was made of                                     |

    Raises:
        ValueError: if there are no examples, the batch size or seed are not possible, or an example
            cannot be read and ``strict``.

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

    plan = _tried(_checked(plan))
    examples, rows = plan.examples, plan.rows
    order = Order(rows, plan.seed, shuffle=plan.shuffle)
    log = _Log(plan, order)
    with tf.device("CPU:0"):
        labels = tf.constant(examples.labels)

    # Beside ``x`` go four numbers: of the example, its place in the epoch, of the reading and of
    # the epoch. Each tensor, and each function that is mapped, costs time: there are few of them.
    def epoch(_: Any) -> Any:
        about = tf.numpy_function(log.begin, (), tf.int64)
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(about, [len(rows), 4]))

    def loaded(about: Any) -> Any:
        return examples.load(about[..., 0]), about

    def finished(n: Any, x: Any, about: Any) -> Any:
        y = tf.gather(labels, about[:, 0])
        seed = tf.stack([tf.constant(plan.seed % 2**31, tf.int32), 0])
        for value in (about[0, 3], n):
            seed = tf.random.experimental.stateless_fold_in(seed, value)
        if plan.one_hot:
            y = tf.one_hot(y, _num_classes(examples), dtype=tf.float32)
        for i, function in enumerate(plan.transforms):
            x, y = function(x, y, tf.random.experimental.stateless_fold_in(seed, i))
        return x, y

    def hand_out(n: Any, batch: Any) -> Any:
        x, about = batch
        why, new = tf.numpy_function(log.handed_out, [n, about], [tf.string, tf.int64])
        with tf.control_dependencies([_sound(why)]):
            made = x if changed else (x, tf.gather(labels, about[:, 0]))
            return tf.nest.map_structure(lambda t: t[:new] if plan.once else tf.identity(t), made)

    def fail(_: Any) -> Any:
        with tf.control_dependencies([_sound(tf.numpy_function(log.nothing, (), tf.string))]):
            return tf.nest.map_structure(
                lambda s: tf.zeros([n or 0 for n in s.shape], s.dtype), ds.element_spec
            )

    changed = bool(plan.transforms) or plan.one_hot
    ds = tf.data.Dataset.from_tensors(0).flat_map(epoch)
    if not examples.batched:
        ds = ds.map(loaded, tf.data.AUTOTUNE, deterministic=True)
    if plan.sure:  # TensorFlow makes one step of this and ``map``, if nothing is between them
        ds = ds.batch(plan.batch_size)
    if examples.fallible:
        ds = ds.ignore_errors()
    # After the last example the same epoch begins again: in place of what could not be read its
    # first ones come once more. So there are always as many batches, of the same size.
    again = ds.repeat()
    if examples.fallible and not examples.batched:
        # A repetition without a single example ends, and what follows is read.
        again = again.concatenate(tf.data.Dataset.from_tensors(0).map(fail))
    ds = again.take(log.batches) if plan.sure else again.take(len(rows)).batch(plan.batch_size)
    if examples.batched:
        ds = ds.map(loaded, tf.data.AUTOTUNE, deterministic=True)
    ds = ds.enumerate()
    if changed:
        ds = ds.map(
            lambda n, batch: (n, (finished(n, *batch), batch[1])),
            tf.data.AUTOTUNE,
            deterministic=True,
        )
    ds = ds.prefetch(tf.data.AUTOTUNE).map(hand_out)
    if plan.once:
        ds = ds.filter(lambda _, y: tf.shape(y)[0] > 0)
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


def _sound(why: Any) -> Any:
    """An operation that fails with what a function of NumPy complains of, if it does: raised in the
    function itself, an exception comes with a traceback of TensorFlow's threads. Quotation marks
    would come escaped.
    """
    import tensorflow as tf

    return tf.debugging.Assert(tf.equal(why, ""), [why])


class _Log:
    """What a data set asks and tells of Python: at the start of an epoch, and for each batch.

    A *reading* is one time that the examples of an epoch are begun. Several may go on at once, in
    threads of their own.
    """

    def __init__(self, plan: Plan, order: Order):
        self.plan, self.order = plan, order
        self.batches = -(-len(order) // plan.batch_size)
        self.lock = threading.Lock()
        self.readings = itertools.count()
        # By reading, what was handed out last: number of the batch, epoch, place in its order; and
        # the reading that the epoch began with.
        self.last: dict[int, tuple[int, int, int, int]] = {}
        self.new: list[str] = []  # skipped, and not yet told

    def begin(self) -> np.ndarray:
        epoch, reading = self.order.epoch, next(self.readings)
        order = self.order(epoch)
        about = np.empty((len(order), 4), "int64")
        about[:, 0], about[:, 1] = order, np.arange(len(order))
        about[:, 2], about[:, 3] = reading, epoch
        return about

    def handed_out(self, n: np.int64, about: np.ndarray) -> tuple[str, np.int64]:
        """What is wrong with a batch, and how many at its start did not come before."""
        with self.lock:
            places, readings, epoch = about[:, 1], about[:, 2], int(about[0, 3])
            before, first = self._before(int(n), int(readings[0]), epoch)
            if readings[0] != readings[-1] or places[-1] - before != len(places):
                missed = self._missed(before, places, self.order(epoch))
                if missed and self.plan.sure:  # what fails takes its batch along
                    one = f"one of {len(missed)} {self.plan.examples.what}, from {missed[0]} on"
                    return f"{one}, could be read before, and cannot be any more", np.int64(0)
                new = [name for name in missed if name not in self.plan.skipped]
                self.plan.skipped.extend(new)
                self.new.extend(new)
            self.last[int(readings[-1])] = int(n), epoch, int(places[-1]), first
            if n == self.batches - 1:
                del self.last[int(readings[-1])]
                # One that began earlier and ends later does not set it back.
                if self.order.epoch == epoch:
                    self.order.epoch = epoch + 1
                self._tell()
        return "", np.int64(np.sum(readings == first))

    def nothing(self) -> str:
        name = _name(self.plan.examples, self.order.rows[0])
        what = self.plan.examples.what
        return f"none of {len(self.order)} {what} can be read any more, such as {name}"

    def _before(self, n: int, reading: int, epoch: int) -> tuple[int, int]:
        """The place that was handed out before a batch, by the reading that it begins with, and the
        reading that the epoch began with.
        """
        if reading not in self.last and n > 0:
            # It begins with this batch. The one before it ended with the last batch; if several
            # did, they have read the same epoch as far, and any of them tells what it skipped.
            ended = [r for r, (m, e, *_) in self.last.items() if (m, e) == (n - 1, epoch)]
            reading = max((r for r in ended if r < reading), default=reading)
        return self.last.pop(reading, (0, 0, -1, reading))[2:]

    def _missed(self, last: int, places: np.ndarray, order: np.ndarray) -> list[str]:
        """Names of what was left out between the places that came, in the order of an epoch."""
        missed: list[str] = []
        for place in places.tolist():
            stop = place if place > last else len(order)  # where the epoch began again
            missed += [_name(self.plan.examples, i) for i in order[last + 1 : stop]]
            last = place
        return list(dict.fromkeys(missed))

    def _tell(self) -> None:
        if self.new:
            told, self.new = self.new, []
            warnings.warn(
                f"{len(told)} {self.plan.examples.what} could not be read and were skipped: "
                f"{shown(told, 20)}",
                stacklevel=2,
            )


def _checked(plan: Plan) -> Plan:
    whole("batch_size", plan.batch_size, 1)
    whole("seed", plan.seed, 0)
    rows = np.arange(len(plan.examples.labels)) if plan.rows is None else np.asarray(plan.rows)
    if not len(rows):
        raise ValueError(f"there are no {plan.examples.what}")
    skipped = list(plan.examples.skipped) if plan.skipped is None else plan.skipped
    return dataclasses.replace(plan, rows=rows, skipped=skipped)


def _tried(plan: Plan) -> Plan:
    """Without the rows that cannot be read, where that has to be known before."""
    if not plan.sure:
        return plan
    examples, rows = plan.examples, plan.rows.tolist()
    new = [i for i in rows if i not in examples.tried]
    if new:
        examples.tried.update(tried(examples.load, new, stop=plan.strict))
    bad = [i for i in rows if not examples.tried.get(i, True)]
    if not bad:
        return plan
    names = [_name(examples, i) for i in bad]
    if plan.strict:
        because = why(examples.load, bad[0])
        raise ValueError(f"{names[0]!r} cannot be read: {because}; strict=True stops at the first")
    if len(bad) == len(rows):
        raise ValueError(f"none of {len(rows)} {examples.what} can be read, such as {names[0]!r}")
    names = [name for name in dict.fromkeys(names) if name not in plan.skipped]
    if names:
        plan.skipped.extend(names)
        warnings.warn(
            f"{len(names)} {examples.what} could not be read and are left out: {shown(names, 20)}",
            stacklevel=4,
        )
    return dataclasses.replace(plan, rows=plan.rows[~np.isin(plan.rows, bad)])


def _name(examples: Examples, i: int) -> str:
    return str(examples.names[i]) if len(examples.names) else f"example {i}"


def _described(ds: Any, plan: Plan, order: Order) -> Any:
    """The attributes, which Keras' own ``image_dataset_from_directory`` gives in the same way."""
    examples, rows = plan.examples, plan.rows
    labels = examples.labels[rows]
    classes = labels.ndim == 1 and labels.dtype.kind in "iu"
    names = list(examples.class_names)
    ds.num_classes = ds.counts = None
    if classes:
        ds.num_classes = _num_classes(examples)
        ds.counts = np.bincount(labels, minlength=ds.num_classes)
    ds.class_names = names or None
    ds.labels, ds.order, ds.skipped, ds.plan = labels, order, plan.skipped, plan
    ds.file_paths = [str(examples.names[i]) for i in rows] if len(examples.names) else None

    def digest() -> str | None:
        if examples.fingerprint is None or plan.transforms or plan.one_hot:
            return None
        which = hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=8)
        return f"{examples.fingerprint()}:{which.hexdigest()}"

    def in_order(check: bool = True) -> Any:
        return dataset(dataclasses.replace(plan, shuffle=False, check=check))

    def split(fraction: float, seed: int | None = None) -> tuple[Any, Any]:
        seed = plan.seed if seed is None else whole("seed", seed, 0)
        # A file that comes several times is in one part only.
        where: dict[Any, int] = {}
        which = np.array([where.setdefault(n, len(where)) for n in ds.file_paths or rows.tolist()])
        unique = np.unique(which, return_index=True)[1]
        parts = stratified(labels[unique], fraction, seed)
        first, second = (
            dataclasses.replace(plan, rows=rows[np.isin(which, part)], skipped=None)
            for part in parts
        )
        # What is validated on is neither shuffled nor augmented.
        return dataset(first), dataset(dataclasses.replace(second, shuffle=False, transforms=()))

    ds.digest, ds.in_order, ds.split = digest, in_order, split
    return ds


def _num_classes(examples: Examples) -> int:
    return len(examples.class_names) or int(examples.labels.max()) + 1
