"""One batch: what a reader gives, made into NumPy arrays and looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from finetune_keras import arrays
from finetune_keras.cache import digest

__all__ = ["Batch", "batch_digest", "convert", "differs"]

_PARTS = ("x", "y", "sample_weight")
_LIMIT = 2 << 20  # bytes of each array that a digest looks at


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch: structures of NumPy arrays, some of them views of the user's own.

    Attributes:
        x: inputs, in the structure of the data.
        y: labels, ``None`` where there are none.
        sample_weight: weights, ``None`` where there are none.
        size: how many examples.
    """

    x: Any
    y: Any
    sample_weight: Any
    size: int

    def leaves(self) -> list[tuple[str, np.ndarray]]:
        """The arrays, each with its place: ``x['image']``, ``y``."""
        return [pair for part in _PARTS for pair in digest.named(getattr(self, part), part)]


def batch_digest(batch: Batch, *, whole: bool = False) -> str:
    """A hash of a batch: structure, shapes, types and values.

    Args:
        batch: the batch.
        whole: take every byte, rather than at most about 2 MB of each array in blocks spread
            evenly over it, which tells batches apart in milliseconds.

    Examples:
        >>> one, other = (Batch(np.full((2, 3), value), None, None, 2) for value in (1, 2))
        >>> batch_digest(one) == batch_digest(one), batch_digest(one) == batch_digest(other)
        (True, False)
    """
    return digest.of(batch.leaves(), None if whole else _LIMIT)


def convert(raw: Any, preprocess: Callable | None, *, copy: bool, what: str) -> Batch:
    """Makes a batch of what a reader gave.

    Args:
        raw: ``x``, ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``, of any kind of tensor.
        preprocess: called on the three first, with strings as lists of ``str``.
        copy: whether the arrays have to be the batch's own.
        what: names the data in messages.

    Raises:
        ValueError: if this is no batch: of rank 0, empty, of unequal lengths.
    """
    parts = _unpack(raw, what)
    if preprocess is not None:
        parts = _unpack(preprocess(*(arrays.each(_texts, part) for part in parts)), what)
    own = np.array if copy else np.asarray
    parts = [arrays.each(lambda a: own(arrays.to_numpy(a)), arrays.bare(part)) for part in parts]
    batch = Batch(*parts, size=0)
    return dataclasses.replace(batch, size=_size(batch, what))


def differs(batch: Batch, first: Batch) -> str | None:
    """What sets a batch apart from the first one, in words, but for sizes and shapes of inputs."""
    made, then = dict(batch.leaves()), dict(first.leaves())
    if made.keys() != then.keys():
        return f"has {', '.join(made)}, the first one {', '.join(then)}"
    for name, array in made.items():
        kinds = [f"{digest.kind(a)} of shape {a.shape[1:]} an example" for a in (array, then[name])]
        if kinds[0] != kinds[1] and not name.startswith("x"):
            return (
                f"has {name} {kinds[0]}, the first one {kinds[1]}: labels and weights need one "
                "shape and dtype"
            )
    return None


def _unpack(raw: Any, what: str) -> tuple[Any, Any, Any]:
    try:
        return keras.utils.unpack_x_y_sample_weight(raw)
    except ValueError:
        raise ValueError(
            f"{what}: a batch is x, (x, y) or (x, y, sample_weight); there is a "
            f"{type(raw).__name__} of {len(raw)}"
        ) from None


def _size(batch: Batch, what: str) -> int:
    sizes = {}
    for name, array in batch.leaves():
        if not array.ndim:
            raise ValueError(
                f"{what}: {name} of a batch is a single value, {array.item()!r}: is the data set "
                "batched? Call .batch(32) on a tf.data.Dataset"
            )
        sizes[name] = len(array)
    if not any(name.startswith("x") for name in sizes):
        raise ValueError(f"{what}: a batch has no inputs")
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{n} of {name}" for name, n in sizes.items())
        raise ValueError(
            f"{what}: a batch has {found}: one of each for every example is needed (is the data "
            "set batched?)"
        )
    size = next(iter(sizes.values()))
    if not size:
        raise ValueError(f"{what}: there is a batch of 0 examples")
    return size


def _texts(value: Any) -> Any:
    """Strings as KerasHub's tokenizers take them; what is a tensor of TensorFlow stays one."""
    if isinstance(value, np.ndarray) and digest.kind(value) == "string":
        return _decoded(value.tolist())
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(v) for v in value]
    return value.decode() if isinstance(value, bytes) else value
