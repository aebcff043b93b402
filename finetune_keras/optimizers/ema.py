"""A moving average of the weights, on every backend.

The average of the last steps is often better than the last step itself (Polyak and Juditsky
1992; Tarvainen and Valpola 2017, arXiv:1703.01780). After step `t`

    a = a + (1 - m_t) * (w - a),        m_t = min(m, t / (9 + t)),        t = 0, 1, 2, ...

with momentum `m`: it begins at the weights after the first step. The second term of the minimum
lets a short run forget its first weights, as in ``tf.train.ExponentialMovingAverage``.

``use_ema=True`` of Keras' own optimizers does the same with a constant momentum. On JAX it shares
buffers with the weights, and dies at the second ``fit``; and its callback for evaluation leaves a
run that was interrupted between two epochs with averages and weights exchanged.
"""

from __future__ import annotations

import numbers
from typing import Any

import keras
import numpy as np
from keras import ops

from finetune_keras.optimizers import moves, state
from finetune_keras.optimizers.wrapper import Optimizer, Wrapper, chain

__all__ = ["AveragingOptimizer", "averaged", "averaging_of", "ema"]


@keras.saving.register_keras_serializable(package="finetune_keras")
class AveragingOptimizer(Wrapper):
    """An optimizer that averages the weights it makes. Made by `ema`.

    When ``fit`` ends the model has the averages, as with ``use_ema=True`` in Keras. In between,
    `finetune_keras.callbacks.EMA` evaluates and saves them.

    Args:
        inner_optimizer: the optimizer that makes the step.
        momentum: share of the average that each step keeps, from 0 to below 1.
        name: of this optimizer.
    """

    order = 2  # around the rates by depth: what is averaged are the weights as they are

    def __init__(self, inner_optimizer: Optimizer, momentum: float = 0.99, name: str | None = None):
        super().__init__(inner_optimizer, name=name)
        self.momentum = _checked(momentum)
        self._goes_on = False

    def build(self, variables: list[keras.Variable]) -> None:
        """Builds it, once; the averages begin with the first step."""
        if self.built:
            return

        def number(name: str) -> keras.Variable:
            return self.add_variable((), name=name, aggregation="only_first_replica")

        # 1 while the model has the averages, and the slots the weights.
        self._exchanged = number("exchanged")
        # Steps since the average began.
        self._averaged = number("averaged")
        self._averages = self.add_optimizer_variables(variables, "average")
        super().build(variables)

    def add_variable_from_reference(
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> keras.Variable:
        """As in Keras, but for a variable that may be written in each replica, and in float32
        where weights have half precision: their rounding is larger than a small step.
        """
        half = reference_variable.dtype in ("float16", "bfloat16")
        return self.add_variable(
            shape=reference_variable.shape,
            initializer=initializer,
            dtype="float32" if half else reference_variable.dtype,
            aggregation="mean",
            layout=getattr(reference_variable, "_layout", None),
            name=name,
        )

    def wrapped(self, grads: list, variables: list[keras.Variable]) -> None:
        """The inner optimizer's step, then the average's."""
        before = ops.copy(self.iterations)
        self.inner_optimizer.apply(grads, variables)
        # A batch whose gradients are only accumulated is no step.
        step = ops.cast(ops.not_equal(self.iterations, before), "float32")
        # Weights that were exchanged and not back: the run goes on from them as a new one.
        t = ops.convert_to_tensor(self._averaged) * (1.0 - self._exchanged)
        share = step * (1.0 - ops.minimum(self.momentum, t / (9.0 + t)))
        self._averaged.assign(t + step)
        self._exchanged.assign(self._exchanged * (1.0 - step))
        for v, average in zip(self._trainable_variables, self._averages, strict=True):
            moves.towards(average, v, share)

    @property
    def exchanged(self) -> bool:
        """Whether the model has the averages now, and the optimizer the weights."""
        return self.built and bool(ops.convert_to_numpy(self._exchanged) > 0)

    def exchange(self) -> None:
        """Puts the averages into the model and the weights here, or back; does nothing before the
        first step.
        """
        if not self.built or not ops.convert_to_numpy(self._averaged):
            return
        for v, average in zip(self._trainable_variables, self._averages, strict=True):
            weights, mean = _copy(v), _copy(average)
            v.assign(mean)
            average.assign(weights)
        self._exchanged.assign(0.0 if self.exchanged else 1.0)

    def restart(self) -> None:
        """Begins a new average with the next step, from the weights that the model has."""
        if not self.built:
            return
        self._exchanged.assign(0.0)
        self._averaged.assign(0.0)

    def goes_on(self) -> None:
        """Says that the next end of ``fit`` is only a part's, after which training goes on."""
        self._goes_on = True

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Leaves the averages in the model at the end of ``fit``; a next one begins there."""
        super().finalize_variable_values(var_list)
        if self._goes_on:
            self._goes_on = False
            return
        if not self.exchanged:
            self.exchange()
        self.restart()

    def get_config(self) -> dict[str, Any]:
        """The config, the inner optimizer's inside."""
        return {**super().get_config(), "momentum": self.momentum}


def ema(optimizer: str | Optimizer, *, momentum: float = 0.99) -> Optimizer:
    """An optimizer that also keeps a moving average of the weights.

    When ``fit`` ends, the model has the averages, and a second ``fit`` goes on from there. Pass
    `finetune_keras.callbacks.EMA` to evaluate and save the averages after every epoch;
    `finetune_keras.fit` does so by itself. Only variables that learn are averaged: the statistics
    of batch normalisations are moving averages already.

    Args:
        optimizer: a Keras name or an instance, such as what `finetune_keras.layerwise` gives; it
            is copied.
        momentum: share of the average that each step keeps, from 0 to below 1. The average
            reaches over about ``1 / (1 - momentum)`` steps.

    Returns:
        An `AveragingOptimizer`, inside a ``LossScaleOptimizer`` if one was given.

    Raises:
        ValueError: for a momentum out of range, or an optimizer with ``use_ema=True``.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile(ema("adam", momentum=0.9), loss="mse")
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    """
    made = state.make(optimizer)
    made = state.copied(made) if made is optimizer else made
    return averaged(made, momentum)


def averaged(made: Optimizer, momentum: float) -> Optimizer:
    """Puts the average around an optimizer not yet built, in place of another one."""
    inner = chain(made)[-1]
    if getattr(inner, "use_ema", False):
        raise ValueError(
            f"{type(inner).__name__} has use_ema=True, which is an average of its own: leave it out"
        )
    return state.nested(made, AveragingOptimizer(inner, momentum))


def averaging_of(optimizer: Optimizer | None) -> AveragingOptimizer | None:
    """The part of an optimizer that averages, if it has one."""
    links = chain(optimizer) if isinstance(optimizer, Optimizer) else ()
    return next((o for o in links if isinstance(o, AveragingOptimizer)), None)


def _checked(momentum: Any) -> float:
    """A number from 0 to below 1, or an error."""
    number = isinstance(momentum, numbers.Real) and not isinstance(momentum, bool)
    if not number or not 0 <= momentum < 1:
        raise ValueError(
            f"the momentum of an average is a number from 0 to below 1; given {momentum!r}"
        )
    return float(momentum)


def _copy(variable: keras.Variable) -> np.ndarray:
    # Through NumPy: on JAX ``assign`` would share a buffer that the next step donates.
    return np.array(ops.convert_to_numpy(variable))
