"""What heads of one output share: from features to the vector that their last layer reads."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import keras

from finetune_keras._errors import HeadError
from finetune_keras.heads import augmentation, base, pooling
from finetune_keras.normalization import StochasticNormalization

__all__ = ["Trunk"]

_NORMALIZATIONS = {
    None: None,
    "batch": keras.layers.BatchNormalization,
    "layer": keras.layers.LayerNormalization,
    "stochastic": StochasticNormalization,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trunk(base.Head):
    """Pooling, augmentation of the features, normalisation, hidden dense layers and dropout, in
    this order.

    A subclass adds ``hidden``, the widths of dense layers before the last one, after the arguments
    that it takes by position: a dataclass puts a field of its parent before its own.

    Attributes:
        activation: their activation, a Keras name.
        dropout: rate, after each hidden layer; without hidden layers, before the last one.
        l1, l2: penalties on the kernels of the head's dense layers (not on their biases).
        pooling: how maps and sequences become one vector: ``"avg"``, ``"max"``, ``"avgmax"``,
            ``"gem"``, ``"attention"``, for sequences ``"first"`` or ``"mean"``; ``None`` to
            flatten them. See `finetune_keras.heads.pooling.pool`.
        normalization: ``"batch"``, ``"layer"`` or ``"stochastic"``, of the pooled features;
            ``None`` for none. The last is `finetune_keras.StochasticNormalization`, and a file
            with it needs finetune_keras to load.
        feature_noise: Gaussian noise on the pooled features while training, in standard
            deviations of the example's features; see `finetune_keras.heads.augmentation`.
        feature_brightness: greatest random shift of the pooled features while training, as a part
            of their range, below 1 (Bär et al. 2024, arXiv:2403.10519).
    """

    activation: str = "relu"
    dropout: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    pooling: str | None = "avg"
    normalization: str | None = None
    feature_noise: float = 0.0
    feature_brightness: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, list | tuple):
            hint = f": write [{self.hidden}]" if isinstance(self.hidden, int) else ""
            raise HeadError(f"hidden is a list of widths; given {self.hidden!r}{hint}")
        widths = tuple(base.check_count("hidden widths", width) for width in self.hidden)
        object.__setattr__(self, "hidden", widths)
        try:
            keras.activations.get(self.activation)
        except (ValueError, TypeError):
            raise HeadError(f"unknown activation={self.activation!r}") from None
        limits = {"dropout": 1.0, "feature_brightness": 1.0}
        for field in ("dropout", "l1", "l2", "feature_noise", "feature_brightness"):
            high = limits.get(field, math.inf)
            number = base.check_number(field, getattr(self, field), 0, high)
            object.__setattr__(self, field, number)
        pooling.check_pooling(self.pooling)
        known = isinstance(self.normalization, str | None) and self.normalization in _NORMALIZATIONS
        if not known:
            raise HeadError(
                f"normalization is None, 'batch', 'layer' or 'stochastic'; given "
                f"{self.normalization!r}"
            )

    def connect(
        self,
        features: keras.KerasTensor,
        *,
        mask: keras.KerasTensor | None = None,
        carrier: keras.layers.Layer | None = None,
        prefix: str = "",
    ) -> keras.KerasTensor:
        """Adds the layers; see `Head.connect`."""
        x = pooling.pool(features, self.pooling, mask=mask, prefix=prefix)
        if x.shape[-1] is None:
            raise HeadError(
                f"the features have no fixed width, shape {features.shape}: "
                "give the backbone an input_shape"
            )
        if self.feature_brightness:
            x = augmentation.brighten(x, self.feature_brightness, prefix=prefix)
        if self.feature_noise:
            x = augmentation.disturb(x, self.feature_noise, prefix=prefix)
        precision = base.policy(x)
        normalization = _NORMALIZATIONS[self.normalization]
        if normalization is not None:
            x = normalization(name=base.name(f"{prefix}normalization"), dtype=precision)(x)
        for i, width in enumerate(self.hidden, 1):
            x = self._dense(
                width, f"{prefix}hidden_{i}", activation=self.activation, dtype=precision
            )(x)
            x = self._drop(x, f"{prefix}dropout_{i}", precision)
        if not self.hidden:
            x = self._drop(x, f"{prefix}dropout", precision)
        if carrier is not None:
            x = carrier(x)
        return self._last(x, prefix)

    @abc.abstractmethod
    def _last(self, x: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
        """From the vector to the output."""

    def _drop(self, x: keras.KerasTensor, part: str, precision: str | None) -> keras.KerasTensor:
        if not self.dropout:
            return x
        return keras.layers.Dropout(self.dropout, name=base.name(part), dtype=precision)(x)

    def _dense(self, units: int, part: str, **kwargs: Any) -> keras.layers.Dense:
        """A dense layer with the head's penalty."""
        penalty = keras.regularizers.L1L2(self.l1, self.l2) if self.l1 or self.l2 else None
        return keras.layers.Dense(units, name=base.name(part), kernel_regularizer=penalty, **kwargs)

    def _output(self, units: int, prefix: str, **kwargs: Any) -> keras.layers.Dense:
        """The last dense layer: float32, and near zero at start.

        Keras' default kernel would make features of a large scale start at a saturated softmax,
        and from probabilities that are clipped (as on JAX and PyTorch) no gradient flows. With
        this one the logits of features of unit scale deviate by 0.01.
        """
        near_zero = keras.initializers.VarianceScaling(
            1e-4, mode="fan_in", distribution="truncated_normal"
        )
        return self._dense(
            units, f"{prefix}output", kernel_initializer=near_zero, dtype="float32", **kwargs
        )
