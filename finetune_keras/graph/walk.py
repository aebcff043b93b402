"""The walk: what a model is made of, in the order in which it computes.

A Keras model is a graph of calls, some of which are models themselves. `opened` lists the
calls of all of them in topological order, nested models opened, with unique paths. Nothing is
built or changed: the result is data about the model, and selectors, blocks, freezing and
``describe`` all read it.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from finetune_keras import _private

__all__ = [
    "Call",
    "Opened",
    "Unit",
    "ancestors",
    "descendants",
    "is_functional",
    "opened",
    "replay",
    "tape",
]


@dataclasses.dataclass(frozen=True)
class Step:
    """One call at one level of a model, on the symbolic tensors of its `Tape`."""

    op: keras.Operation
    args: tuple
    kwargs: dict[str, Any]
    outputs: Any


@dataclasses.dataclass(frozen=True)
class Tape:
    """The calls of one functional model, nested models left closed."""

    inputs: Any
    steps: tuple[Step, ...]
    outputs: Any


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


def is_functional(model: Any) -> bool:
    """Whether the calls inside ``model`` can be listed: functional, or sequential and built.

    A subclass of a functional model that overrides ``call`` computes something else than its
    graph says, so it counts as closed.
    """
    if isinstance(model, keras.Sequential):
        return bool(model.built and model.inputs)
    if not (isinstance(model, keras.Model) and isinstance(model, keras.Function)):
        return False
    for cls in type(model).__mro__:
        if "call" in vars(cls):
            return cls.__module__.split(".")[0] == "keras"
    return False  # pragma: no cover


_tapes: weakref.WeakKeyDictionary[keras.Model, tuple[tuple, Tape]] = weakref.WeakKeyDictionary()


def tape(model: keras.Model) -> Tape:
    """Records the calls of one functional or sequential model.

    ``keras.models.clone_model`` replays a functional model and lets us watch every call; the
    layers are the model's own. A graph does not change once it is made, so each model is replayed
    once (a ``Sequential`` again after ``add`` or ``pop``).
    """
    key = tuple(id(layer) for layer in model.layers)
    known = _tapes.get(model)
    if known is not None and known[0] == key:
        return known[1]
    steps: list[Step] = []

    def record(op, *args, **kwargs):
        outputs = op(*args, **kwargs)
        steps.append(Step(op, args, kwargs, outputs))
        return outputs

    # Around a compiled model Keras compiles the clone too, which would cost the optimizer's
    # memory and fail on a loss that does not serialise; a bare model on the same tensors does not.
    bare = keras.Model(*ends(model))
    clone = keras.models.clone_model(bare, clone_function=lambda op: op, call_function=record)
    result = Tape(clone.input, tuple(steps), clone.output)
    _tapes[model] = (key, result)
    return result


def ends(model: keras.Model) -> tuple[Any, Any]:
    """Symbolic inputs and outputs, as one tensor or in their structure."""
    if isinstance(model, keras.Sequential):
        # Its ``output`` is that of its first call inside another model, if there was one.
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def opened(model: keras.Model) -> Opened:
    """Lists all that ``model`` computes, nested models opened.

    Args:
        model: a built ``keras.Model``.

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
    return _Walk().run(model)


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

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.shapes: list[tuple] = []
        self.units: dict[int, Unit] = {}
        self.layers: dict[int, tuple[str, keras.layers.Layer]] = {}

    def run(self, model: keras.Model) -> Opened:
        if is_functional(model):
            inputs = [self._new(t) for t in _tensors(tape(model).inputs)]
            outputs = self._open(model, "", inputs)
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

    def _open(self, model: keras.Model, prefix: str, inputs: list[int]) -> list[int]:
        this = tape(model)
        numbers = {id(t): n for t, n in zip(_tensors(this.inputs), inputs, strict=True)}
        for step in this.steps:
            reads = tuple(numbers[id(t)] for t in _tensors((step.args, step.kwargs)))
            path = f"{prefix}{step.op.name}"
            if is_functional(step.op):
                self.layers.setdefault(id(step.op), (path, step.op))
                given = _given(step.op, step.args, step.kwargs)
                made = self._open(step.op, f"{path}/", [numbers[id(t)] for t in given])
            else:
                made = [self._new(t) for t in _tensors(step.outputs)]
                units = self._own(step.op, path) if isinstance(step.op, keras.layers.Layer) else ()
                self.calls.append(Call(step.op, path, reads, tuple(made), units))
            numbers.update({id(t): n for t, n in zip(_tensors(step.outputs), made, strict=True)})
        return [numbers[id(t)] for t in _tensors(this.outputs)]

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


def _given(model: keras.Model, args: tuple, kwargs: dict) -> list[keras.KerasTensor]:
    """The inputs of a call of a nested model in the order of its own: Keras takes a dict by the
    names of the inputs, and masks are no inputs.
    """
    value = args[0] if args else kwargs["inputs"]
    if isinstance(value, dict) and not isinstance(ends(model)[0], dict):
        value = [value[t.name] for t in model.inputs]
    return _tensors(value)


def _tensors(structure: Any) -> list[keras.KerasTensor]:
    return [t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)]


def replay(model: keras.Model, inputs: Any) -> list[keras.KerasTensor]:
    """Computes ``model`` on new inputs with nested models opened, and keeps every tensor.

    Args:
        model: a functional or sequential model.
        inputs: symbolic tensors in the structure of ``model.input``.

    Returns:
        The tensors, numbered as in `opened`. The layers and variables are the model's own.
    """
    tensors: list[keras.KerasTensor] = []

    def run(model: keras.Model, given: list[keras.KerasTensor]) -> list[keras.KerasTensor]:
        this = tape(model)
        now = {id(t): n for t, n in zip(_tensors(this.inputs), given, strict=True)}

        def swap(x):
            return now.get(id(x), x)

        for step in this.steps:
            args, kwargs = keras.tree.map_structure(swap, (step.args, step.kwargs))
            if is_functional(step.op):
                made = run(step.op, _given(step.op, args, kwargs))
            else:
                made = _tensors(step.op(*args, **kwargs))
                tensors.extend(made)
            now.update({id(t): n for t, n in zip(_tensors(step.outputs), made, strict=True)})
        return [now[id(t)] for t in _tensors(this.outputs)]

    given = _tensors(inputs)
    tensors.extend(given)
    run(model, given)
    return tensors
