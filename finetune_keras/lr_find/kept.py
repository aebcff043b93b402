"""Everything that some steps of training change, given back to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from finetune_keras import _private
from finetune_keras.check import sample

__all__ = ["compiled", "values"]


@contextlib.contextmanager
def values(variables: list[keras.Variable], data: Any) -> Iterator[None]:
    """A scope after which variables and the random states of Keras, NumPy, Python and PyTorch are
    as before, also when an error comes up in it, or somebody presses Ctrl-C.

    Args:
        variables: what may change: weights, statistics, states of seed generators, metrics.
        data: what is read, for a generator of random numbers of its own.
    """
    seeds = _private.global_seeds()
    variables = [*variables, *([] if seeds is None else [seeds.state])]
    # Copies: on JAX a step of training would write over what is only a view.
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]

    def restore() -> None:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        _private.set_global_seeds(seeds)

    with sample.random_state(data), _surely(restore):
        yield


@contextlib.contextmanager
def compiled(model: keras.Model) -> Iterator[None]:
    """A scope in which a model may be compiled with another optimizer and trained, and after which
    optimizer, loss, metrics and compiled functions are the objects that they were.
    """
    before = dict(vars(model))

    def restore() -> None:
        for name in set(vars(model)) - set(before):
            del vars(model)[name]
        vars(model).update(before)
        if vars(model).pop("optimizer", None) is not None:
            model.optimizer = before["optimizer"]  # by its setter, since TensorFlow tracks it too

    with _surely(restore):
        yield


@contextlib.contextmanager
def _surely(restore: Callable[[], None]) -> Iterator[None]:
    """Runs a function in the end, and once more if Ctrl-C is pressed meanwhile."""
    try:
        yield
    finally:
        try:
            restore()
        except KeyboardInterrupt:
            restore()
            raise
