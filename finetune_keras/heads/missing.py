"""Losses and metrics for labels of which some are missing."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["KnownLoss", "KnownMetric"]


def _known(y_true: Any, y_pred: Any, kind: str) -> tuple[Any, Any]:
    """The labels with missing ones replaced by 0, and where they are known, as 0 or 1.

    What stands in for a missing label only has to give a finite loss, which then counts nothing.
    """
    y_true = ops.cast(y_true, y_pred.dtype)
    if kind in ("classification", "ordinal"):
        y_true = ops.reshape(y_true, ops.shape(y_pred)[:-1])
        known = ops.logical_and(y_true >= 0, ops.logical_not(ops.isnan(y_true)))
    else:
        y_true = ops.reshape(y_true, ops.shape(y_pred))
        known = ops.logical_not(ops.isnan(y_true))
        if kind == "regression":
            known = ops.all(known, axis=-1)
            y_true = ops.where(ops.expand_dims(known, -1), y_true, 0.0)
            return y_true, ops.cast(known, y_pred.dtype)
        known = ops.logical_and(known, y_true >= 0)
    return ops.where(known, y_true, 0.0), ops.cast(known, y_pred.dtype)


@keras.saving.register_keras_serializable("finetune_keras")
class KnownLoss(keras.losses.Loss):
    """A loss over the labels that there are: missing ones add nothing, to the mean neither.

    Args:
        loss: a ``keras.losses.Loss``.
        kind: of the output, as in `finetune_keras.record.Output`. Missing is -1 (or NaN) for
            ``"classification"``, ``"ordinal"``, ``"binary"`` and single labels of
            ``"multi_label"``; NaN for ``"regression"``, where one NaN makes the example missing.
        name: of the loss.

    The loss of a batch without any label is 0.

    Examples:
        >>> loss = KnownLoss(keras.losses.MeanSquaredError(), "regression")
        >>> float(loss(ops.array([2.0, float("nan")]), ops.zeros((2, 1))))
        4.0
    """

    def __init__(self, loss: keras.losses.Loss, kind: str, name: str = "known", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.loss = loss
        self.kind = kind

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each example or label, scaled so that their mean is over the known ones."""
        y_true, known = _known(y_true, y_pred, self.kind)
        if self.kind in ("binary", "multi_label"):
            # Keras means over the last axis, and each label here has a weight of its own.
            y_true, y_pred = ops.expand_dims(y_true, -1), ops.expand_dims(y_pred, -1)
        values = self.loss.call(y_true, y_pred)
        count = ops.sum(known)
        size = ops.sum(ops.ones_like(known))
        return ops.where(known > 0, values, 0.0) * size / ops.maximum(count, 1.0)

    def get_config(self) -> dict[str, Any]:
        """The loss within and the kind, beside Keras' own."""
        inner = keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "loss": inner, "kind": self.kind}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KnownLoss:
        """The loss that `get_config` described."""
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})


@keras.saving.register_keras_serializable("finetune_keras")
class KnownMetric(keras.metrics.Metric):
    """A metric over the labels that there are.

    Args:
        metric: a ``keras.metrics.Metric`` that takes ``sample_weight``; its name is kept.
        kind: as in `KnownLoss`.

    Examples:
        >>> metric = KnownMetric(keras.metrics.MeanAbsoluteError(name="mae"), "regression")
        >>> metric.update_state(ops.array([2.0, float("nan")]), ops.full((2, 1), 0.5))
        >>> metric.name, float(metric.result())
        ('mae', 1.5)
    """

    def __init__(self, metric: keras.metrics.Metric, kind: str, **kwargs: Any):
        super().__init__(**{"name": metric.name, **kwargs})
        self.metric = metric
        self.kind = kind

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch."""
        y_pred = ops.convert_to_tensor(y_pred)
        y_true, known = _known(y_true, y_pred, self.kind)
        if sample_weight is not None:
            weight = ops.cast(sample_weight, known.dtype)
            known = known * ops.reshape(weight, (-1, *[1] * (len(known.shape) - 1)))
        self.metric.update_state(y_true, y_pred, sample_weight=known)

    def result(self) -> Any:
        """The value so far; 0 before the first label."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Starts again."""
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        """The metric within and the kind, beside Keras' own."""
        inner = keras.saving.serialize_keras_object(self.metric)
        return {**super().get_config(), "metric": inner, "kind": self.kind}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KnownMetric:
        """The metric that `get_config` described."""
        metric = keras.saving.deserialize_keras_object(config["metric"])
        return cls(**{**config, "metric": metric})
