"""The walk: what a model is made of, in the order in which it computes.

A Keras model is a graph of calls, some of which are models themselves. `opened` lists the
calls of all of them in topological order, nested models opened, with unique paths. Nothing is
built or changed: the result is data about the model, and selectors, blocks, freezing and
``describe`` all read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from finetune_keras import _private
from finetune_keras.tape import Tape, ends, inside, is_functional, tape, tensors

__all__ = [
    "Call",
    "Opened",
    "Unit",
    "ancestors",
    "descendants",
    "ends",
    "is_functional",
    "opened",
    "replay",
    "tape",
]


@dataclasses.dataclass(frozen=True)
class Unit:
    """One variable in its place.

    Attributes:
        path: names from the model down to the variable, ``"resnet50/conv1_conv/kernel"``; unique
            in the model, which ``variable.path`` is not.
        layer: the layer that made the variable.
        variable: the ``keras.Variable``.
        learnable: false for statistics, such as the moving mean of a batch normalisation.
    """

    path: str
    layer: keras.layers.Layer
    variable: keras.Variable
    learnable: bool

    @property
    def size(self) -> int:
        """Number of scalars."""
        size = 1
        for n in self.variable.shape:
            size *= n
        return size


@dataclasses.dataclass(frozen=True)
class Call:
    """One call in the opened graph.

    Attributes:
        op: the operation (a layer, or a function of ``keras.ops``).
        path: names from the model down to the operation, joined by ``/``.
        inputs: numbers of the tensors it reads.
        outputs: numbers of the tensors it makes.
        units: the variables it owns, sublayers included.
    """

    op: keras.Operation
    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    units: tuple[Unit, ...]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model as one flat list of calls.

    Attributes:
        calls: in topological order, nested functional and sequential models opened.
        inputs: numbers of the model's input tensors.
        outputs: numbers of the model's output tensors.
        units: every variable once, at its first use.
        shapes: the static shape of each numbered tensor.
        layers: every layer with its path, the holders of layers before what they hold.
        closed: false if the model is a subclass whose graph cannot be read; its ``calls`` are
            then the single call of the model itself.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    units: tuple[Unit, ...]
    shapes: tuple[tuple, ...]
    layers: tuple[tuple[str, keras.layers.Layer], ...]
    closed: bool = False


def opened(model: keras.Model, *, chains: bool = True) -> Opened:
    """Lists all that ``model`` computes, nested models opened.

    Args:
        model: a built ``keras.Model``.
        chains: whether to open layers that only call others, one after another, too.

    Raises:
        ValueError: if the model has no variables or inputs yet because it was never built.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> [unit.path for unit in opened(model).units]
        ['d/kernel', 'd/bias']
    """
    if not is_functional(model) and not model.built:
        raise ValueError(
            f"the model {model.name!r} is not built: call it on a batch once, or give it an "
            "Input, so that its variables exist"
        )
    return _Walk(chains).run(model)


def ancestors(seen: Opened, start: Iterable[int]) -> set[int]:
    """Indices of the calls that the calls ``start`` depend on, ``start`` included."""
    made_by = {t: i for i, c in enumerate(seen.calls) for t in c.outputs}
    result: set[int] = set()
    todo = list(start)
    while todo:
        i = todo.pop()
        if i not in result:
            result.add(i)
            todo += [made_by[t] for t in seen.calls[i].inputs if t in made_by]
    return result


def descendants(seen: Opened, start: Iterable[int]) -> set[int]:
    """Indices of the calls that depend on the calls ``start``, ``start`` included."""
    result = set(start)
    live = {t for i in result for t in seen.calls[i].outputs}
    for i, call in enumerate(seen.calls):
        if i not in result and live.intersection(call.inputs):
            result.add(i)
            live.update(call.outputs)
    return result


class _Walk:
    """Numbers tensors and collects calls while descending into nested models."""

    def __init__(self, chains: bool) -> None:
        self.chains = chains
        self.calls: list[Call] = []
        self.shapes: list[tuple] = []
        self.units: dict[int, Unit] = {}
        self.layers: dict[int, tuple[str, keras.layers.Layer]] = {}

    def run(self, model: keras.Model) -> Opened:
        if is_functional(model):
            this = tape(model)
            inputs = [self._new(t) for t in tensors(this.inputs)]
            outputs = self._open(this, "", inputs)
        else:
            inputs = []
            self.calls.append(Call(model, "", (), (0,), self._own(model, "")))
            self.shapes.append(())
            outputs = [0]
        return Opened(
            calls=tuple(self.calls),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            units=tuple(self.units.values()),
            shapes=tuple(self.shapes),
            layers=tuple(self.layers.values()),
            closed=not is_functional(model),
        )

    def _new(self, tensor: keras.KerasTensor) -> int:
        self.shapes.append(tuple(tensor.shape))
        return len(self.shapes) - 1

    def _open(self, this: Tape, prefix: str, inputs: list[int]) -> list[int]:
        numbers = {id(t): n for t, n in zip(tensors(this.inputs), inputs, strict=True)}
        for step in this.steps:
            path = f"{prefix}{step.op.name}"
            within = inside(step, self.chains)
            if within is not None:
                self.layers.setdefault(id(step.op), (path, step.op))
                inner, given = within
                made = self._open(inner, f"{path}/", [numbers[id(t)] for t in given])
            else:
                reads = tuple(numbers[id(t)] for t in tensors((step.args, step.kwargs)))
                made = [self._new(t) for t in tensors(step.outputs)]
                units = self._own(step.op, path) if isinstance(step.op, keras.layers.Layer) else ()
                self.calls.append(Call(step.op, path, reads, tuple(made), units))
            numbers.update({id(t): n for t, n in zip(tensors(step.outputs), made, strict=True)})
        return [numbers[id(t)] for t in tensors(this.outputs)]

    def _own(self, layer: keras.layers.Layer, path: str) -> tuple[Unit, ...]:
        units = []
        for sub, layer_path in _tree(layer, path):
            self.layers.setdefault(id(sub), (layer_path, sub))
            learnable, statistics = _private.own_weights(sub)
            for group, learns in ((learnable, True), (statistics, False)):
                names = _unique(v.name for v in group)
                for v, name in zip(group, names, strict=True):
                    unit = Unit(f"{layer_path}/{name}".lstrip("/"), sub, v, learns)
                    units.append(self.units.setdefault(id(v), unit))
        return tuple(units)


def _tree(
    layer: keras.layers.Layer, path: str, seen: set[int] | None = None
) -> Iterator[tuple[keras.layers.Layer, str]]:
    """``layer`` and all that it holds, each once, the holder first."""
    seen = set() if seen is None else seen
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield layer, path
    children = _private.sublayers(layer)
    for child, name in zip(children, _unique(c.name for c in children), strict=True):
        yield from _tree(child, f"{path}/{name}".lstrip("/"), seen)


def _unique(names) -> list[str]:
    """Names made unique: the second ``d`` becomes ``d#2``."""
    count: dict[str, int] = {}
    result = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        result.append(name if count[name] == 1 else f"{name}#{count[name]}")
    return result


