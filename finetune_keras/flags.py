"""The ``trainable`` flags of a whole model, read and set as one state.

Keras keeps a flag on every layer and every variable; setting one on a holder of layers sets all
below it, and a normalisation layer is in inference mode only if its own layer flag is off. Here a
state is the set of variables that are *on*, and `put` sets every flag from it.
"""

from __future__ import annotations

from collections.abc import Iterable

import keras

from finetune_keras import _private, graph

__all__ = ["Snapshot", "is_on", "on", "put", "switches"]


def switches(units: Iterable[graph.Unit]) -> tuple[graph.Unit, ...]:
    """The units that can be on or off: all that may learn, and the statistics of a layer that
    has nothing else (a batch normalisation without gamma and beta still updates them), unless it
    says why it is fixed, as ``ftk_fixed``.
    """
    units = tuple(units)
    learners = {id(u.layer) for u in units if u.learnable}
    return tuple(
        u
        for u in units
        if u.learnable or not (id(u.layer) in learners or getattr(u.layer, "ftk_fixed", ""))
    )


def is_on(unit: graph.Unit, model: keras.Model) -> bool:
    """Whether a unit learns (or, for lone statistics, is updated) as the flags stand."""
    return bool(
        model.trainable and (unit.variable.trainable if unit.learnable else unit.layer.trainable)
    )


def on(units: Iterable[graph.Unit], model: keras.Model) -> frozenset[int]:
    """``id``s of the variables among ``units`` that are on."""
    return frozenset(id(u.variable) for u in switches(units) if is_on(u, model))


def put(model: keras.Model, units: Iterable[graph.Unit], state: frozenset[int]) -> None:
    """Sets every flag of ``model`` so that exactly the variables in ``state`` are on.

    A layer is on if anything in it is; layers without variables keep their flag.
    """
    mine = switches(units)
    layers = _holders_first(model)
    before = {id(layer): layer.trainable for layer in layers}
    alive: dict[int, bool] = {}
    for unit in mine:
        alive[id(unit.layer)] = alive.get(id(unit.layer), False) or id(unit.variable) in state
    for layer in reversed(layers):  # what is held comes before its holder
        below = [alive[id(c)] for c in _private.sublayers(layer) if id(c) in alive]
        if below:
            alive[id(layer)] = alive.get(id(layer), False) or any(below)
    for layer in layers:
        layer.trainable = alive.get(id(layer), before[id(layer)])
    for unit in mine:
        if unit.learnable:
            unit.variable.trainable = id(unit.variable) in state


class Snapshot:
    """The flags of a model as they are, to go back to.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> before = Snapshot(model)
        >>> model.trainable = False
        >>> before.restore()
        >>> len(model.trainable_variables)
        2
    """

    def __init__(self, model: keras.Model):
        self._layers = [(layer, layer.trainable) for layer in _holders_first(model)]
        self._variables = [(v, v.trainable) for v in model.weights]

    def restore(self) -> None:
        """Sets every flag to what it was."""
        for layer, flag in self._layers:
            layer.trainable = flag
        for variable, flag in self._variables:
            variable.trainable = flag


def _holders_first(model: keras.Model) -> list[keras.layers.Layer]:
    """The model and every layer in it, each once, after all layers that hold it."""
    seen: set[int] = set()
    order: list[keras.layers.Layer] = []

    def visit(layer):
        seen.add(id(layer))
        for child in _private.sublayers(layer):
            if id(child) not in seen:
                visit(child)
        order.append(layer)

    visit(model)
    return order[::-1]
