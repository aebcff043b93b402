"""Regression: one number an example, or several, in units of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from finetune_keras import record
from finetune_keras._errors import HeadError, nearest
from finetune_keras.heads import base
from finetune_keras.heads.trunk import Trunk

__all__ = ["Huber", "Regression"]

_LOSSES = ("mse", "mae", "huber")


@keras.saving.register_keras_serializable("finetune_keras")
class Huber(keras.losses.Huber):
    """Keras' Huber loss (Huber 1964), with a file that keeps ``delta``: Keras' own comes back
    with a delta of 1.

    Args:
        delta: the error up to which the loss is quadratic, in units of the targets.
        **kwargs: as in ``keras.losses.Huber``.

    Examples:
        >>> Huber.from_config(Huber(delta=12.5).get_config()).delta
        12.5
    """

    def __init__(self, delta: float = 1.0, **kwargs: Any):
        super().__init__(delta=delta, **kwargs)
        self.delta = delta

    def get_config(self) -> dict[str, Any]:
        """Keras' config and the delta."""
        return {**super().get_config(), "delta": self.delta}


@dataclasses.dataclass(frozen=True)
class Regression(Trunk):
    """Pooling, hidden dense layers, and a dense layer that gives numbers.

    Targets are given as they are: ages in years, prices in euros. Tell the head their `mean` and
    `std` (standard deviation) over the training data and the last layer learns at ordinary rates:
    the first predictions are near the mean, and a step changes them by fractions of the deviation.
    `build` then weights the loss by ``1/std**2`` (``"mae"`` by ``1/std``), as if targets were
    counted in standard deviations: it starts near 1, and sits well beside penalties, clipping and
    other heads. Predictions and metrics stay in units of the targets.

    Attributes:
        num_outputs: how many numbers for each example.
        hidden, activation, dropout, l1, l2, pooling, normalization: as in `Classification`.
        feature_noise, feature_brightness: as in `Classification`.
        loss: ``"mse"``, ``"mae"``, ``"huber"`` (quadratic up to one standard deviation; with
            `std` it is this package's, which Keras alone loads for predictions only), or a
            ``keras.losses.Loss``, which is taken as it is, in units of the targets.
        mean: of the targets, a number or one for each output; 0 by default.
        std: of the targets, a number or one for each output; 1 by default. Where they differ, the
            loss is weighted by the mean of their squares: outputs of a large deviation count for
            more. For outputs of different kinds use `Multi`.

    Labels are numbers of shape ``(batch,)`` for one output, else ``(batch, num_outputs)``; the
    output is float32 of shape ``(batch, num_outputs)``.

    Raises:
        HeadError: for arguments out of range, and when called on features that do not fit.

    Examples:
        >>> head = Regression(mean=38.2, std=12.5)
        >>> head.labels, round(head.loss_weights, 4)
        ('numbers, shape (batch,)', 0.0064)
        >>> head(keras.Input((16,))).shape
        (None, 1)
    """

    num_outputs: int = 1
    hidden: Sequence[int] = ()
    _: dataclasses.KW_ONLY
    loss: str | keras.losses.Loss = "mse"
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        count = base.check_count("num_outputs", self.num_outputs)
        object.__setattr__(self, "num_outputs", count)
        super().__post_init__()
        if isinstance(self.loss, str) and self.loss not in _LOSSES:
            raise HeadError(
                f"unknown loss={self.loss!r}; {nearest(self.loss, _LOSSES)} "
                "(or a keras.losses.Loss)"
            )
        if not isinstance(self.loss, str | keras.losses.Loss):
            raise HeadError(
                f"loss is 'mse', 'mae', 'huber' or a keras.losses.Loss; given {self.loss!r}"
            )
        for what in ("mean", "std"):
            object.__setattr__(self, what, self._numbers(what))

    def _numbers(self, what: str) -> float | tuple[float, ...] | None:
        given = getattr(self, what)
        if given is None:
            return None
        try:
            numbers = np.asarray(given)
        except (TypeError, ValueError):
            numbers = np.array(None)
        numbers = numbers.astype("float64") if numbers.dtype.kind in "iuf" else np.array(np.nan)
        several = numbers.ndim == 1 and numbers.shape[0] == self.num_outputs
        if not (numbers.ndim == 0 or several) or not np.all(np.isfinite(numbers)):
            raise HeadError(
                f"{what} is a number, or one for each of num_outputs={self.num_outputs}; "
                f"given {given!r}"
            )
        if what == "std" and not np.all(numbers > 0):
            raise HeadError(f"std is above 0; given {given!r}: drop targets that never change")
        return float(numbers) if numbers.ndim == 0 else tuple(map(float, numbers))

    @property
    def _spread(self) -> float:
        """One standard deviation for all outputs."""
        return 1.0 if self.std is None else float(np.sqrt(np.mean(np.square(self.std))))

    def _last(self, x: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
        x = self._output(self.num_outputs, prefix)(x)
        if self.mean is None and self.std is None:
            return x
        return keras.layers.Rescaling(
            scale=_plain(1.0 if self.std is None else self.std),
            offset=_plain(0.0 if self.mean is None else self.mean),
            name=base.name(f"{prefix}units"),
            dtype="float32",
        )(x)

    def compile_arguments(self) -> dict[str, Any]:
        """See `Head.compile_arguments`; of ``"huber"`` the loss bends at one deviation."""
        made = {
            "mse": keras.losses.MeanSquaredError,
            "mae": keras.losses.MeanAbsoluteError,
            "huber": self._huber,
        }
        loss = made[self.loss]() if isinstance(self.loss, str) else self.loss
        return {**super().compile_arguments(), "loss": loss}

    def _huber(self) -> keras.losses.Huber:
        # Keras' own where it will do, so that Keras alone loads the file compiled.
        return keras.losses.Huber() if self.std is None else Huber(delta=self._spread)

    @property
    def loss_weights(self) -> float | None:
        """What makes the loss that of targets in standard deviations."""
        if self.std is None or not isinstance(self.loss, str):
            return None
        return self._spread ** (-1 if self.loss == "mae" else -2)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Mean absolute error (``mae``) and root of the mean square (``rmse``), in units of the
        targets.
        """
        return [
            keras.metrics.MeanAbsoluteError(name="mae"),
            keras.metrics.RootMeanSquaredError(name="rmse"),
        ]

    @property
    def outputs(self) -> tuple[record.Output, ...]:
        """One output."""
        shape = "(batch,)" if self.num_outputs == 1 else f"(batch, {self.num_outputs})"
        return (
            record.Output(
                kind="regression", size=self.num_outputs, labels=f"numbers, shape {shape}"
            ),
        )


def _plain(numbers: float | tuple[float, ...]) -> float | list[float]:
    return list(numbers) if isinstance(numbers, tuple) else numbers
