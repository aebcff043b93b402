"""Whether weights are whole: numbers that can be computed with, and no layers left over."""

from __future__ import annotations

import re
from collections.abc import Iterable

import keras
import numpy as np

from finetune_keras._errors import WeightsError

__all__ = ["deeper", "finite"]

# A number between separators: of "encoder.layer.2.output" and "dense_2/vars/0", not of "conv1".
_NUMBER = re.compile(r"[._/]\d+(?=[._/]|$)")


def finite(model: keras.Model, shown: str) -> None:
    """Raises `WeightsError` if a weight is NaN or infinite.

    Args:
        model: as it was loaded.
        shown: where from, for the message.

    Examples:
        >>> fc = keras.layers.Dense(1, name="fc")
        >>> model = keras.Sequential([keras.Input((2,)), fc], name="own")
        >>> model.set_weights([np.array([[1.0], [np.inf]]), np.zeros(1)])
        >>> finite(model, "mine.h5")
        Traceback (most recent call last):
        finetune_keras._errors.WeightsError: 'mine.h5' has 1 value that is not finite in \
'own/fc/kernel': the training that made it has diverged; take an earlier checkpoint
    """
    for variable in model.weights:
        if not keras.backend.is_float_dtype(variable.dtype):
            continue
        values = keras.ops.convert_to_numpy(variable)
        bad = values.size - int(np.isfinite(values).sum())
        if bad:
            many = "values that are" if bad > 1 else "value that is"
            raise WeightsError(
                f"{shown!r} has {bad} {many} not finite in {variable.path!r}: the training that "
                "made it has diverged; take an earlier checkpoint"
            )


def deeper(unused: Iterable[str], used: Iterable[str]) -> list[str]:
    """The names left over of layers of a series, of which other layers were used.

    A checkpoint of twelve layers has all that a network of six needs, so that nothing else tells.

    Args:
        unused: names of tensors that no weight takes.
        used: names of those that one does.

    Examples:
        >>> used = ["layer.0.fc.weight", "layer.1.fc.weight", "layer.1.fc.bias"]
        >>> deeper(["layer.2.fc.weight", "layer.0.fc.bias", "head.2.weight"], used)
        ['layer.2.fc.weight']
    """
    used = list(used)
    series = {_NUMBER.sub("", n) for n in used}
    layers = {layer for n in used for layer in _layers(n)}
    return [n for n in unused if _NUMBER.sub("", n) in series and _layers(n) - layers]


def _layers(name: str) -> set[str]:
    """The beginnings of a name that end in a number: ``{"encoder.layer.2"}``."""
    return {name[: found.end()] for found in _NUMBER.finditer(name)}
