"""Classification: one class an example, or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from finetune_keras import record
from finetune_keras._errors import HeadError
from finetune_keras.heads import names
from finetune_keras.heads.trunk import Trunk

__all__ = ["Classification"]


@dataclasses.dataclass(frozen=True)
class Classification(Trunk):
    """Pooling, hidden dense layers, and a dense layer that gives probabilities.

    | arguments                  | output    | labels                     | loss                 |
    |----------------------------|-----------|----------------------------|----------------------|
    | `num_classes` of 2 or more | softmax   | integers `(batch,)`        | cross-entropy        |
    | `num_classes=1`            | a sigmoid | 0 or 1, `(batch,)`         | binary cross-entropy |
    | `multi_label=True`         | sigmoids  | 0 or 1, `(batch, classes)` | binary cross-entropy |

    Attributes:
        num_classes: number of classes; 1 for a yes-or-no question. May be omitted where
            `class_names` is given.
        hidden: widths of dense layers before the last one.
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
        multi_label: whether an example may have several classes, or none.
        from_logits: whether the output is logits, with a loss and metrics that take them, instead
            of probabilities.
        class_names: one name a class, in the order of the labels; they travel in the file. Also
            an object that has them as ``.class_names``, such as the dataset of
            ``keras.utils.image_dataset_from_directory``.

    The output is float32, whatever the backbone computes in. The last layer starts near zero, so
    that the first predictions are near uniform and the first loss near ``log(num_classes)``, at
    any scale of the features.

    Raises:
        HeadError: for arguments out of range, and when called on features that do not fit.

    Examples:
        >>> head = Classification(3, hidden=[8])
        >>> head.labels
        'integers from 0 to 2, shape (batch,)'
        >>> head(keras.Input((7, 7, 16))).shape
        (None, 3)
        >>> Classification(class_names=["cat", "dog"]).num_classes
        2
    """

    num_classes: int | None = None
    hidden: Sequence[int] = ()
    _: dataclasses.KW_ONLY
    multi_label: bool = False
    from_logits: bool = False
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        count, listed = names.classes(self.num_classes, self.class_names)
        object.__setattr__(self, "num_classes", count)
        object.__setattr__(self, "class_names", listed)
        super().__post_init__()
        for flag in ("multi_label", "from_logits"):
            if not isinstance(getattr(self, flag), bool):
                raise HeadError(f"{flag} is True or False; given {getattr(self, flag)!r}")

    @property
    def _binary(self) -> bool:
        return self.multi_label or self.num_classes == 1

    def _last(self, x: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
        activation = None if self.from_logits else "sigmoid" if self._binary else "softmax"
        return self._output(self.num_classes, prefix, activation=activation)(x)

    @property
    def loss(self) -> keras.losses.Loss:
        """Cross-entropy that fits the output: sparse for softmax, binary for sigmoids."""
        if self._binary:
            return keras.losses.BinaryCrossentropy(from_logits=self.from_logits)
        return keras.losses.SparseCategoricalCrossentropy(from_logits=self.from_logits)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy, named ``accuracy``; with several labels, over all of them."""
        if self._binary:
            # A probability of one half is a logit of zero.
            threshold = 0.0 if self.from_logits else 0.5
            return [keras.metrics.BinaryAccuracy(name="accuracy", threshold=threshold)]
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    @property
    def outputs(self) -> tuple[record.Output, ...]:
        """One output."""
        if self.multi_label:
            kind = "multi_label"
            labels = f"0 or 1 for each class, shape (batch, {self.num_classes})"
        elif self._binary:
            kind, labels = "binary", "0 or 1, shape (batch,)"
        else:
            kind = "classification"
            labels = f"integers from 0 to {self.num_classes - 1}, shape (batch,)"
        return (
            record.Output(
                kind=kind,
                size=self.num_classes,
                from_logits=self.from_logits,
                labels=labels,
                class_names=tuple(self.class_names or ()),
            ),
        )
