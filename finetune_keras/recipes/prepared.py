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
from finetune_keras.schedules import WarmupCosine

__all__ = ["Prepared"]

_WARM_UP = 0.1  # of the steps of a phase
_LOW = 0.1  # of its rate, at the first step
_MADE_IN_FIT = ("train_function", "test_function")
_APART = ("inner_optimizer", "learning_rate", "name", "peak", "steps", "warmup_steps", "fixed")


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """What a phase was compiled to.

    Attributes:
        goes_with: what is in a traced step for good, but for what follows.
        arguments: of ``compile``.
        attributes: those of the model that compiling has set.
        division: the model in two, if it was trained so.
    """

    goes_with: tuple
    arguments: dict[str, Any]
    attributes: dict[str, Any]
    division: Any


class Prepared:
    """Makes a model ready for one phase after another.

    A refit trains what the last phase has trained, in most runs. A training step takes seconds to
    trace and compile, so that one serves again, its optimizer as new: length and rate are variables
    of it.

    Args:
        model: the model.
        optimizer: each phase has a fresh copy.
        warm: whether a rate that is a number goes up and down.
        refit: whether there will be one.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        warm: bool,
        refit: bool,
    ):
        self._model, self._optimizer, self._warm, self._refit = model, optimizer, warm, refit
        self._now: tuple[Phase, tuple, list[str], keras.optimizers.Optimizer] | None = None
        self._last: _Compiled | None = None

    def make(self, phase: Phase, steps: int) -> None:
        """Makes it ready for a phase with epochs of so many steps."""
        model, last, self._last = self._model, self._last, None
        if not isinstance(phase, Refit):
            last = None  # it holds an optimizer
        thaw(model, phase.learn, only=True, norms=phase.norms)
        optimizer, rate, course = self._course(phase, steps)
        before = dict(vars(model))
        _compile(model, optimizer=optimizer, learning_rate=rate, layer_decay=phase.layer_decay)
        learning = tuple(id(v) for v in model.trainable_variables)
        goes_with = learning, phase.layer_decay, course
        if phase.solver is not None:
            self._last = last  # nothing is traced for it; it comes before the one that is refitted
        elif last is not None and last.goes_with == goes_with:
            _again(model, last)
        compiled = [k for k, v in vars(model).items() if k not in before or before[k] is not v]
        self._now = phase, goes_with, compiled, model.optimizer

    def keep(self) -> None:
        """Has what the phase was compiled to for a refit of it."""
        phase, goes_with, names, made = self._now
        model = self._model
        if not self._refit or isinstance(phase, Refit) or phase.solver is not None:
            return
        if model.optimizer is not made:
            return  # a callback has compiled
        found = {name: vars(model)[name] for name in (*names, *_MADE_IN_FIT) if name in vars(model)}
        arguments = _private.compile_arguments(model)
        self._last = _Compiled(goes_with, arguments, found, kept(model))

    def _course(self, phase: Phase, steps: int) -> tuple[keras.optimizers.Optimizer, Any, Any]:
        """Optimizer and rate to compile with; and what a traced step has of the rate for good."""
        rate, total = phase.learning_rate, phase.epochs * steps
        if not self._warm or rate is None or callable(rate):
            return self._optimizer, rate, rate
        warm_up = min(math.ceil(_WARM_UP * total), total - 1)
        if getattr(optimizers.innermost(self._optimizer), "use_ema", False):
            # Keras' callback for these averages looks into one wrapper, not into two.
            rate = WarmupCosine(
                rate, total, warmup_steps=warm_up, initial_learning_rate=_LOW * rate
            )
            return self._optimizer, rate, rate
        made = optimizers.up_and_down(self._optimizer, rate, total, warm_up)
        return made, None, "up and down"


def _again(model: keras.Model, last: _Compiled) -> None:
    """Puts back what was compiled, its optimizer with the values of the model's fresh one; leaves
    the model as it is where they do not go together.
    """
    now = _private.compile_arguments(model)
    if now.keys() != last.arguments.keys():
        return
    if any(now[k] is not v for k, v in last.arguments.items() if k != "optimizer"):
        return  # the recipe has compiled meanwhile, with another loss, say
    fresh, old = model.optimizer, last.attributes["optimizer"]
    if _built(fresh) != _built(old):
        return
    pairs = zip(optimizers.variables(old), optimizers.variables(fresh), strict=True)
    for variable, new in pairs:
        variable.assign(np.array(keras.ops.convert_to_numpy(new)))
    vars(model).update(last.attributes)
    if last.division is not None:
        keep(model, last.division)


def _built(optimizer: keras.optimizers.Optimizer) -> tuple:
    """The kind of an optimizer, its settings, what it was built for and with."""
    links = optimizers.chain(optimizer)
    settings = [{k: v for k, v in o.get_config().items() if k not in _APART} for o in links]
    learning = [id(v) for v in _private.built_on(optimizer)]
    shapes = [(tuple(v.shape), v.dtype) for v in optimizers.variables(optimizer)]
    return [type(o) for o in links], settings, learning, shapes
