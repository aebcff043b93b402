"""Any backend's tensors, data frames and lists, as NumPy arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

__all__ = ["bare", "cut", "each", "is_array", "rows", "short", "splits", "to_numpy"]


def to_numpy(value: Any) -> np.ndarray:
    """Any backend's tensor, ragged ones padded and sparse ones filled, as a NumPy array.

    A view where there can be one: arrays, and tensors of PyTorch and JAX on the CPU.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "to_tensor"):  # tf.RaggedTensor
        value = value.to_tensor()
    elif hasattr(value, "todense"):  # SciPy's and JAX' sparse ones
        value = value.todense()
    elif _sparse(value):
        value = sys.modules["tensorflow"].sparse.to_dense(value)
    if type(value).__module__.startswith("tensorflow") and hasattr(value, "numpy"):
        value = value.numpy()  # strings too, under any backend
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.to_dense() if value.is_sparse else value
        if str(value.dtype) == "torch.bfloat16":  # which PyTorch does not hand to NumPy
            value = value.float()
        value = value.numpy()
    return np.asarray(value)


def rows(array: Any, at: slice) -> np.ndarray:
    """Some examples of an array, tensor or data frame, as NumPy; the rest is not read.

    A series becomes a column, as it does in ``model.fit``.
    """
    if hasattr(array, "iloc"):
        taken = to_numpy(array.iloc[at])
        return taken[:, None] if taken.ndim == 1 else taken
    return to_numpy(cut(array, at))


def cut(array: Any, at: slice) -> Any:
    """Some examples of an array, of its own kind; NumPy's and PyTorch's are views."""
    if hasattr(array, "iloc"):
        return array.iloc[at]
    if _sparse(array):
        start, stop, _ = at.indices(int(array.shape[0]))
        size = [int(n) for n in array.shape]
        zeros = [0] * (len(size) - 1)
        return sys.modules["tensorflow"].sparse.slice(
            array, [start, *zeros], [stop - start, *size[1:]]
        )
    return array[at]


def bare(value: Any) -> Any:
    """A structure whose leaves are arrays: what is a list of numbers or of strings becomes one.

    A dict, a tuple, and a list of arrays are the structure of a model's inputs and are kept.

    Raises:
        ValueError: if a list of numbers has rows of unequal length.

    Examples:
        >>> bare({"a": [1, 2], "b": (["x", "y"], np.zeros(2))})
        {'a': array([1, 2]), 'b': (array(['x', 'y'], dtype=object), array([0., 0.]))}
    """
    if value is None or is_array(value):
        # SciPy's sparse matrices cannot all be sliced; as rows they can.
        return value.tocsr() if hasattr(value, "tocsr") else value
    if isinstance(value, Mapping):
        return {key: bare(v) for key, v in value.items()}
    if isinstance(value, list) and all(map(_plain, value)):
        return _array(value)
    if isinstance(value, tuple) and value and all(map(_scalar, value)):
        return _array(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(bare, value))
    if isinstance(value, list | tuple):
        return type(value)(map(bare, value))
    return _array(value) if _scalar(value) else value


def each(function: Callable, structure: Any) -> Any:
    """A structure with each leaf mapped, ``None`` kept."""
    return keras.tree.map_structure(lambda v: None if v is None else function(v), structure)


def is_array(value: Any) -> bool:
    """Whether this is an array or tensor of some kind, or a data frame, rather than data in it."""
    return hasattr(value, "__array__") or (hasattr(value, "shape") and hasattr(value, "dtype"))


def splits(data: Any) -> str:
    """How to pass one of a dict of data sets, such as a folder of splits gives; else nothing."""
    if not isinstance(data, Mapping) or not data:
        return ""
    if not all(hasattr(v, "element_spec") for v in data.values()):
        return ""
    names = ", ".join(map(repr, data))
    return f"a dict of the data sets {names}: pass one, data[{next(iter(data))!r}]"


def short(value: Any) -> str:
    """A few words for a value in a message."""
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"a {type(value).__name__}{shape}"


def _array(value: Any) -> np.ndarray:
    strings = _strings(value)
    try:
        return np.array(value, dtype=object) if strings else np.asarray(value)
    except ValueError:
        raise ValueError(
            "a list of numbers has rows of unequal length: pad them, as "
            "keras.utils.pad_sequences does"
        ) from None


def _strings(value: Any) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, str | bytes)


def _scalar(value: Any) -> bool:
    return isinstance(value, str | bytes | int | float | np.generic)


def _plain(value: Any) -> bool:
    return _scalar(value) or (isinstance(value, list | tuple) and all(map(_plain, value)))


def _sparse(value: Any) -> bool:
    return hasattr(value, "dense_shape")  # tf.SparseTensor
