"""Several losses weighted by their learned uncertainty.

Kendall, Gal and Cipolla 2018 (arXiv:1705.07115): each output has a log variance `s` that learns
with the rest, and adds

    exp(-s) * loss + s / 2          (with a factor 1/2 before the loss of a regression)

to the total. An output whose loss stays large gets a large `s` and counts for less; `s / 2` keeps
it from counting for nothing.

The variable of `s` is the kernel of a plain dense layer in the graph, so that it is saved, loaded
and trained like any other. A loss finds it by `bind`, which `finetune_keras.compile` and
`finetune_keras.load` call.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from finetune_keras import parts

__all__ = ["UncertainLoss", "bind", "log_variance"]

_PART = "log_variance"


def log_variance(output: keras.KerasTensor, key: str) -> keras.KerasTensor:
    """The output as it is, and in the graph behind it the variable `s` of ``key``, at 0.

    A dense kernel on a constant 0 adds exactly 0, and no gradient but that of the loss.
    """
    name = f"{parts.HEAD}{key}_{_PART}"
    given = keras.Input(batch_shape=output.shape, dtype=output.dtype)
    scale = keras.layers.Dense(
        1, use_bias=False, kernel_initializer="zeros", dtype="float32", name="s"
    )
    through = given + scale(ops.zeros_like(given[:, :1]))
    return keras.Model(given, through, name=name)(output)


@keras.saving.register_keras_serializable("finetune_keras")
class UncertainLoss(keras.losses.Loss):
    """A loss weighted by the learned log variance of one output: ``factor exp(-s) loss + s / 2``.

    Args:
        loss: a ``keras.losses.Loss``.
        key: of the output.
        factor: of the loss, 1/2 for a regression.
        name: of the loss.

    Examples:
        >>> loss = UncertainLoss(keras.losses.MeanSquaredError(), "age", 0.5)
        >>> loss.variable is None
        True
    """

    def __init__(
        self,
        loss: keras.losses.Loss,
        key: str,
        factor: float = 1.0,
        name: str = "uncertain",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.loss = loss
        self.key = key
        self.factor = factor
        self.variable: keras.Variable | None = None

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The weighted loss of each example."""
        if self.variable is None:
            raise ValueError(
                f"the uncertainty of {self.key!r} is tied to no model: load the file with "
                "finetune_keras.load, or compile with finetune_keras.compile"
            )
        s = ops.cast(ops.reshape(self.variable, ()), y_pred.dtype)
        return self.factor * ops.exp(-s) * self.loss.call(y_true, y_pred) + 0.5 * s

    def get_config(self) -> dict[str, Any]:
        """The loss within, key and factor, beside Keras' own; the variable is the model's."""
        inner = keras.saving.serialize_keras_object(self.loss)
        own = {"loss": inner, "key": self.key, "factor": self.factor}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> UncertainLoss:
        """The loss that `get_config` described, tied to no model."""
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})


def bind(model: keras.Model, loss: Any) -> Any:
    """Ties every `UncertainLoss` in ``loss`` to the variable of ``model``.

    Args:
        model: a model with the layers of `log_variance`.
        loss: a loss, or a dict or list of them, also of other kinds.

    Returns:
        The same, with copies in place of those that are tied to another model.

    Raises:
        ValueError: if the model has no variable for one.
    """
    return keras.tree.map_structure(lambda x: _bound(model, x), loss)


def _bound(model: keras.Model, loss: Any) -> Any:
    inner = getattr(loss, "loss", None)
    if isinstance(inner, UncertainLoss):  # within the loss for missing labels
        bound = _bound(model, inner)
        if bound is not inner:
            loss = type(loss).from_config(loss.get_config())
            loss.loss = bound
        return loss
    if not isinstance(loss, UncertainLoss):
        return loss
    name = f"{parts.HEAD}{loss.key}_{_PART}"
    layer = next((x for x in model.layers if x.name == name), None)
    if layer is None:
        raise ValueError(
            f"the model {model.name!r} has no learned uncertainty for {loss.key!r}: it was not "
            'built with heads.Multi(..., weights="uncertainty")'
        )
    (variable,) = layer.weights
    if loss.variable is not None and loss.variable is not variable:
        loss = type(loss).from_config(loss.get_config())
    loss.variable = variable
    return loss
