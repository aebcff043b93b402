"""Ordinal: classes with an order, such as grades and stages."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from finetune_keras import record
from finetune_keras.heads import base, names
from finetune_keras.heads.trunk import Trunk

__all__ = ["Ordinal"]


@dataclasses.dataclass(frozen=True)
class Ordinal(Trunk):
    """Probabilities of ordered classes from one score: proportional odds.

    The cumulative link model of McCullagh 1980 (J. R. Stat. Soc. B 42, 109): with a score `s` and
    thresholds `t_1 < ... < t_(n-1)`,

        P(label <= k) = sigmoid(t_k - s)

    so that a large score means a high class, and classes that are neighbours are confused rather
    than those far apart. The thresholds learn with the rest: the first one, and the gaps to the
    next as `softplus`, which keeps their order.

    Attributes:
        num_classes: number of classes, 2 or more. May be omitted where `class_names` is given.
        hidden, activation, dropout, l1, l2, pooling, normalization: as in `Classification`.
        feature_noise, feature_brightness: as in `Classification`.
        class_names: one name a class, from the lowest to the highest, or an object that has them
            as ``.class_names``; they travel in the file.

    Labels are integers of shape ``(batch,)``, 0 for the lowest class; the output is float32
    probabilities of shape ``(batch, num_classes)``, near uniform at first.

    Raises:
        HeadError: for arguments out of range, and when called on features that do not fit.

    Examples:
        >>> head = Ordinal(class_names=["mild", "moderate", "severe"])
        >>> head.labels
        'integers from 0 (lowest) to 2, shape (batch,)'
        >>> head(keras.Input((16,))).shape
        (None, 3)
    """

    num_classes: int | None = None
    hidden: Sequence[int] = ()
    _: dataclasses.KW_ONLY
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        count, listed = names.classes(self.num_classes, self.class_names, low=2)
        of_data = hasattr(self.class_names, "class_names") and list(listed) == sorted(listed)
        if of_data and not all(n.isdecimal() for n in listed):
            warnings.warn(
                f"the ranks are in alphabetical order, from {listed[0]!r} (lowest) to "
                f"{listed[-1]!r}, as the data set lists its classes: if they are not, make the "
                "data set with class_names=[...] from the lowest to the highest",
                stacklevel=3,
            )
        object.__setattr__(self, "num_classes", count)
        object.__setattr__(self, "class_names", listed)
        super().__post_init__()

    def _last(self, x: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
        score = self._output(1, prefix, use_bias=False)(x)
        given = keras.Input(batch_shape=score.shape, dtype="float32")
        probabilities = _probabilities(given, self.num_classes)
        return keras.Model(given, probabilities, name=base.name(f"{prefix}ordinal"))(score)

    @property
    def loss(self) -> keras.losses.Loss:
        """Cross-entropy, the negative log-likelihood of the model."""
        return keras.losses.SparseCategoricalCrossentropy()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy, named ``accuracy``."""
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    @property
    def outputs(self) -> tuple[record.Output, ...]:
        """One output."""
        return (
            record.Output(
                kind="ordinal",
                size=self.num_classes,
                labels=f"integers from 0 (lowest) to {self.num_classes - 1}, shape (batch,)",
                class_names=tuple(self.class_names or ()),
            ),
        )


def _probabilities(score: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """The class probabilities, by their logarithms: neither negative nor zero anywhere.

    With the gap `t_k - t_(k-1) = softplus(g)`, the difference of two sigmoids is

        sigmoid(t_k - s) - sigmoid(t_(k-1) - s) = sigmoid(t_k - s) sigmoid(s - t_(k-1)) sigmoid(g)

    since `1 - exp(-softplus(g)) = sigmoid(g)`: a product, with nothing that cancels.
    """
    inner = np.arange(1, classes) / classes
    uniform = np.log(inner / (1 - inner))
    start = np.concatenate([uniform[:1], np.log(np.expm1(np.diff(uniform)))])
    # A kernel on a constant 1 is a free parameter in a plain layer; it is the change from uniform.
    free = keras.layers.Dense(
        classes - 1,
        use_bias=False,
        kernel_initializer="zeros",
        dtype="float32",
        name="thresholds",
    )(ops.ones_like(score))
    free = keras.layers.Rescaling(1.0, start.tolist(), dtype="float32", name="start")(free)
    first, gaps = free[:, :1], free[:, 1:]
    thresholds = ops.cumsum(ops.concatenate([first, ops.softplus(gaps)], axis=-1), axis=-1)
    below = ops.log_sigmoid(thresholds - score)
    above = ops.log_sigmoid(score - thresholds)
    logs = ops.concatenate(
        [below[:, :1], below[:, 1:] + above[:, :-1] + ops.log_sigmoid(gaps), above[:, -1:]],
        axis=-1,
    )
    # They sum to 1 already; a softmax tells Keras, where it can, to compute the loss from logits.
    return keras.layers.Softmax(dtype="float32", name="probabilities")(logs)
