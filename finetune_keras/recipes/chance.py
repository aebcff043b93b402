"""The random states that a training draws from, as arrays: to be stored, and put back."""

from __future__ import annotations

import random
import sys
from typing import Any

import keras
import numpy as np

from finetune_keras import _private
from finetune_keras.data.order import Order
from finetune_keras.recipes.examples import Examples

__all__ = ["Begins", "put", "take"]


class Begins(keras.callbacks.Callback):
    """Has a training begin with the random states of now, whatever ``fit`` draws to prepare it.

    Keras reads a batch to build the loss, where it is not built yet; on JAX and PyTorch that draws
    an order. A step that was compiled before needs no such batch.

    Args:
        whole: the model that learns.
        data: what it learns from.
    """

    def __init__(self, whole: keras.Model, data: Examples):
        super().__init__()
        self._whole, self._data = whole, data
        self._state = take(whole, data)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts them back."""
        put(self._state, self._whole, self._data)


def take(model: keras.Model, data: Examples) -> dict[str, np.ndarray]:
    """The states of Python, NumPy, PyTorch and Keras, those of the model's layers, and the next
    epochs of data sets of `finetune_keras.data`.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5)])
        >>> data = Examples((0, 0, None), None, 1, None, None, None, "")
        >>> state = take(model, data)
        >>> first = np.random.rand()
        >>> put(state, model, data)
        >>> np.random.rand() == first
        True
    """
    version, words, gauss = random.getstate()
    _, key, at, has_gauss, cached = np.random.get_state()
    found = {
        "python": np.array([version, *words], "int64"),
        "python_gauss": np.array([] if gauss is None else [gauss]),
        "numpy": np.array([at, has_gauss, *key], "int64"),
        "numpy_gauss": np.array([cached]),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = np.array(torch.get_rng_state())
    seeds = _private.global_seeds()
    if seeds is not None:
        found["keras"] = _array(seeds.state)
    found |= {f"layer{i}": _array(v) for i, v in enumerate(_layers(model))}
    return found | {f"order{i}": np.array(o.epoch) for i, o in enumerate(_orders(data))}


def put(state: dict[str, np.ndarray], model: keras.Model, data: Examples) -> None:
    """Puts back what `take` gave, in this process or in a later one."""
    version, *words = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    at, has_gauss, *key = state["numpy"].tolist()
    cached = float(state["numpy_gauss"][0])
    np.random.set_state(("MT19937", np.array(key, "uint32"), at, has_gauss, cached))
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in state:
        torch.set_rng_state(torch.from_numpy(np.array(state["torch"])))
    if "keras" in state:
        if _private.global_seeds() is None:
            _private.set_global_seeds(keras.random.SeedGenerator(0))
        _private.global_seeds().state.assign(state["keras"])
    for i, variable in enumerate(_layers(model)):
        variable.assign(state[f"layer{i}"])
    for i, order in enumerate(_orders(data)):
        order.epoch = int(state[f"order{i}"])


def _layers(model: keras.Model) -> list[keras.Variable]:
    """The states of the generators of the model's layers, such as dropout."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def _orders(data: Examples) -> list[Order]:
    sets: list[Any] = [data.train[0], data.validation]
    if data.whole is not None:
        sets.append(data.whole.train[0])
    found = [getattr(each, "order", None) for each in sets]
    return [order for order in found if isinstance(order, Order)]


def _array(variable: keras.Variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))