def replay(model: keras.Model, inputs: Any, *, chains: bool = True) -> list[keras.KerasTensor]:
    """Computes ``model`` on new inputs with nested models opened, and keeps every tensor.

    Args:
        model: a functional or sequential model.
        inputs: symbolic tensors in the structure of ``model.input``.
        chains: as in `opened`.

    Returns:
        The tensors, numbered as in `opened`. The layers and variables are the model's own.
    """
    kept: list[keras.KerasTensor] = []

    def run(this: Tape, given: list[keras.KerasTensor]) -> list[keras.KerasTensor]:
        now = {id(t): n for t, n in zip(tensors(this.inputs), given, strict=True)}
        for step in this.steps:
            within = inside(step, chains)
            if within is not None:
                inner, reads = within
                made = run(inner, [now[id(t)] for t in reads])
            else:
                args, kwargs = keras.tree.map_structure(
                    lambda x: now.get(id(x), x), (step.args, step.kwargs)
                )
                made = tensors(step.op(*args, **kwargs))
                kept.extend(made)
            now.update({id(t): n for t, n in zip(tensors(step.outputs), made, strict=True)})
        return [now[id(t)] for t in tensors(this.outputs)]

    given = tensors(inputs)
    kept.extend(given)
    run(tape(model), given)
    return kept
