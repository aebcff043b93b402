"""Augmentation of features: noise and brightness, while training only.

What comes after the frozen part of a model costs little, so features can be varied afresh at each
step where their images are not. Made of Keras' own layers and operations in small nested models,
as poolings are: Keras alone loads a file with them.

All randomness is Keras' ``GaussianNoise`` on zeros, which stays zero at inference: then the
features come out as they went in, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from finetune_keras.heads import base

__all__ = ["brighten", "disturb"]


def disturb(features: keras.KerasTensor, amount: float, *, prefix: str = "") -> keras.KerasTensor:
    """Adds Gaussian noise: ``x + amount * std(x) * z``, with ``z`` standard normal for each value.

    The standard deviation is over the values of one example, so that ``amount`` means the same on
    the features of any backbone. (``GaussianNoise`` alone takes an absolute one.)

    Args:
        features: shape ``(batch, channels)``, floating point.
        amount: standard deviation of the noise relative to that of the example's features.
        prefix: of the name of the layer.

    Returns:
        A tensor of the same shape and dtype.

    Examples:
        >>> disturb(keras.Input((16,)), 0.1).shape
        (None, 16)
    """

    def rule(x: Any) -> Any:
        noise = _normal(ops.zeros_like(x))
        # Of a vector of equal values the gradient of the deviation would be NaN.
        return x + amount * ops.stop_gradient(ops.std(x, axis=-1, keepdims=True)) * noise

    return _nested(features, rule, f"{prefix}feature_noise")


def brighten(features: keras.KerasTensor, amount: float, *, prefix: str = "") -> keras.KerasTensor:
    """Shifts all values of an example by a part of their range, and clips them to that range.

    The brightness of Bär et al. 2024 (arXiv:2403.10519): features are mapped to 0 to 1 by their
    least and greatest value, a random ``d`` from ``-amount`` to ``amount`` is added, the result is
    clipped to 0 to 1 and mapped back. In one line, without the division:

        clip(x + d * (max(x) - min(x)), min(x), max(x))

    with ``d`` uniform and one for each example.

    Args:
        features: shape ``(batch, channels)``, floating point.
        amount: greatest shift, as a part of the range.
        prefix: of the name of the layer.

    Returns:
        A tensor of the same shape and dtype.

    Examples:
        >>> brighten(keras.Input((16,)), 0.3).shape
        (None, 16)
    """

    def rule(x: Any) -> Any:
        # A standard normal z is uniform from -1 to 1 as erf(z / sqrt(2)), and 0 stays 0.
        shift = amount * ops.erf(_normal(ops.zeros_like(x[:, :1])) / math.sqrt(2.0))
        low = ops.stop_gradient(ops.min(x, axis=-1, keepdims=True))
        high = ops.stop_gradient(ops.max(x, axis=-1, keepdims=True))
        return ops.minimum(ops.maximum(x + shift * (high - low), low), high)

    return _nested(features, rule, f"{prefix}feature_brightness")


def _normal(zeros: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.GaussianNoise(1.0, dtype="float32", name="random")(zeros)


def _nested(features: keras.KerasTensor, rule: Callable, part: str) -> keras.KerasTensor:
    """A rule in float32 as one layer that bears the head's name."""
    given = keras.Input(batch_shape=features.shape, dtype=features.dtype)
    x = ops.cast(rule(ops.cast(given, "float32")), features.dtype)
    return keras.Model(given, x, name=base.name(part))(features)
