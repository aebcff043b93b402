"""What a model computes, as two short strings: its graph and its weights.

Names do not count: the second ``resnet50`` of a program has other names than the first, and
computes the same.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import keras
import numpy as np

from finetune_keras import graph
from finetune_keras._errors import CacheError
from finetune_keras.tape import Tape, inside, tape, tensors

__all__ = ["fingerprint", "weights"]

_NAMES = ("name", "trainable", "shared_object_id", "registered_name", "build_config")


def fingerprint(model: keras.Model, *, seeds: bool = True) -> dict[str, str]:
    """``{"graph": ..., "weights": ...}`` of a functional or sequential model.

    Equal graphs and weights give equal strings, in another process too; a single weight that
    differs gives others. Reads all weights once.

    Args:
        model: the model.
        seeds: whether graphs with random layers of different seeds are different.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> twin = keras.models.clone_model(model)
        >>> a, b = fingerprint(model), fingerprint(twin)
        >>> a["graph"] == b["graph"], a["weights"] == b["weights"]
        (True, False)
    """
    shape = hashlib.blake2b(digest_size=16)
    _graph(tape(model), shape, _NAMES if seeds else (*_NAMES, "seed"))
    return {"graph": shape.hexdigest(), "weights": weights(model)}


def weights(model: keras.Model) -> str:
    """A digest of all weights of a model."""
    total = hashlib.blake2b(digest_size=16)
    for unit in graph.opened(model).units:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(unit.variable))
        total.update(f"{value.shape} {value.dtype}".encode())
        total.update(value.reshape(-1).view("uint8").data)
    return total.hexdigest()


def _graph(this: Tape, into: Any, skip: tuple[str, ...]) -> None:
    numbers: dict[int, str] = {}

    def number(found: Any) -> None:
        for t in tensors(found):
            numbers.setdefault(id(t), f"t{len(numbers)} {tuple(t.shape)} {t.dtype}")

    number(this.inputs)
    for step in this.steps:
        cls = type(step.op)
        into.update(f"{cls.__module__}.{cls.__qualname__}".encode())
        within = inside(step, False)
        if within is not None:
            _graph(within[0], into, skip)
        else:
            into.update(_text(_config(step.op), skip).encode())
        given = keras.tree.map_structure(
            lambda x: numbers.get(id(x), "?") if isinstance(x, keras.KerasTensor) else x,
            (step.args, step.kwargs),
        )
        into.update(_text(given, skip).encode())
        number(step.outputs)
    into.update(" ".join(numbers[id(t)] for t in tensors(this.outputs)).encode())


def _config(op: keras.Operation) -> Any:
    try:
        config = op.get_config()
        if hasattr(op, "get_vocabulary"):  # what ``adapt`` found is no weight, nor in the config
            config = {**config, "vocabulary": list(op.get_vocabulary())}
        return config
    except Exception as e:  # a user's own get_config may raise anything; Keras' default does
        raise CacheError(
            f"the layer {op.name!r} ({type(op).__name__}) has no config ({type(e).__name__}), so "
            "its features could not be told from those of another: give it a get_config, or keep "
            "the features in memory"
        ) from e


def _text(value: Any, skip: tuple[str, ...]) -> str:
    return json.dumps(_plain(value, skip), sort_keys=True)


def _plain(value: Any, skip: tuple[str, ...]) -> Any:
    """A value of a config as what JSON knows, the same in each process."""
    if isinstance(value, dict):
        return {str(k): _plain(v, skip) for k, v in value.items() if k not in skip}
    if isinstance(value, list | tuple):
        return [_plain(v, skip) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
        return [str(array.dtype), list(array.shape), digest]
    try:
        return _plain(keras.saving.serialize_keras_object(value), skip)
    except Exception:
        return getattr(value, "__qualname__", type(value).__qualname__)
