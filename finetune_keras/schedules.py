"""Schedules of the learning rate for fine-tuning: up for a while, then down.

They are ``keras.optimizers.schedules.LearningRateSchedule``s and go wherever Keras takes one. Each
is drawn by ``.plot()``. Steps are training batches, counted from 0 by the optimizer; the last rate
holds after the end. All is computed in float32 whatever ``keras.config.floatx()`` says: Keras' own
schedules count steps in ``floatx``, and float16 ends at 65,504.

Examples:
    >>> schedule = WarmupCosine(1e-3, epochs=10, steps_per_epoch=50, warmup_epochs=1)
    >>> schedule
    WarmupCosine(0.001, steps=500, warmup_steps=50)
    >>> [round(float(schedule(step)), 6) for step in (0, 25, 50, 275, 500)]
    [0.0, 0.0005, 0.001, 0.0005, 0.0]
"""

from __future__ import annotations

import abc
import inspect
import math
import numbers
import os
from typing import Any

import keras
import numpy as np
from keras import ops

from finetune_keras import _plots
from finetune_keras._errors import shown

__all__ = ["OneCycle", "SlantedTriangular", "WarmupCosine"]

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule
_MOST = 2**31 - 1  # optimizers count steps in int32 on JAX and PyTorch


class _UpAndDown(LearningRateSchedule, abc.ABC):
    """A rise from step 0 to ``peak`` and a fall from there to ``last``."""

    peak: float
    last: float

    def __init__(
        self,
        learning_rate: float,
        steps: int | None,
        epochs: float | None,
        steps_per_epoch: int | None,
        name: str | None,
    ):
        self.learning_rate = _number("learning_rate", learning_rate, above=0)
        if (steps is None) == (epochs is None):
            raise ValueError(
                "the length is steps=, or epochs= with steps_per_epoch=; "
                f"given {'neither' if steps is None else 'both'}"
            )
        self.steps = _steps("steps", steps, "epochs", epochs, steps_per_epoch, low=1)
        self.name = type(self).__name__ if name is None else name

    @abc.abstractmethod
    def _rising(self, done: Any) -> Any:
        """The rate at a fraction of the rise."""

    @abc.abstractmethod
    def _falling(self, done: Any) -> Any:
        """The rate at a fraction of the fall."""

    def get_config(self) -> dict[str, Any]:
        """The arguments, lengths in steps."""
        arguments = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in arguments if "epoch" not in name}

    def __call__(self, step: Any) -> Any:
        """The rate at a step, or at an array of steps; a float32 tensor."""
        if not ops.is_tensor(step) and not isinstance(step, keras.Variable):
            step = np.minimum(step, self.steps)  # any integer of Python's fits then
        step = ops.minimum(ops.maximum(ops.convert_to_tensor(step), 0), self.steps)
        since = _since(step, self.peak)
        rise = _since(step, 0) / max(self.peak, 1e-6)
        fall = since / max(self.last - self.peak, 1e-6)
        return ops.where(
            since < 0,
            self._rising(ops.clip(rise, 0.0, 1.0)),
            self._falling(ops.clip(fall, 0.0, 1.0)),
        )

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """Draws the rate by step.

        Args:
            path: of a PNG file to write; without it the figure is returned.

        Returns:
            The path of the file, or a ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        made = _plots.figure()
        steps = np.unique(np.linspace(0, self.steps, 1001).astype("int64"))
        axes = made.add_subplot()
        axes.plot(steps, ops.convert_to_numpy(self(steps)))
        axes.set(xlabel="step", ylabel="learning rate", title=self.name)
        return _plots.given(made, path)

    def __repr__(self) -> str:
        config = self.get_config()
        rate, name = config.pop("learning_rate"), config["name"]
        if name == type(self).__name__:
            del config["name"]
        parameters = inspect.signature(type(self)).parameters
        listed = "".join(
            f", {key}={value:g}" if isinstance(value, float) else f", {key}={value!r}"
            for key, value in config.items()
            if value != parameters[key].default
        )
        return f"{type(self).__name__}({rate:g}{listed})"


@keras.saving.register_keras_serializable(package="finetune_keras")
class WarmupCosine(_UpAndDown):
    """Rises in a line to ``learning_rate``, and falls along half a cosine.

    The rise is that of Goyal et al. 2017 (arXiv:1706.02677, section 2.2), the fall that of
    Loshchilov and Hutter 2016 (SGDR, arXiv:1608.03983, equation 5) without restarts. With ``t``
    the step, ``W`` the warm-up and ``T`` all steps,

        t < W:   initial + (rate - initial) t / W
        t >= W:  rate [alpha + (1 - alpha) (1 + cos(pi (t - W) / (T - W))) / 2]

    which is ``keras.optimizers.schedules.CosineDecay`` with ``decay_steps=T - W``.

    Args:
        learning_rate: the highest rate.
        steps: of the whole, warm-up included.
        epochs: the same in epochs of ``steps_per_epoch``; fractions too.
        steps_per_epoch: batches in an epoch, such as ``len(data)``.
        warmup_steps: of the rise, 0 for none; by default a tenth of ``steps``.
        warmup_epochs: the same in epochs.
        initial_learning_rate: the rate at step 0, if there is a warm-up.
        alpha: the lowest rate at the end, as a fraction of ``learning_rate``.
        name: of the schedule.

    Raises:
        ValueError: if a number is out of its range, or the length is missing or given twice.

    Examples:
        >>> [round(float(WarmupCosine(0.1, 8, warmup_steps=4)(t)), 3) for t in range(9)]
        [0.0, 0.025, 0.05, 0.075, 0.1, 0.085, 0.05, 0.015, 0.0]
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int | None = None,
        *,
        epochs: float | None = None,
        steps_per_epoch: int | None = None,
        warmup_steps: int | None = None,
        warmup_epochs: float | None = None,
        initial_learning_rate: float = 0.0,
        alpha: float = 0.0,
        name: str | None = None,
    ):
        super().__init__(learning_rate, steps, epochs, steps_per_epoch, name)
        if warmup_steps is not None and warmup_epochs is not None:
            raise ValueError("the warm-up is warmup_steps= or warmup_epochs=; given both")
        if warmup_steps is None and warmup_epochs is None:
            warmup_steps = self.steps // 10
        self.warmup_steps = _steps(
            "warmup_steps", warmup_steps, "warmup_epochs", warmup_epochs, steps_per_epoch, low=0
        )
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"the warm-up of {self.warmup_steps} steps leaves nothing of {self.steps}: "
                "steps counts the warm-up too"
            )
        self.initial_learning_rate = _number("initial_learning_rate", initial_learning_rate)
        self.alpha = _number("alpha", alpha, most=1)
        self.peak, self.last = self.warmup_steps, self.steps

    def _rising(self, done: Any) -> Any:
        return self.initial_learning_rate + (self.learning_rate - self.initial_learning_rate) * done

    def _falling(self, done: Any) -> Any:
        return _cosine(self.alpha * self.learning_rate, self.learning_rate, 1.0 - done)


