"""Classification: one class an example, or several."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence

import keras

from finetune_keras import record
from finetune_keras._errors import HeadError
from finetune_keras.heads import base

__all__ = ["Classification"]


@dataclasses.dataclass(frozen=True)
class Classification(base.Head):
    """Pooling, hidden dense layers, and a dense layer that gives probabilities.

    | arguments                  | output    | labels                     | loss                 |
    |----------------------------|-----------|----------------------------|----------------------|
    | `num_classes` of 2 or more | softmax   | integers `(batch,)`        | cross-entropy        |
    | `num_classes=1`            | a sigmoid | 0 or 1, `(batch,)`         | binary cross-entropy |
    | `multi_label=True`         | sigmoids  | 0 or 1, `(batch, classes)` | binary cross-entropy |

    Attributes:
        num_classes: number of classes; 1 for a yes-or-no question.
        hidden: widths of dense layers before the last one.
        activation: their activation, a Keras name.
        dropout: rate, after each hidden layer; without hidden layers, before the last one.
        l1, l2: penalties on the kernels of the head's dense layers (not on their biases).
        pooling: ``"avg"`` or ``"max"`` for maps and sequences, ``None`` to flatten them.
        multi_label: whether an example may have several classes, or none.
        class_names: one name a class, in the order of the labels; they travel in the file.

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
    """

    num_classes: int
    hidden: Sequence[int] = ()
    _: dataclasses.KW_ONLY
    activation: str = "relu"
    dropout: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    pooling: str | None = "avg"
    multi_label: bool = False
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _check_count("num_classes", self.num_classes)
        if not isinstance(self.hidden, list | tuple):
            hint = f": write [{self.hidden}]" if isinstance(self.hidden, int) else ""
            raise HeadError(f"hidden is a list of widths; given {self.hidden!r}{hint}")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for width in self.hidden:
            _check_count("hidden widths", width)
        if not isinstance(self.multi_label, bool):
            raise HeadError(f"multi_label is True or False; given {self.multi_label!r}")
        try:
            keras.activations.get(self.activation)
        except (ValueError, TypeError):
            raise HeadError(f"unknown activation={self.activation!r}") from None
        base.check_number("dropout", self.dropout, 0, 1)
        base.check_number("l1", self.l1, 0)
        base.check_number("l2", self.l2, 0)
        base.check_pooling(self.pooling)
        if self.class_names is not None:
            self._check_names()

    def _check_names(self) -> None:
        if not isinstance(self.class_names, list | tuple) or not all(
            isinstance(n, str) for n in self.class_names
        ):
            raise HeadError(
                "class_names is a list of names, in the order of the labels; "
                f"given {self.class_names!r}"
            )
        names = tuple(map(str, self.class_names))
        object.__setattr__(self, "class_names", names)
        # A yes-or-no head may name both answers, or the one that it asks for.
        wanted = (1, 2) if self.num_classes == 1 else (self.num_classes,)
        if len(names) not in wanted:
            raise HeadError(
                f"{len(names)} class_names for num_classes={self.num_classes}: "
                f"give {' or '.join(map(str, wanted))}"
            )
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise HeadError(f"class_names has {twice[0]!r} twice")

    @property
    def _binary(self) -> bool:
        return self.multi_label or self.num_classes == 1

    def __call__(self, features: keras.KerasTensor, *, origin: str = "") -> keras.KerasTensor:
        base.check_features(features, self)
        penalty = keras.regularizers.L1L2(self.l1, self.l2) if self.l1 or self.l2 else None
        x = base.pool(features, self.pooling)
        if x.shape[-1] is None:
            raise HeadError(
                f"the features have no fixed width, shape {features.shape}: "
                "give the backbone an input_shape"
            )
        for i, width in enumerate(self.hidden, 1):
            x = base.dense(
                width, f"hidden_{i}", activation=self.activation, kernel_regularizer=penalty
            )(x)
            x = self._drop(x, f"dropout_{i}")
        if not self.hidden:
            x = self._drop(x, "dropout")
        x = record.layer(self.record(origin))(x)
        return base.dense(
            self.num_classes,
            "output",
            activation="sigmoid" if self._binary else "softmax",
            kernel_initializer=base.near_zero(),
            kernel_regularizer=penalty,
            dtype="float32",
        )(x)

    def _drop(self, x: keras.KerasTensor, part: str) -> keras.KerasTensor:
        if not self.dropout:
            return x
        return keras.layers.Dropout(self.dropout, name=base.name(part))(x)

    @property
    def loss(self) -> keras.losses.Loss:
        """Cross-entropy that fits the output: sparse for softmax, binary for sigmoids."""
        if self._binary:
            return keras.losses.BinaryCrossentropy()
        return keras.losses.SparseCategoricalCrossentropy()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy, named ``accuracy``; with several labels, over all of them."""
        if self._binary:
            return [keras.metrics.BinaryAccuracy(name="accuracy")]
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    @property
    def outputs(self) -> tuple[record.Output, ...]:
        """One output."""
        kind = "multi_label" if self.multi_label else "binary" if self._binary else "classification"
        return (
            record.Output(
                kind=kind,
                size=self.num_classes,
                labels=self.labels,
                class_names=tuple(self.class_names or ()),
            ),
        )

    @property
    def labels(self) -> str:
        """What labels it takes, in words."""
        if self.multi_label:
            return f"0 or 1 for each class, shape (batch, {self.num_classes})"
        if self.num_classes == 1:
            return "0 or 1, shape (batch,)"
        return f"integers from 0 to {self.num_classes - 1}, shape (batch,)"


def _check_count(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise HeadError(f"{what} must be an integer of 1 or more; given {value!r}")
