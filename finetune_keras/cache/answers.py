"""What a probe reads, and what its answers are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from finetune_keras.cache.probe import Probe

__all__ = ["features", "labelled", "loss", "losses"]


def features(probe: Probe, x: Any) -> np.ndarray:
    """Of shape ``(examples, features)``, finite, in float32 or float64."""
    x = np.asarray(keras.ops.convert_to_numpy(x))
    width = probe.layer.kernel.shape[0]
    if x.ndim < 2 or x.size != len(x) * width:
        raise ValueError(
            f"features of {probe.layer.name!r} have shape (examples, {width}); given {x.shape}"
        )
    x = x.reshape(len(x), width)
    x = x if x.dtype in ("float32", "float64") else x.astype("float32")
    if not np.isfinite(x).all():
        raise ValueError(
            "the features hold NaN or infinity: ftk.check(model, data) says where from"
        )
    return x


def labelled(
    probe: Probe, x: np.ndarray, y: Any, sample_weight: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """`Probe.targets`, as many as there are features."""
    target, weight = probe.targets(y, sample_weight)
    if len(target) != len(x):
        raise ValueError(f"{len(x)} rows of features and {len(target)} of labels: give as many")
    if not weight.any():
        raise ValueError("no example has a label and a weight above 0: nothing to solve for")
    return target, weight


def loss(
    probe: Probe, logits: np.ndarray, y: np.ndarray, w: np.ndarray, train: np.ndarray
) -> tuple[float, float]:
    """The weighted sum of losses, and of weights."""
    from scipy.special import log_softmax

    logits = logits.astype("float64")
    if probe.task == "regression":
        values = np.mean(np.square((logits - y) * np.asarray(probe.scale)), axis=1)
    elif probe.task == "classification":
        w = w * np.isin(y, train)
        values = -np.take_along_axis(log_softmax(logits, axis=1), y[:, None], axis=1)[:, 0]
    else:
        values = np.logaddexp(0.0, np.where(y > 0, -logits, logits))
    return float((w * values).sum()), float(w.sum())


def losses(
    probe: Probe, x: Any, y: Any, factors: Sequence[float], *, sample_weight: Any = None
) -> list[float]:
    """The mean loss of the layer as it is, had its logits been multiplied by a factor.

    Args:
        probe: from `solvable`.
        x: features, as in `solve`.
        y: labels.
        sample_weight: one an example.
        factors: each has a loss; of a regression they are of what it gives before the rescaling.

    Returns:
        A number for each factor.

    Examples:
        >>> from finetune_keras.cache.probe import solvable
        >>> suffix = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> suffix.layers[0].set_weights([np.array([[-5.0, 5.0]]), np.zeros(2)])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> x, y = np.array([[-1.0], [1.0]]), np.array([0, 1])
        >>> [round(v, 3) for v in losses(solvable(suffix, loss), x, y, [0.0, 0.1, 1.0])]
        [0.693, 0.313, 0.0]
    """
    x = features(probe, x)
    target, weight = labelled(probe, x, y, sample_weight)
    kernel, bias = probe.layer.kernel, probe.layer.bias
    logits = x @ keras.ops.convert_to_numpy(kernel).astype(x.dtype)
    logits = logits if bias is None else logits + keras.ops.convert_to_numpy(bias)
    found = []
    for factor in factors:
        total, many = loss(probe, factor * logits, target, weight, target)
        found.append(total / many)
    return found