@keras.saving.register_keras_serializable(package="finetune_keras")
class OneCycle(_UpAndDown):
    """Half a cosine up to ``learning_rate``, and half a cosine down to nearly nothing.

    The cycle is from Smith and Topin 2018 (Super-Convergence, arXiv:1708.07120), the cosines from
    fastai. With ``T`` steps, ``first = rate / div_factor`` and ``end = first / final_div_factor``,
    the rate is ``first`` at step 0, highest at step ``pct_start T - 1``, ``end`` at the last step
    ``T - 1`` and after, and between two of them

        from + (to - from) (1 - cos(pi f)) / 2

    where ``f`` runs from 0 to 1. This is ``torch.optim.lr_scheduler.OneCycleLR`` with its defaults;
    fastai's ``fit_one_cycle`` has ``pct_start=0.25`` and an end of ``rate / 1e5``. Both also move
    momentum down and up again, which a schedule of the rate cannot.

    Args:
        learning_rate: the highest rate, such as `finetune_keras.lr_find` suggests.
        steps: of the cycle.
        epochs: the same in epochs of ``steps_per_epoch``; fractions too.
        steps_per_epoch: batches in an epoch, such as ``len(data)``.
        pct_start: the share of the steps in which the rate rises.
        div_factor: the highest rate over the first one.
        final_div_factor: the first rate over the last one.
        name: of the schedule.

    Raises:
        ValueError: if a number is out of its range, or the length is missing or given twice.

    Examples:
        >>> schedule = OneCycle(0.1, 11, pct_start=0.5)
        >>> [round(float(schedule(t)), 3) for t in (0, 2, 4, 5, 7, 10, 99)]
        [0.004, 0.044, 0.097, 0.098, 0.057, 0.0, 0.0]
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int | None = None,
        *,
        epochs: float | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        name: str | None = None,
    ):
        super().__init__(learning_rate, steps, epochs, steps_per_epoch, name)
        self.pct_start = _number("pct_start", pct_start, most=1)
        self.div_factor = _number("div_factor", div_factor, low=1)
        self.final_div_factor = _number("final_div_factor", final_div_factor, low=1)
        self.peak, self.last = max(self.pct_start * self.steps - 1, 0.0), self.steps - 1

    def _rising(self, done: Any) -> Any:
        return _cosine(self.learning_rate / self.div_factor, self.learning_rate, done)

    def _falling(self, done: Any) -> Any:
        first = self.learning_rate / self.div_factor
        return _cosine(first / self.final_div_factor, self.learning_rate, 1.0 - done)


@keras.saving.register_keras_serializable(package="finetune_keras")
class SlantedTriangular(_UpAndDown):
    """Rises in a short line, and falls in a long one.

    From Howard and Ruder 2018 (ULMFiT, arXiv:1801.06146, equation 3). With ``T`` steps and
    ``cut = floor(T cut_frac)``,

        p = t / cut                      if t < cut
        p = 1 - (t - cut) / (T - cut)    otherwise
        rate(t) = rate (1 + p (ratio - 1)) / ratio

    The paper divides by ``cut (1 / cut_frac - 1)``, which is ``T - cut`` where ``T cut_frac`` is
    whole; where it is not, the paper's rate would fall below ``rate / ratio`` before the end.

    Args:
        learning_rate: the highest rate.
        steps: of the whole.
        epochs: the same in epochs of ``steps_per_epoch``; fractions too.
        steps_per_epoch: batches in an epoch, such as ``len(data)``.
        cut_frac: the share of the steps in which the rate rises.
        ratio: the highest rate over the lowest.
        name: of the schedule.

    Raises:
        ValueError: if a number is out of its range, or the length is missing or given twice.

    Examples:
        >>> schedule = SlantedTriangular(0.32, 20)
        >>> [round(float(schedule(t)), 3) for t in (0, 1, 2, 11, 20)]
        [0.01, 0.165, 0.32, 0.165, 0.01]
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int | None = None,
        *,
        epochs: float | None = None,
        steps_per_epoch: int | None = None,
        cut_frac: float = 0.1,
        ratio: float = 32.0,
        name: str | None = None,
    ):
        super().__init__(learning_rate, steps, epochs, steps_per_epoch, name)
        self.cut_frac = _number("cut_frac", cut_frac, most=1)
        self.ratio = _number("ratio", ratio, low=1)
        # Rounding must not lose a step: 100 * 0.29 is a little less than 29.
        self.peak, self.last = math.floor(self.steps * self.cut_frac + 1e-9), self.steps

    def _rising(self, done: Any) -> Any:
        return self.learning_rate * (1.0 + done * (self.ratio - 1.0)) / self.ratio

    def _falling(self, done: Any) -> Any:
        return self._rising(1.0 - done)


