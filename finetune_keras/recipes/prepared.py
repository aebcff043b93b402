"""A model made ready for a phase: flags, a fresh optimizer, and what is compiled already."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from finetune_keras import _private, optimizers
from finetune_keras.cache.split import keep, kept
from finetune_keras.compile import compile as _compile
from finetune_keras.freeze import thaw
from finetune_keras.recipes.phase import Phase, Refit
from finetune_keras.recipes.statistics import momenta

__all__ = ["Prepared"]

_WARM_UP = 0.1  # of the steps of a phase


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """What a phase was compiled to.

    Attributes:
        goes_with: what it was compiled for.
        attributes: those of the model that compiling has set.
        division: the model in two, if it was trained so.
    """

    goes_with: tuple
    attributes: dict[str, Any]
    division: Any


class Prepared:
    """Makes a model ready for one phase after another.

    A refit trains what the phase before it has trained, in most runs. A training step takes seconds
    to trace and compile, so that one serves again, its optimizer as new: length and rate are
    variables of it.

    Args:
        model: the model.
        optimizer: each phase has a fresh copy.
        warm: whether a rate that is a number goes up and down.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, warm: bool):
        self._model, self._optimizer, self._warm = model, optimizer, warm
        self._now: tuple[Phase, tuple, list[str]] | None = None
        self._last: _Compiled | None = None

    def make(self, phase: Phase, steps: int) -> None:
        """Makes it ready for a phase with epochs of so many steps."""
        model, rate = self._model, phase.learning_rate
        if not isinstance(phase, Refit):
            self._last = None  # it holds an optimizer
        thaw(model, phase.learn, only=True, norms=phase.norms)
        optimizer = self._optimizer
        if self._goes_up_and_down(phase):
            total = phase.epochs * steps
            warm_up = min(math.ceil(_WARM_UP * total), total - 1)
            optimizer = optimizers.up_and_down(optimizer, rate, total, warm_up)
            rate = None
        before = dict(vars(model))
        _compile(model, optimizer=optimizer, learning_rate=rate, layer_decay=phase.layer_decay)
        compiled = [k for k, v in vars(model).items() if k not in before or before[k] is not v]
        goes_with = self._goes_with(phase, steps)
        self._now = (phase, goes_with, compiled)
        last, self._last = self._last, None
        if last is not None and last.goes_with == goes_with:
            _again(model, last)
        else:
            self._last = last

    def keep(self) -> None:
        """Has what the phase was compiled to for a refit of it."""
        phase, goes_with, names = self._now
        if goes_with is not None and not isinstance(phase, Refit) and phase.solver is None:
            found = {name: vars(self._model)[name] for name in names if name in vars(self._model)}
            self._last = _Compiled(goes_with, found, kept(self._model))

    def _goes_up_and_down(self, phase: Phase) -> bool:
        rate = phase.learning_rate
        return self._warm and rate is not None and not callable(rate)

    def _goes_with(self, phase: Phase, steps: int) -> tuple | None:
        """What is in a compiled step for good; ``None`` if another one has to be made anyway."""
        kind = "up and down" if self._goes_up_and_down(phase) else phase.learning_rate
        learning = tuple(id(v) for v in self._model.trainable_variables)
        return learning, phase.layer_decay, kind, momenta(self._model, steps)


def _again(model: keras.Model, last: _Compiled) -> None:
    """Puts back what was compiled, its optimizer with the values of the model's fresh one."""
    fresh, old = model.optimizer, last.attributes["optimizer"]
    if _built(fresh) != _built(old):
        return  # a callback has thawed more, say
    for variable, new in zip(old.variables, fresh.variables, strict=True):
        variable.assign(np.array(keras.ops.convert_to_numpy(new)))
    vars(model).update(last.attributes)
    if last.division is not None:
        keep(model, last.division)


def _built(optimizer: keras.optimizers.Optimizer) -> tuple:
    """The kind of an optimizer, what it was built for and with."""
    kinds = [type(o) for o in optimizers.chain(optimizer)]
    learning = [id(v) for v in _private.built_on(optimizer)]
    return kinds, learning, [(tuple(v.shape), v.dtype) for v in optimizer.variables]
