"""A rate that goes up and down, worked out once a step from numbers that are variables.

Keras asks a ``LearningRateSchedule`` anew for each variable that decays, and a traced training step
has its numbers for good. Here another length needs no new trace.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from finetune_keras.optimizers import state
from finetune_keras.optimizers.checks import checked_rate
from finetune_keras.optimizers.wrapper import Optimizer, Wrapper, innermost

__all__ = ["ScheduledOptimizer", "up_and_down"]

_LOW = 0.1  # of the peak, at the first step
_NONE = -1.0  # a rate that nobody has set


@keras.saving.register_keras_serializable(package="finetune_keras")
class ScheduledOptimizer(Wrapper):
    """An optimizer whose rate rises in a line from a tenth to ``peak``, and falls along half a
    cosine to 0. Made by `up_and_down`. A rate that is set meanwhile, by a callback, stays.

    Args:
        inner_optimizer: the optimizer that makes the step; its rate is set before each.
        peak: the highest rate.
        steps: of the whole; batches, where gradients are accumulated too.
        warmup_steps: of the rise.
        fixed: the rate from now on; ``None`` goes up and down.
        name: of this optimizer.
    """

    order = 3  # around all that ask the optimizer itself for something
    sets_rate = True

    def __init__(
        self,
        inner_optimizer: Optimizer,
        peak: float = 1e-3,
        steps: int = 1,
        warmup_steps: int = 0,
        fixed: float | None = None,
        name: str | None = None,
    ):
        super().__init__(inner_optimizer, name=name)
        self._numbers = {"peak": peak, "steps": steps, "warmup_steps": warmup_steps, "fixed": fixed}

    def build(self, variables: list[keras.Variable]) -> None:
        """Builds it, once; the numbers become variables."""
        if self.built:
            return
        for name, value in self._numbers.items():
            made = self.add_variable(
                (),
                initializer=keras.initializers.Constant(_NONE if value is None else value),
                dtype="float32",
                name=name,
                aggregation="only_first_replica",
            )
            setattr(self, f"_{name}", made)
        super().build(variables)

    def wrapped(self, grads: list, variables: list[keras.Variable]) -> None:
        """Sets the rate, then makes the step."""
        self.inner_optimizer.learning_rate = self._rate()
        self.inner_optimizer.apply(grads, variables)

    def _rate(self) -> Any:
        done = ops.cast(state.count(self), "float32")
        warm, steps = ops.convert_to_tensor(self._warmup_steps), ops.convert_to_tensor(self._steps)
        rising = _LOW + (1.0 - _LOW) * done / ops.maximum(warm, 1.0)
        left = 1.0 - (done - warm) / ops.maximum(steps - warm, 1.0)
        falling = ops.square(ops.sin(math.pi / 2.0 * ops.clip(left, 0.0, 1.0)))
        course = ops.convert_to_tensor(self._peak) * ops.where(done < warm, rising, falling)
        fixed = ops.convert_to_tensor(self._fixed)
        return ops.where(fixed < 0.0, course, fixed)

    @property
    def learning_rate(self) -> Any:
        """That of the next step, as with a ``LearningRateSchedule``; it can be set."""
        if self.built:
            return self._rate()
        if self._numbers["fixed"] is not None:
            return self._numbers["fixed"]
        return self._numbers["peak"] * (_LOW if self._numbers["warmup_steps"] else 1.0)

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        rate = float(keras.ops.convert_to_numpy(learning_rate))
        if not 0 <= rate < float("inf"):
            raise ValueError(f"a rate is a number from 0 on; given {rate:g}")
        self._numbers["fixed"] = rate
        if self.built:
            self._fixed.assign(rate)

    def get_config(self) -> dict[str, Any]:
        """The config, the inner optimizer's inside."""
        return {**super().get_config(), **self._numbers}


def up_and_down(optimizer: Optimizer, peak: float, steps: int, warmup_steps: int) -> Optimizer:
    """A copy of ``optimizer`` with that rate, not yet built.

    Examples:
        >>> made = up_and_down(keras.optimizers.Adam(), 0.1, steps=8, warmup_steps=4)
        >>> weight, rates = keras.Variable([1.0]), []
        >>> made.build([weight])
        >>> for _ in range(9):
        ...     rates.append(round(float(made.learning_rate), 2))
        ...     made.apply([ops.ones(1)], [weight])
        >>> rates
        [0.01, 0.03, 0.06, 0.08, 0.1, 0.09, 0.05, 0.01, 0.0]
    """
    made, peak = state.copied(optimizer), float(checked_rate(peak))
    wrapper = ScheduledOptimizer(innermost(made), peak, steps, warmup_steps)
    return state.nested(made, wrapper)
