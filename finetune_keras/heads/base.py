"""What every head has, and what heads share."""

from __future__ import annotations

import abc
import math
import numbers
from typing import Any

import keras

from finetune_keras import parts, record
from finetune_keras._errors import HeadError

__all__ = ["Head", "check_count", "check_features", "check_number", "policy"]


class Head(abc.ABC):
    """From features to predictions. Subclasses are frozen dataclasses.

    A head of your own says how it is connected, and which loss, metrics and labels fit:
    `build`, `replace_head` and `Multi` take it like any other.
    """

    def __call__(
        self,
        features: keras.KerasTensor,
        *,
        origin: str = "",
        mask: keras.KerasTensor | None = None,
    ) -> keras.KerasTensor | dict[str, keras.KerasTensor]:
        """Adds the head's layers to a symbolic features tensor and returns the output.

        Args:
            features: shape ``(batch, ..., channels)``, floating point.
            origin: where the features come from; travels in the file.
            mask: of sequences, shape ``(batch, steps)``, true or 1 where there is a token; pooling
                leaves the rest out.

        Returns:
            The output, float32; of several heads a dict by their keys.
        """
        check_features(features, self)
        return self.connect(features, mask=mask, carrier=record.layer(self.record(origin)))

    @abc.abstractmethod
    def connect(
        self,
        features: keras.KerasTensor,
        *,
        mask: keras.KerasTensor | None = None,
        carrier: keras.layers.Layer | None = None,
        prefix: str = "",
    ) -> Any:
        """Adds the layers; what ``__call__`` does after its checks.

        Args:
            features: as in ``__call__``.
            mask: as in ``__call__``.
            carrier: the layer that carries the record, to go before the last dense layer; ``None``
                where another head carries it.
            prefix: of the names of the layers, after ``ftk_head_``.
        """

    @property
    @abc.abstractmethod
    def loss(self) -> Any:
        """The loss for ``model.compile``, fresh at each call."""

    @property
    @abc.abstractmethod
    def metrics(self) -> Any:
        """The metrics for ``model.compile``, fresh at each call."""

    @property
    def loss_weights(self) -> Any:
        """The ``loss_weights`` for ``model.compile``; ``None`` for none."""
        return None

    def compile_arguments(self) -> dict[str, Any]:
        """What `build` hands to ``model.compile`` beside the optimizer."""
        return {"loss": self.loss, "metrics": self.metrics, "loss_weights": self.loss_weights}

    @property
    @abc.abstractmethod
    def outputs(self) -> tuple[record.Output, ...]:
        """What it gives, in the terms of the file's record."""

    @property
    def labels(self) -> str:
        """What labels it takes, in words: shape, kind and range."""
        return self.record("").labels

    def record(self, origin: str) -> record.Record:
        """What travels in the file of a model with this head."""
        return record.Record(origin=origin, outputs=self.outputs)


def name(part: str) -> str:
    """The full name of a layer of the head."""
    return f"{parts.HEAD}{part}"


def policy(features: keras.KerasTensor) -> str | None:
    """The dtype policy that computes in the precision of the features; ``None`` (Keras' global
    one) unless that is a half precision.

    Examples:
        >>> policy(keras.Input((4,), dtype="bfloat16")), policy(keras.Input((4,)))
        ('mixed_bfloat16', None)
    """
    dtype = keras.backend.standardize_dtype(features.dtype)
    return f"mixed_{dtype}" if dtype in ("bfloat16", "float16") else None


def check_features(features: Any, head: Head) -> None:
    """Raises `HeadError` unless ``features`` is one floating-point tensor."""
    kind = type(head).__name__
    if isinstance(features, dict):
        raise HeadError(
            f"{kind} takes one tensor of features, and the backbone gives a dict of "
            f"{', '.join(map(repr, features))}: choose one with "
            f"backbone(..., cut_at={next(iter(features))!r}), or the name of a layer"
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


def check_number(what: str, value: Any, low: float, high: float = math.inf) -> float:
    """``value`` as a plain float, which a file takes; NumPy's own it does not.

    Raises:
        HeadError: unless ``low <= value < high``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value < high:
        upper = "" if math.isinf(high) else f" and below {high:g}"
        raise HeadError(f"{what} must be a number from {low:g}{upper}; given {value!r}")
    return float(value)


def check_count(what: str, value: Any, low: int = 1) -> int:
    """``value`` as a plain integer, which a file takes; NumPy's own it does not.

    Raises:
        HeadError: unless it is an integer of at least ``low``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise HeadError(f"{what} must be an integer of {low} or more; given {value!r}")
    return int(value)
