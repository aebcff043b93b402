"""What would silently spoil a training, refused before it begins.

These are the lines of `finetune_keras.check` that leave no doubt. Backends differ in what they do
to a label out of range, say: one raises, one gives NaN, one learns nothing and says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from finetune_keras import arrays, graph, outputs
from finetune_keras.check import classes, labels, shapes
from finetune_keras.check.findings import Finding

__all__ = ["batch", "given", "names"]

_MOST = 10_000_000  # labels are looked at in full up to this many: a tenth of a second
_FEW = 256


def names(model: keras.Model, train: Any, held: Any) -> None:
    """Raises a ``ValueError`` if a label is called otherwise in training and validation data, or
    in the model.

    Args:
        model: what is trained.
        train: data sets with ``class_names``, or anything else.
        held: the same.
    """
    for data, what in ((train, "the training data"), (held, "the validation data")):
        if several := arrays.splits(data):
            raise TypeError(f"{what} are {several}")
    own, other = _class_names(train), _class_names(held)
    at = classes.clash(own, other)
    if at is not None:
        raise ValueError(
            f"label {at} is {own[at]!r} in the training data and {other[at]!r} in the validation "
            "data: make these with class_names= those of the training data"
        )
    for output, _ in _outputs(model):
        for found, what in ((own, "the training data"), (other, "the validation data")):
            _raise(classes.permuted(output, found), what)


def given(model: keras.Model, x: Any, y: Any, sample_weight: Any, what: str) -> None:
    """Raises a ``ValueError`` for what is known to be wrong before anything is read.

    Of arrays all labels are known, and of the data sets of `finetune_keras.data`. What is in other
    data is known when they are read; see `batch`.

    Args:
        model: a compiled model.
        x: as ``fit`` takes it.
        y: labels.
        sample_weight: examples without weight do not count.
        what: names the data in the message.
    """
    if getattr(model, "preprocessor", None) is not None:
        return  # of a KerasHub task, which may change the labels too
    plan = getattr(x, "plan", None)
    if plan is None:
        spec = getattr(x, "element_spec", None)  # of another tf.data.Dataset
        batch(model, x if spec is None else spec, y, sample_weight, what)
        return
    y = x.labels
    if plan.one_hot:
        y = keras.utils.to_categorical(y[:_FEW], x.num_classes)
        y = 0.9 * y + 0.1 / x.num_classes if plan.transforms else y  # as if they were mixed
    for output, _ in _outputs(model):
        _raise(classes.no_values(output, y, _class_names(x)), what)
    batch(model, x.element_spec[0], y, None, what)


def batch(model: keras.Model, x: Any, y: Any, sample_weight: Any, what: str) -> None:
    """The same for what was read; see `given`."""
    if getattr(model, "preprocessor", None) is None:
        _raise(shapes.text(model, x), what)
    found = _outputs(model)
    if y is None or not found:
        return
    several = isinstance(graph.ends(model)[1], dict | list | tuple)
    parts = labels.by_output(arrays.bare(y), [output.name for output, _ in found], several)
    for (output, shape), part in zip(found, parts, strict=True):
        # Of a loss of the user's own only they know what it takes.
        if part is None or output.loss is None or not output.loss.family:
            continue
        part = _weighed(_read(part), sample_weight)
        if part.ndim == len(shape) + 1 and part.shape[-1] == 1:  # as Keras takes it
            part = part[..., 0]
        if len(part):
            _raise(labels.refused(output, part, shape), what)


def _outputs(model: keras.Model) -> list[tuple[outputs.Output, tuple]]:
    if not graph.is_functional(model) or not model.compiled:
        return []
    made = graph.ends(model)[1]
    shape = [tuple(tensor.shape) for _, tensor in outputs.pairs(made)]
    return list(zip(outputs.outputs(model, made), shape, strict=True))


def _class_names(data: Any) -> list[str]:
    found = getattr(data, "class_names", None)
    return list(map(str, found)) if isinstance(found, list | tuple) else []


def _read(y: Any) -> np.ndarray:
    """Labels as an array; the first ones of those that are too many."""
    shape = getattr(y, "shape", ())
    many = math.prod(n or 1 for n in shape) > _MOST
    return arrays.rows(y, slice(0, _FEW)) if many else arrays.to_numpy(y)


def _weighed(y: np.ndarray, weight: Any) -> np.ndarray:
    if weight is None or isinstance(weight, dict | list | tuple):
        return y
    weight = arrays.to_numpy(weight)
    return y[weight != 0] if weight.shape == y.shape[:1] else y


def _raise(found: Iterator[Finding], what: str) -> None:
    for finding in found:
        raise ValueError(f"{what}: {finding.message}: {finding.fix}")
