"""A few batches of what ``model.fit`` takes, read without using it up."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
import types
from typing import Any

import keras
import numpy as np

from finetune_keras.arrays import short, splits, to_numpy
from finetune_keras.data.order import Order

__all__ = ["Sample", "draw", "random_state"]

_WHOLE = 10_000_000  # labels of an array are read in full up to this many: a tenth of a second


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was read.

    Attributes:
        x: the inputs of one batch, NumPy arrays in the structure of the data.
        inputs: inputs of all batches, in the same structure.
        y: labels, of all batches or of the whole data; ``None`` if there are none.
        batch_y: labels of the batch ``x``.
        seen: how many examples were read.
        labelled: how many examples ``y`` has.
        whole: whether ``y`` is all there is.
        batch: examples in a batch, the largest one.
        ordered: whether ``fit`` takes the data in the order in which they come.
        class_names: names that the data set itself carries, as those of
            ``keras.utils.image_dataset_from_directory`` do.
    """

    x: Any
    inputs: Any
    y: Any
    batch_y: Any
    seen: int
    labelled: int
    whole: bool
    batch: int
    ordered: bool
    class_names: tuple[str, ...] = ()


def draw(data: Any, batches: int, batch_size: int) -> Sample:
    """Reads a few batches; the random state of NumPy, Python and PyTorch is as before, and so is
    the epoch of a data set of `finetune_keras.data`.
    """
    if isinstance(data, types.GeneratorType):
        raise TypeError(
            "check would use up the batches that it takes from a generator: hand in one batch, "
            "check(model, next(generator)), or a tf.data.Dataset or keras.utils.PyDataset"
        )
    if several := splits(data):
        raise TypeError(f"the data are {several}")
    with random_state(data):
        if isinstance(data, tuple):
            return _arrays(data, batches, batch_size)
        return _stream(data, batches)


@contextlib.contextmanager
def random_state(data: Any):
    """Gives back what shuffling and the user's own code draw meanwhile."""
    own = getattr(data, "generator", None)  # a torch loader's
    own = own if hasattr(own, "get_state") and hasattr(own, "set_state") else None
    own_state = own.get_state() if own is not None else None
    order = getattr(data, "order", None)
    order = order if isinstance(order, Order) else None
    epoch = order.epoch if order is not None else 0
    python, numpy = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    state = torch.get_rng_state() if torch is not None else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if state is not None:
            torch.set_rng_state(state)
        if own is not None:
            own.set_state(own_state)
        if order is not None:
            order.epoch = epoch


def _arrays(data: tuple, batches: int, batch_size: int) -> Sample:
    x, y = _unpack(data)
    if isinstance(x, list | tuple) and x and all(isinstance(text, str) for text in x):
        x = np.array(x, dtype=object)  # texts, which KerasHub's tasks take so
    leaves = keras.tree.flatten(x) + ([] if y is None else keras.tree.flatten(y))
    for leaf in leaves:
        if not hasattr(leaf, "shape") or not leaf.shape:
            raise TypeError(
                f"(x, y) are arrays, or dicts or lists of arrays; given {short(leaf)}: use "
                "numpy.asarray"
            )
    sizes = list(dict.fromkeys(int(leaf.shape[0]) for leaf in leaves))
    if len(sizes) != 1:
        raise ValueError(
            f"the arrays of (x, y) have {' and '.join(map(str, sizes))} examples: one label an "
            "example is needed"
        )
    n = sizes[0]
    if not n:
        raise ValueError("the data are empty: there are 0 examples")
    # ``fit`` shuffles arrays, so what it sees first is drawn from all of them.
    at = np.unique(np.linspace(0, n - 1, min(n, batches * batch_size)).astype("int64"))
    inputs = keras.tree.map_structure(lambda a: _rows(a, at), x)
    small = y is not None and sum(np.prod(a.shape) for a in keras.tree.flatten(y)) <= _WHOLE
    read = to_numpy if small else lambda a: _rows(a, at)
    labels = None if y is None else keras.tree.map_structure(read, y)
    # Spread again, or the first batch would be of one class where the arrays are sorted by it.
    one = np.unique(np.linspace(0, len(at) - 1, min(len(at), batch_size)).astype("int64"))
    return Sample(
        x=keras.tree.map_structure(lambda a: a[one], inputs),
        inputs=inputs,
        y=labels,
        batch_y=None if y is None else keras.tree.map_structure(lambda a: _rows(a, at[one]), y),
        seen=len(at),
        labelled=n if small else len(at),
        whole=small or len(at) == n,
        batch=min(batch_size, n),
        ordered=False,
    )


def _rows(array: Any, at: np.ndarray) -> np.ndarray:
    if hasattr(array, "iloc"):
        return np.asarray(array.iloc[at])
    return array[at] if isinstance(array, np.ndarray) else to_numpy(array)[at]


def _stream(data: Any, batches: int) -> Sample:
    known = None
    if isinstance(data, keras.utils.PyDataset):
        known = data.num_batches
        n = batches if known is None else min(batches, known)
        spread = range(n) if known is None else np.linspace(0, known - 1, n).astype("int64")
        read = [data[int(i)] for i in dict.fromkeys(map(int, spread))]
    elif hasattr(data, "shape") or isinstance(data, dict | list | str) or not _iterates(data):
        raise TypeError(
            f"check takes what model.fit takes, (x, y) or a data set of batches; given "
            f"{short(data)}" + (": pass (x, y)" if hasattr(data, "shape") else "")
        )
    else:
        read = []
        for batch in data:
            read.append(batch)
            if len(read) == batches:
                break
    if not read:
        raise ValueError("the data set is empty: it gives no batch")
    xs, ys = zip(*map(_unpack, read), strict=True)
    xs = keras.tree.map_structure(to_numpy, xs)
    ys = (None,) if ys[0] is None else keras.tree.map_structure(to_numpy, ys)
    sizes = [len(leaf) if leaf.shape else 1 for leaf in (keras.tree.flatten(x)[0] for x in xs)]
    y = None if ys[0] is None else _together(ys)
    return Sample(
        x=xs[0],
        inputs=_together(xs),
        y=y,
        batch_y=ys[0],
        seen=sum(sizes),
        labelled=sum(sizes),
        whole=known is not None and known <= batches,
        batch=max(sizes),
        ordered=not isinstance(data, keras.utils.PyDataset),
        class_names=tuple(map(str, getattr(data, "class_names", None) or ())),
    )


def _iterates(data: Any) -> bool:
    return hasattr(data, "__iter__") and not isinstance(data, bytes)


def _unpack(batch: Any) -> tuple[Any, Any]:
    try:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    except ValueError:
        raise ValueError(
            f"a batch is (x, y) or (x, y, sample_weight); given a {type(batch).__name__} of "
            f"{len(batch)}"
        ) from None
    return x, y


def _together(batches: tuple) -> Any:
    """Batches as one; only the first where their shapes differ, as those of padded text do."""
    try:
        return keras.tree.map_structure(lambda *b: np.concatenate(b), *batches)
    except ValueError:
        return batches[0]
