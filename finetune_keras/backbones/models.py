"""A model of the user's own as a backbone: its classifier dropped, or cut at a named layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from finetune_keras import graph, parts, tape

__all__ = ["any_batch", "cut", "without_classifier", "without_head"]


def any_batch(model: keras.Model) -> keras.Model:
    """The model for batches of any size, on shared layers, where it was built for one size; as it
    is if its graph depends on that size, as of stateful layers.

    Examples:
        >>> fixed = keras.Sequential([keras.Input(batch_shape=(1, 4)), keras.layers.Dense(2)])
        >>> any_batch(fixed).input_shape
        (None, 4)
    """
    if not graph.is_functional(model) or all(t.shape[0] is None for t in model.inputs):
        return model
    if any(getattr(layer, "stateful", False) for _, layer in graph.opened(model).layers):
        return model

    def free(t: keras.KerasTensor) -> keras.KerasTensor:
        return keras.Input(batch_shape=(None, *t.shape[1:]), dtype=t.dtype, name=t.name)

    inputs = keras.tree.map_structure(free, graph.ends(model)[0])
    try:
        made = keras.models.clone_model(model, inputs, clone_function=lambda layer: layer)
    except Exception:  # of a layer that was made for one size, of many kinds
        return model
    return made if all(t.shape[0] is None for t in made.outputs) else model


def cut(model: keras.Model, name: str) -> tuple[keras.Model, tuple[str, ...]]:
    """The model up to and with the layer ``name``; layers and variables are shared with it.

    Args:
        model: a functional or sequential model.
        name: of a layer or operation, also inside a nested model, or a path where the name alone
            is ambiguous; or a key of the model's output, where that is a dict. Inputs that the
            features do not depend on are dropped.

    Returns:
        The shorter model, and the names of the layers that are not in it.

    Raises:
        SelectionError: if there is no such layer, or the model's graph cannot be read.
    """
    outputs = graph.ends(model)[1] if graph.is_functional(model) else None
    keys = list(outputs) if isinstance(outputs, dict) else []
    if name in keys:
        this = graph.tape(model)
        return _short(this, this.outputs[name], model.name)
    # A layer that is called twice is cut at its last call.
    short, dropped = _cut_path(model, list(graph.locate(model, name, also=keys)))
    if isinstance(short, keras.Sequential):
        return short, dropped
    short, _ = _short(graph.tape(short), graph.tape(short).outputs, short.name)
    return short, dropped


def without_classifier(model: keras.Model) -> tuple[keras.Model, tuple[str, ...]]:
    """The model without its last classifier and what follows it; as it is, if it has none.

    A head that this library built is dropped whole.

    Returns:
        The model that gives features, and the names of the layers that are not in it.
    """
    if not graph.is_functional(model):
        return model, ()
    divided = parts.parts(model)
    seen = divided.opened
    if divided.rule.startswith("layers named"):
        drop = divided.head_calls
    else:
        drop = {parts.classifier(seen)} - {None}
    before = _read_by(seen, drop)
    if before is None:
        return model, ()  # the classifier is all there is
    short, dropped = _cut_path(model, before.path.split("/"))
    return short, dropped


def without_head(model: keras.Model) -> keras.Model | None:
    """The model up to the features that its head reads, on shared layers; ``None`` if it has no
    head, or one that reads several tensors.

    Examples:
        >>> x = inputs = keras.Input((8, 8, 3))
        >>> x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(x))
        >>> for width in (16, 2):
        ...     x = keras.layers.Dense(width)(x)
        >>> without_head(keras.Model(inputs, x)).output_shape
        (None, 4)
    """
    if not graph.is_functional(model):
        return None
    divided = parts.parts(model)
    before = _read_by(divided.opened, divided.head_calls)
    if before is None:
        return None
    path = before.path.split("/")
    names = {divided.opened.calls[i].path.split("/")[0] for i in divided.head_calls}
    if path[0] in names:  # the head begins inside a nested model
        return _cut_path(model, path)[0]
    if isinstance(model, keras.Sequential):
        return _cut_sequential(model, path[:1])[0]
    this = graph.tape(model)
    head = [s for s in this.steps if s.op.name in names]
    read = {id(t) for s in head for t in keras.tree.flatten((s.args, s.kwargs))}
    step = [s for s in this.steps if s.op.name == path[0]][-1]
    features = [t for t in keras.tree.flatten(step.outputs) if id(t) in read]
    return keras.Model(this.inputs, features[0], name=model.name)


def _read_by(seen: graph.Opened, calls: Iterable[int]) -> graph.Call | None:
    """The call whose output is all that ``calls`` read from outside themselves and the inputs."""
    made = {t for i in calls for t in seen.calls[i].outputs}
    read = {t for i in calls for t in seen.calls[i].inputs} - made - set(seen.inputs)
    if len(read) != 1:
        return None
    return next((c for c in seen.calls if read.intersection(c.outputs)), None)


def _cut_path(model: keras.Model, path: list[str]) -> tuple[keras.Model, tuple[str, ...]]:
    """Cuts at a path; nested models stay nested, the one with the cut in it is shortened."""
    if isinstance(model, keras.Sequential):
        return _cut_sequential(model, path)
    this = graph.tape(model)
    step = [s for s in this.steps if s.op.name == path[0]][-1]
    inner_dropped: tuple[str, ...] = ()
    if len(path) > 1:
        inner, inner_dropped = _cut_path(step.op, path[1:])
        outputs = inner(*step.args, **step.kwargs)
    else:
        outputs = step.outputs
    short = keras.Model(this.inputs, outputs, name=model.name)
    kept = {id(op) for op in short.operations} | {id(step.op)}
    dropped = [s.op.name for s in this.steps if id(s.op) not in kept]
    return short, (*inner_dropped, *dict.fromkeys(dropped))


def _short(this: tape.Tape, outputs: Any, name: str) -> tuple[keras.Model, tuple[str, ...]]:
    """A model of what ``outputs`` depend on, with the inputs that they need."""
    needed = {id(t) for t in tape.tensors(outputs)}
    kept = set()
    for step in reversed(this.steps):
        if any(id(t) in needed for t in tape.tensors(step.outputs)):
            kept.add(id(step.op))
            needed.update(id(t) for t in tape.tensors((step.args, step.kwargs)))
    inputs = this.inputs
    if isinstance(inputs, dict):
        inputs = {k: t for k, t in inputs.items() if id(t) in needed}
    elif isinstance(inputs, list | tuple):
        inputs = [t for t in inputs if id(t) in needed]
    dropped = dict.fromkeys(s.op.name for s in this.steps if id(s.op) not in kept)
    return keras.Model(inputs, outputs, name=name), tuple(dropped)


def _cut_sequential(model: keras.Sequential, path: list[str]) -> tuple[keras.Model, tuple]:
    """The same for a sequential model, which stays one: its ``layers`` have no input layer, and
    ``select.first`` counts as they do.
    """
    at = [layer.name for layer in model.layers].index(path[0])
    kept, dropped = list(model.layers[: at + 1]), [x.name for x in model.layers[at + 1 :]]
    inner: tuple[str, ...] = ()
    if len(path) > 1:
        kept[-1], inner = _cut_path(kept[-1], path[1:])
    start = model.inputs[0]
    first = keras.Input(batch_shape=start.shape, dtype=start.dtype, name=start.name)
    return keras.Sequential([first, *kept], name=model.name), (*inner, *dropped)
