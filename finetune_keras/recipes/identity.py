"""What a run is of, as JSON: to tell whether a stored one is the same."""

from __future__ import annotations

import hashlib
import importlib
import json
from typing import Any

import keras
import numpy as np

from finetune_keras import arrays, parts
from finetune_keras._errors import CacheError
from finetune_keras._version import __version__
from finetune_keras.cache import source
from finetune_keras.cache.fingerprint import fingerprint
from finetune_keras.recipes.examples import Examples
from finetune_keras.recipes.folder import HASHED

__all__ = ["CHANGED", "exact", "identity"]

CHANGED = ("loss, metrics and optimizer", "pretrained weights")  # by the run itself

# Names count what a process has made before; a rate that was compiled is not that of a run.
_APART = ("name", "shared_object_id", "build_config", "learning_rate")


def identity(model: keras.Model, data: Examples, given: dict[str, Any]) -> dict[str, Any]:
    """A description of a run, of short strings and numbers.

    Args:
        model: compiled, with the weights that it starts from. Those of its head do not count, which
            a program draws anew.
        data: what it learns from. Of data sets that are not `finetune_keras.data`'s only the kind
            counts and how many batches there are, since they may be shuffled.
        given: arguments by name.
    """
    backend = keras.backend.backend()
    library = importlib.import_module("jax" if backend == "jax" else backend)
    return {
        "finetune_keras": __version__,
        "keras": keras.__version__,
        "backend": f"{backend} {library.__version__}",
        "model": _network(model),
        "loss, metrics and optimizer": _hash(_compiled(model)),
        "pretrained weights": _pretrained(model),
        "training data": _data(model, data.train),
        "validation data": _data(model, _unpacked(data.validation)),
        **{name: _argument(value) for name, value in given.items()},
    }


def exact(data: Examples) -> bool:
    """Whether all data come in an order that a later process can repeat."""
    return all(
        source.source(*part).arrays or hasattr(part[0], "order")
        for part in (data.train, _unpacked(data.validation))
    )


def _network(model: keras.Model) -> str:
    shapes = [(list(v.shape), str(v.dtype)) for v in model.variables]
    try:
        graph = fingerprint(model)["graph"]
    except (CacheError, ValueError, AttributeError):
        graph = type(model).__qualname__  # of its own ``call``, which cannot be read
    return _hash([graph, shapes])


def _compiled(model: keras.Model) -> Any:
    try:
        return _lasting(model.get_compile_config())
    except Exception:  # of a user's own class, whose get_config may raise anything
        return type(model.optimizer).__qualname__


def _lasting(config: Any) -> Any:
    """What of it is the same in each process."""
    if isinstance(config, dict):
        return {k: _lasting(v) for k, v in config.items() if k not in _APART}
    return [_lasting(v) for v in config] if isinstance(config, list | tuple) else config


def _pretrained(model: keras.Model) -> str:
    """Of the weights outside of the head."""
    head = {id(unit.variable) for unit in parts.parts(model).head_units}
    hashed = hashlib.blake2b(digest_size=8)
    for variable in model.weights:
        if id(variable) not in head:
            hashed.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    return HASHED + hashed.hexdigest()


def _unpacked(data: Any) -> tuple[Any, Any, Any]:
    return (
        keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(data, tuple)
        else (data, None, None)
    )


def _data(model: keras.Model, part: tuple[Any, Any, Any]) -> str:
    if source.is_stream(part[0]) and not hasattr(part[0], "order"):
        read = source.source(*part)
        return read.spec
    read = source.source(*(arrays.bare(p) for p in part) if part[1] is not None else part)
    return _hash(read.digest())


def _argument(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return _hash({str(k): v for k, v in value.items()})  # NumPy's numbers are no keys of JSON
    if callable(value) and not isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return _hash(value)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return HASHED + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    try:
        return keras.saving.serialize_keras_object(value)
    except Exception:
        return getattr(value, "__qualname__", type(value).__qualname__)
