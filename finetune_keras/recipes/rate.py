"""The rate of a phase, from a range test."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import keras
import numpy as np

from finetune_keras import select
from finetune_keras.compile import compile as _compile
from finetune_keras.freeze import thaw
from finetune_keras.lr_find import lr_find
from finetune_keras.recipes.examples import Examples

__all__ = ["SHARE", "find", "steps"]

SHARE = 0.1  # of the steps of a phase, at most
_STEPS = 100
_RANGE = (1e-5, 1.0)
_FAR = 10  # times the usual rate, in either direction: what is further off is not believed


def steps(total: int) -> int:
    """How many steps a range test takes before ``total`` steps of training; 0 for no test.

    Examples:
        >>> steps(900), steps(1000)
        (0, 100)
    """
    return _STEPS if SHARE * total >= _STEPS else 0


def find(
    model: keras.Model,
    data: Examples,
    learn: select.Selector,
    optimizer: keras.optimizers.Optimizer,
    usual: float,
    total: int,
    *,
    norms: bool,
    layer_decay: float | None,
    batch_size: int,
    say: Callable[[str], None],
) -> float:
    """The rate that `finetune_keras.lr_find` suggests if ``learn`` learns, or else ``usual``.

    Weights and random states are as before afterwards; flags and what is compiled are those of the
    phase.

    Args:
        model: compiled.
        data: what it learns from.
        learn: what learns.
        optimizer: a copy of it trains.
        usual: the rate where the test finds none, or one that is ten times off.
        total: steps of the phase.
        norms: as in a phase.
        layer_decay: as in a phase.
        batch_size: of arrays.
        say: told what came out.
    """
    many = steps(total)
    if not many:
        return usual
    thaw(model, learn, only=True, norms=norms)
    _compile(model, optimizer=optimizer, learning_rate=usual, layer_decay=layer_decay)
    x, y, weights = data.train
    given = x if y is None else (x, y) if weights is None else (x, y, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # told here in other words
        found = lr_find(
            model,
            given,
            start=_RANGE[0],
            end=_RANGE[1],
            steps=many,
            batch_size=batch_size if data.arrays else None,
            verbose=0,
        )
    if found.suggestion is None:
        say(f"the range test finds no rate, as the loss does not fall: {usual:.2g}, the usual one")
        return usual
    rate = float(np.clip(found.suggestion, usual / _FAR, usual * _FAR))
    told = f"the range test of {many} steps suggests a rate of {found.suggestion:.2g}"
    if rate != found.suggestion:
        told += f"; {rate:.2g} is taken, {_FAR} times off the usual {usual:.2g}"
    say(told)
    return rate
