"""What every head has, and what heads share."""

from __future__ import annotations

import abc
import math
import numbers
from typing import Any

import keras

from finetune_keras import parts, record
from finetune_keras._errors import HeadError, nearest

__all__ = ["Head", "check_features", "dense", "name", "near_zero", "pool"]


class Head(abc.ABC):
    """From features to predictions. Subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, features: keras.KerasTensor, *, origin: str = "") -> keras.KerasTensor:
        """Adds the head's layers to a symbolic features tensor and returns the output.

        Args:
            features: shape ``(batch, ..., channels)``, floating point.
            origin: where the features come from; travels in the file.
        """

    @property
    @abc.abstractmethod
    def loss(self) -> Any:
        """The loss for ``model.compile``, fresh at each call."""

    @property
    @abc.abstractmethod
    def metrics(self) -> list:
        """The metrics for ``model.compile``, fresh at each call."""

    @property
    @abc.abstractmethod
    def labels(self) -> str:
        """What labels it takes, in words: shape, kind and range."""

    @property
    @abc.abstractmethod
    def outputs(self) -> tuple[record.Output, ...]:
        """What it gives, in the terms of the file's record."""

    def record(self, origin: str) -> record.Record:
        """What travels in the file of a model with this head."""
        return record.Record(origin=origin, outputs=self.outputs)


def name(part: str) -> str:
    """The full name of a layer of the head."""
    return f"{parts.HEAD}{part}"


def check_features(features: Any, head: Head) -> None:
    """Raises `HeadError` unless ``features`` is one floating-point tensor."""
    kind = type(head).__name__
    if isinstance(features, dict):
        raise HeadError(
            f"{kind} takes one tensor of features, and the backbone gives a dict of "
            f"{', '.join(map(repr, features))}: choose one with "
            f"backbone(..., cut_at=<name of the layer that makes it>)"
        )
    if isinstance(features, list | tuple):
        raise HeadError(
            f"{kind} takes one tensor of features, and the backbone gives {len(features)}: choose "
            "one with backbone(..., cut_at=<name of the layer that makes it>)"
        )
    if not isinstance(features, keras.KerasTensor):
        raise HeadError(
            f"{kind} takes a symbolic tensor of features, such as backbone.model.output; given a "
            f"{type(features).__name__}"
        )
    if "float" not in keras.backend.standardize_dtype(features.dtype):
        raise HeadError(
            f"{kind} takes floating-point features; given {features.dtype}, shape {features.shape}"
        )
    if len(features.shape) < 2:
        raise HeadError(
            f"{kind} takes features of shape (batch, ..., channels); given shape {features.shape}"
        )


_POOLS = {
    "avg": ("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D"),
    "max": ("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"),
}


def pool(features: keras.KerasTensor, pooling: str | None) -> keras.KerasTensor:
    """One vector an example: maps and sequences are pooled, vectors are left as they are.

    Args:
        features: shape ``(batch, channels)``, ``(batch, steps, channels)``,
            ``(batch, height, width, channels)`` or with one more dimension.
        pooling: ``"avg"``, ``"max"``, or ``None`` to flatten.

    Returns:
        A tensor of shape ``(batch, channels)``, or ``(batch, height * width * channels)``.
    """
    rank = len(features.shape)
    if rank == 2:
        return features
    if pooling is None:
        if any(n is None for n in features.shape[1:]):
            raise HeadError(
                f"pooling=None flattens, which needs a fixed size; the features have shape "
                f"{features.shape}: give the backbone an input_shape, or use pooling='avg'"
            )
        return keras.layers.Flatten(name=name("flatten"))(features)
    if rank > 5:
        raise HeadError(
            f"pooling={pooling!r} takes features of at most 5 dimensions; given {features.shape}"
        )
    return getattr(keras.layers, _POOLS[pooling][rank - 3])(name=name("pool"))(features)


def check_pooling(pooling: str | None) -> None:
    """Raises `HeadError` for a pooling that there is not."""
    if pooling is not None and (not isinstance(pooling, str) or pooling not in _POOLS):
        raise HeadError(f"unknown pooling={pooling!r}; {nearest(str(pooling), _POOLS)}")


def check_number(what: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises `HeadError` unless ``low <= value < high``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value < high:
        upper = "" if math.isinf(high) else f" and below {high:g}"
        raise HeadError(f"{what} must be a number from {low:g}{upper}; given {value!r}")


def near_zero() -> keras.initializers.Initializer:
    """For a last kernel: deviation 0.01 of the logits for features of unit scale.

    Keras' default would make features of a large scale start at a saturated softmax, and from
    probabilities that are clipped (as on JAX and PyTorch) no gradient flows.
    """
    return keras.initializers.VarianceScaling(1e-4, mode="fan_in", distribution="truncated_normal")


def dense(units: int, part: str, **kwargs: Any) -> keras.layers.Dense:
    """A dense layer of the head."""
    return keras.layers.Dense(units, name=name(part), **kwargs)
