"""Bias correction of their own for variables that join a running optimizer.

Adam divides its moments by `1 - beta^t` because they start at zero (Kingma and Ba 2015, section 3,
arXiv:1412.6980). A variable thawed after many steps also starts at zero, but the optimizer's `t` is
large and corrects nothing: under a constant gradient its steps begin at up to 3 times the learning
rate and grow to 6. Here each newcomer's step is scaled by the ratio of the two corrections,

    f = [sqrt(1 - beta_2^t') / (1 - beta_1^t')] / [sqrt(1 - beta_2^t) / (1 - beta_1^t)]

where `t'` counts from the thaw, so that it moves as if its own training had just begun. The factor
tends to 1 within about `1 / (1 - beta_2)` steps. For the first ten steps no element moves by more
than the learning rate, whatever the gradients do (Nadam's step follows the latest gradient and
would overshoot where gradients grow); after that the limit rises with the step and soon binds
nothing.
"""

from __future__ import annotations

import dataclasses
import weakref

import keras
import numpy as np
from keras import ops

__all__ = ["Group", "attach", "groups"]


@dataclasses.dataclass(frozen=True)
class Group:
    """Variables that joined when the optimizer had made ``since`` steps."""

    since: int
    variables: tuple[keras.Variable, ...]


_HELD = 10.0  # steps for which no element moves by more than the learning rate

_groups: weakref.WeakKeyDictionary[keras.optimizers.Optimizer, list[Group]] = (
    weakref.WeakKeyDictionary()
)


def groups(optimizer: keras.optimizers.Optimizer) -> list[Group]:
    """The newcomers of an optimizer (the innermost, where there are wrappers)."""
    return list(_groups.get(optimizer, ()))


def attach(inner: keras.optimizers.Optimizer, joined: list[Group]) -> None:
    """Corrects the first steps of ``joined`` in ``inner``, an optimizer without wrappers. For
    optimizers other than Adam's kin there is nothing to do: they have no correction by step.

    The optimizer stays a plain Keras one: its ``apply`` is shadowed on the instance, and its
    config and file are as without. (A subclass would make a saved model need this package.)
    """
    correction = _correction(inner)
    joined = [g for g in joined if g.since > 0 and g.variables]
    if correction is None or not joined:
        return
    _groups[inner] = joined
    plain = inner.apply

    def apply(grads, trainable_variables=None):
        step = ops.cast(inner.iterations, "float32") + 1.0
        rate = ops.copy(inner.learning_rate)
        before = [[ops.copy(v) for v in g.variables] for g in joined]
        plain(grads, trainable_variables)
        for group, olds in zip(joined, before, strict=True):
            own = step - float(group.since)
            excess = 1.0 - correction(own, step)
            limit = ops.cast(rate, "float32") * ops.maximum(1.0, own / _HELD)
            for v, old in zip(group.variables, olds, strict=True):
                new = ops.convert_to_tensor(v)
                new = new - ops.cast(excess, new.dtype) * (new - old)
                most = ops.cast(limit, new.dtype)
                new = ops.clip(new, old - most, old + most)
                v.assign(new if v.constraint is None else v.constraint(new))

    inner.apply = apply


def _correction(optimizer):
    """``f(own step, optimizer's step)``, both counted from 1, or None."""
    if not isinstance(optimizer, keras.optimizers.Adam | keras.optimizers.Nadam):
        return None
    b1, b2 = float(optimizer.beta_1), float(optimizer.beta_2)

    def second(t):
        return ops.sqrt(1.0 - ops.power(b2, t))

    if isinstance(optimizer, keras.optimizers.Adam):
        return lambda own, t: (
            (second(own) / (1.0 - ops.power(b1, own))) * ((1.0 - ops.power(b1, t)) / second(t))
        )
    return _nadam(b1, second)


def _nadam(b1: float, second):
    """Nadam's step under a constant gradient, normalised to one learning rate (Dozat 2016).

    Its momentum schedule `u_t = beta_1 (1 - 0.96^t / 2)` and the product of all
    `u` so far are shared by all variables; only the moments are the newcomer's own.
    """
    # The product vanishes long before the table ends: 0.9 ** 512 is 4e-24.
    u = b1 * (1.0 - 0.5 * 0.96 ** np.arange(1, 514))
    product = np.cumprod(u).astype("float32")

    def factor(own, t):
        i = ops.cast(ops.minimum(t, 512.0), "int32") - 1
        p, p_next = ops.take(product, i), ops.take(product, i + 1)
        u_t = b1 * (1.0 - 0.5 * ops.power(0.96, t))
        u_next = b1 * (1.0 - 0.5 * ops.power(0.96, t + 1.0))
        step = u_next * (1.0 - ops.power(b1, own)) / (1.0 - p_next) + (1.0 - u_t) / (1.0 - p)
        return second(own) / (second(t) * step)

    return factor
