"""One level of a model: its calls in the order in which it makes them.

`tape` records a functional or sequential model with public API only. `inside` also looks into a
layer that only chains others, such as the encoder of a vision transformer.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import keras

from finetune_keras import _private

__all__ = [
    "Step",
    "Tape",
    "ends",
    "given",
    "inside",
    "is_block",
    "is_functional",
    "is_random",
    "tape",
    "tensors",
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
    # Around a compiled model Keras compiles the clone too, which would cost the optimizer's
    # memory and fail on a loss that does not serialise; a bare model on the same tensors does not.
    result = _recorded(keras.Model(*ends(model)))
    _tapes[model] = (key, result)
    return result


def _recorded(bare: keras.Model) -> Tape:
    steps: list[Step] = []

    def record(op, *args, **kwargs):
        outputs = op(*args, **kwargs)
        steps.append(Step(op, args, kwargs, outputs))
        return outputs

    clone = keras.models.clone_model(bare, clone_function=lambda op: op, call_function=record)
    return Tape(clone.input, tuple(steps), clone.output)


def ends(model: keras.Model) -> tuple[Any, Any]:
    """Symbolic inputs and outputs, as one tensor or in their structure."""
    if isinstance(model, keras.Sequential):
        # Its ``output`` is that of its first call inside another model, if there was one.
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def tensors(structure: Any) -> list[keras.KerasTensor]:
    """The symbolic tensors of a structure, in Keras' order."""
    return [t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)]


def inside(step: Step, chains: bool = True) -> tuple[Tape, list[keras.KerasTensor]] | None:
    """What a call computes where that can be listed: of a nested model, or of a chain of layers.

    Args:
        step: the call.
        chains: whether to look into chains of layers too.

    Returns:
        The tape of what was called, and the tensors of ``step`` that are its inputs, in the order
        of the tape's; or ``None``.
    """
    if is_functional(step.op):
        return tape(step.op), given(step.op, step.args, step.kwargs)
    found = _chain(step) if chains else None
    return None if found is None else (found, tensors((step.args, step.kwargs)))


def given(model: keras.Model, args: tuple, kwargs: dict) -> list[keras.KerasTensor]:
    """The inputs of a call of a nested model in the order of its own: Keras takes a dict by the
    names of the inputs, and masks are no inputs.
    """
    value = args[0] if args else kwargs["inputs"]
    if isinstance(value, dict) and not isinstance(ends(model)[0], dict):
        value = [value[t.name] for t in model.inputs]
    return tensors(value)


_chains: weakref.WeakKeyDictionary[keras.layers.Layer, Tape | None] = weakref.WeakKeyDictionary()


def _chain(step: Step) -> Tape | None:
    """The tape of a layer that does nothing but call blocks (layers of layers), one after
    another: the encoder of a ViT, a stage of a Swin transformer. Others are one call: what holds
    an attention and a dense layer is meant as one block.
    """
    layer = step.op
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.Model):
        return None
    if layer not in _chains:
        several = sum(map(is_block, _private.sublayers(layer))) > 1
        _chains[layer] = _traced(step) if several else None
    return _chains[layer]


def is_block(op: Any) -> bool:
    """Whether an operation is a layer of several layers with weights: a block to its author."""
    if not isinstance(op, keras.layers.Layer):
        return False
    return sum(bool(x.weights) for x in _private.sublayers(op)) > 1


def is_random(op: Any) -> bool:
    """Whether an operation draws random numbers in training: it, or a layer in it, holds a
    ``keras.random.SeedGenerator``.

    Examples:
        >>> is_random(keras.layers.Dropout(0.5)), is_random(keras.layers.Dropout(0.0))
        (True, False)
    """
    if not isinstance(op, keras.layers.Layer):
        return False
    own = any(isinstance(v, keras.random.SeedGenerator) for v in vars(op).values())
    return own or any(is_random(x) for x in _private.sublayers(op))


def _traced(step: Step) -> Tape | None:
    fresh: list[keras.KerasTensor] = []

    def anew(x):
        if not isinstance(x, keras.KerasTensor):
            return x
        fresh.append(keras.Input(batch_shape=x.shape, dtype=x.dtype))
        return fresh[-1]

    args, kwargs = keras.tree.map_structure(anew, (step.args, step.kwargs))
    try:
        # On symbolic tensors ``call`` leaves a graph behind, if it is made of layers and
        # operations only.
        this = _recorded(keras.Model(fresh, step.op.call(*args, **kwargs)))
    except Exception:
        return None  # it does something that only its own trace can follow
    owned = {
        id(v) for s in this.steps if isinstance(s.op, keras.layers.Layer) for v in s.op.weights
    }
    complete = owned == {id(v) for v in step.op.weights}
    return this if complete and _is_chain(this) else None


def _is_chain(this: Tape) -> bool:
    """Whether each call reads what the last one made, and of the inputs what they like."""
    given = {id(t) for t in tensors(this.inputs)}
    last = None
    for step in this.steps:
        reads = {id(t) for t in tensors((step.args, step.kwargs))} - given
        if not isinstance(step.op, keras.layers.Layer) or len(tensors(step.outputs)) != 1:
            return False
        if last is not None and reads != {last}:
            return False
        last = id(tensors(step.outputs)[0])
    return True
