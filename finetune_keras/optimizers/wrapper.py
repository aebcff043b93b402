"""An optimizer around another: what all of them share.

Keras' trainers, callbacks and files see one optimizer; the one inside does the steps. Keras'
``LossScaleOptimizer`` is built in the same way and may stand around any of these.
"""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["Wrapper", "chain", "innermost"]

Optimizer = keras.optimizers.Optimizer


def chain(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """An optimizer and all inside it, the outermost first.

    Examples:
        >>> scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
        >>> [type(o).__name__ for o in chain(scaled)]
        ['LossScaleOptimizer', 'SGD']
    """
    found = [optimizer]
    while isinstance(getattr(found[-1], "inner_optimizer", None), Optimizer):
        found.append(found[-1].inner_optimizer)
    return tuple(found)


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside wrappers such as ``LossScaleOptimizer``."""
    return chain(optimizer)[-1]


class Wrapper(Optimizer):
    """Hands everything on to ``inner_optimizer``.

    Args:
        inner_optimizer: a ``keras.optimizers.Optimizer``.
        name: of this optimizer.
    """

    order = 0  # of several wrappers, the lower one is nearer to the optimizer
    sets_rate = False  # whether the inner optimizer's rate is its own affair
    open_share = 0.0  # what part of its default rate suits an open backbone; 0 for no word on it

    def __init__(self, inner_optimizer: Optimizer, name: str | None = None):
        # The rate and the step count are the inner optimizer's.
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

    def inherit(self, old: Wrapper) -> None:
        """Takes over what the config of ``old``, of the same class, does not hold."""

    def build(self, variables: list[keras.Variable]) -> None:
        """Builds both for the variables that learn."""
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(self, grads: list, trainable_variables: list | None = None) -> None:
        """One step, as in ``keras.optimizers.Optimizer``."""
        if not self.built:
            self.build(list(trainable_variables))
        variables = trainable_variables or self._trainable_variables
        self.wrapped(grads, list(variables))

    def wrapped(self, grads: list, variables: list[keras.Variable]) -> None:
        """The step for ``variables``; a subclass puts its own around it."""
        self.inner_optimizer.apply(grads, variables)

    @property
    def variables(self) -> list[keras.Variable]:
        """Its own variables, then the inner optimizer's."""
        return self._variables + self.inner_optimizer.variables

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's rate, which schedules and callbacks set."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """Steps made so far."""
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self) -> float | None:
        """The inner optimizer's, which ``LossScaleOptimizer`` switches off."""
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        if hasattr(self, "inner_optimizer"):  # not yet in Keras' own constructor
            self.inner_optimizer.loss_scale_factor = factor

    def scale_loss(self, loss: Any) -> Any:
        """The loss as the inner optimizer scales it."""
        return self.inner_optimizer.scale_loss(loss)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        """As in ``keras.optimizers.Optimizer``."""
        self.inner_optimizer.exclude_from_weight_decay(*args, **kwargs)

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """What ``fit`` calls at its end."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self) -> dict[str, Any]:
        """The config, the inner optimizer's inside."""
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> Wrapper:
        """The reverse of `get_config`."""
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(
            config.pop("inner_optimizer"), custom_objects=custom_objects
        )
        return cls(inner, **config)