def _cosine(low: float, high: float, share: Any) -> Any:
    """From ``low`` to ``high`` along half a cosine, at the ends exactly these.

    ``(1 - cos(pi f)) / 2`` is ``sin(pi f / 2) ** 2``, of which float32 has all digits near 0 too.
    """
    return low + (high - low) * ops.square(ops.sin(math.pi / 2.0 * share))


def _since(step: Any, start: float) -> Any:
    """``step - start`` in float32. Integers are subtracted as such, since from 2**24 on float32 has
    no odd ones.
    """
    whole = math.floor(start)
    if keras.backend.is_int_dtype(step.dtype):
        return ops.cast(ops.cast(step, "int32") - whole, "float32") - (start - whole)
    return ops.cast(step, "float32") - start


def _number(name: str, value: Any, *, above: float | None = None, low: float = 0, most=math.inf):
    """A finite number in its range, as a float."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = number and math.isfinite(value)
    if not number or not low <= value <= most or (above is not None and value <= above):
        wanted = f"above {above}" if above is not None else f"of {low} or more"
        wanted = f"from {low} to {most}" if most < math.inf else wanted
        raise ValueError(f"{name} is a number {wanted}; given {shown(value)}")
    return float(value)


def _steps(
    name: str, steps: Any, in_epochs: str, epochs: Any, steps_per_epoch: Any, *, low: int
) -> int:
    """A number of steps, given as such or in epochs."""
    if steps_per_epoch is not None:
        steps_per_epoch = _whole("steps_per_epoch", steps_per_epoch, 1)
    if epochs is not None:
        epochs = _number(in_epochs, epochs)
        if steps_per_epoch is None:
            raise ValueError(
                f"{in_epochs}= needs steps_per_epoch=, the batches in an epoch, such as len(data)"
            )
        name, steps = f"{in_epochs} * steps_per_epoch", round(epochs * steps_per_epoch)
    return _whole(name, steps, low)


def _whole(name: str, value: Any, low: int) -> int:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not low <= value <= _MOST or int(value) != value:
        raise ValueError(f"{name} is a whole number from {low} to 2**31 - 1; given {shown(value)}")
    return int(value)
