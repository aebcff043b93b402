"""Surgery: a model with other layers in place of some, all else shared with the first.

The graph is computed again on new inputs, with the new layers where the old ones were. Models
that hold a new layer, or get another shape than they were made for, are made again under their
own names, so that paths stay what they were.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from finetune_keras._errors import SelectionError, WeightsError, nearest, sentence
from finetune_keras.tape import ends, given, is_functional, tape, tensors

__all__ = ["locate", "rebuild", "replace"]

_Path = tuple[str, ...]


def replace(model: keras.Model, changes: Mapping[str, keras.layers.Layer | None]) -> keras.Model:
    """The model with other layers in place of some; the rest is shared with it.

    The layers, variables and flags of all that is not replaced are those of ``model``, which
    stays as it was (``keras.models.clone_model`` first where sharing is not wanted). The result
    is a plain, uncompiled ``keras.Model``, or a ``keras.Sequential`` for one, of the same name.

    Args:
        model: functional or sequential, with models nested in it or not.
        changes: for each layer's (or operation's) name the new layer, or ``None`` to take the
            old one out: an ``Identity`` stands in its place then. A name also finds a layer in a
            nested model; where it is ambiguous, give its path, such as
            ``"resnet50/conv1_conv"``. A layer that is called several times is replaced in
            all of its calls.

    Returns:
        The new model. A new layer takes the name of the old one, unless it has been called
        before, in another model perhaps: it keeps its own then. It starts with the weights it
        has, or at random.

    Raises:
        SelectionError: for a name that is unknown or ambiguous, or a model without a graph.
        WeightsError: if a layer downstream gets a shape that its weights are not for.
        ValueError: if a layer downstream does not take the new shape, or names clash.

    Examples:
        >>> old = keras.Sequential(
        ...     [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, strides=2, name="a"),
        ...      keras.layers.ReLU(name="b"), keras.layers.Conv2D(2, 3, name="c")])
        >>> new = replace(old, {"a": keras.layers.Conv2D(4, 5, padding="same"), "b": None})
        >>> new.output_shape, [layer.name for layer in new.layers]
        ((None, 6, 6, 2), ['a', 'b', 'c'])
        >>> new.get_layer("c") is old.get_layer("c"), old.output_shape
        (True, (None, 1, 1, 2))
    """
    if not isinstance(changes, Mapping) or not changes:
        raise TypeError(
            "graph.replace takes {name: new layer or None, ...} with one name at least; given "
            f"{changes!r}"
        )
    for name, new in changes.items():
        if new is not None and not isinstance(new, keras.layers.Layer):
            raise TypeError(
                f"graph.replace puts a Keras layer or None in the place of {name!r}; given {new!r}"
            )
    by_path: dict[_Path, keras.layers.Layer | None] = {}
    for name, new in changes.items():
        path = locate(model, name)
        twice = next((p for p in by_path if p[: len(path)] == path[: len(p)]), None)
        if twice is not None:
            raise SelectionError(
                f"{name!r} and {'/'.join(twice)!r} are the same layer, or one is in the other: "
                "replace one of them"
            )
        by_path[path] = new
    return rebuild(model, by_path)


def locate(model: keras.Model, name: str, also: Iterable[str] = ()) -> _Path:
    """The path of the layer or operation that ``name`` means, as a tuple of names.

    Args:
        model: functional or sequential.
        name: a name, or a path where the name alone is ambiguous.
        also: other names that the caller takes, for the error.

    Raises:
        SelectionError: if there is none, or more than one, or no graph to look in.
    """
    if not is_functional(model):
        raise SelectionError(
            f"{name!r} needs a graph to be found in, and {getattr(model, 'name', model)!r} is a "
            "subclassed (or unbuilt) model: hand in the functional part of it"
        )
    if not isinstance(name, str):
        raise SelectionError(f"a layer is meant by its name or path; given {name!r}")
    paths = list(dict.fromkeys(_paths(model)))
    wanted = tuple(name.split("/"))
    hits = [p for p in paths if p == wanted] or [p for p in paths if p[-len(wanted) :] == wanted]
    if len(hits) > 1:
        shown = ", ".join(repr("/".join(p)) for p in hits)
        raise SelectionError(f"{name!r} is ambiguous: give one of {shown}")
    if not hits:
        near = _near(wanted, paths, also)
        raise SelectionError(f"no layer {name!r} in the model {model.name!r}{near}")
    return hits[0]


def _near(wanted: _Path, paths: list[_Path], also: Iterable[str]) -> str:
    """The end of a message about a path that is not there: what is near it."""
    holder = wanted[:-1]
    beside = [p[-1] for p in paths if holder and p[:-1][-len(holder) :] == holder]
    if holder and not beside and any(p[-len(holder) :] == holder for p in paths):
        return f": what {'/'.join(holder)!r} holds cannot be replaced singly, only the whole"
    known = dict.fromkeys(beside or [*also, *(p[-1] for p in paths)])
    return f"; {nearest(wanted[-1], known)}"


def _paths(model: keras.Model, before: _Path = ()):
    for step in tape(model).steps:
        path = (*before, step.op.name)
        yield path
        if is_functional(step.op):
            yield from _paths(step.op, path)


def rebuild(
    model: keras.Model, changes: Mapping[_Path, keras.layers.Layer | None], inputs: Any = None
) -> keras.Model:
    """`replace` by paths that `locate` gave, on other inputs if wanted.

    Args:
        model: functional or sequential.
        changes: by path, the new layer or ``None``.
        inputs: symbolic inputs in the structure of the model's own, in place of new ones of the
            same shapes.
    """
    new, renamed = {}, []
    try:
        for path, layer in changes.items():
            if layer is None:
                layer = keras.layers.Identity(name=path[-1])
            elif not _called(layer) and layer.name != path[-1]:
                renamed.append((layer, layer.name))
                layer.name = path[-1]
            new[path] = layer
        return _Rebuild(model.name).run(model, new, (), inputs)
    except BaseException:
        for layer, name in renamed:
            layer.name = name
        raise


def _called(layer: keras.layers.Layer) -> bool:
    """Whether a layer has a place in some graph already, where its name may be relied on."""
    try:
        return layer.output is not None
    except AttributeError:
        return False


class _Rebuild:
    """One pass over a model; a nested model that is called twice is made again once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.made: dict[_Path, keras.Model] = {}

    def run(self, model: keras.Model, new: dict, before: _Path, inputs: Any) -> keras.Model:
        this = tape(model)
        if inputs is None:
            inputs = keras.tree.map_structure(_like, this.inputs)
        now = {id(t): n for t, n in zip(tensors(this.inputs), tensors(inputs), strict=True)}
        ops = []
        for step in this.steps:
            path = (*before, step.op.name)
            args, kwargs = keras.tree.map_structure(
                lambda x: now.get(id(x), x), (step.args, step.kwargs)
            )
            if path in new:
                op = new[path]
                args, kwargs = _fitting(op, args, kwargs, path)
            else:
                op = self._nested(step.op, new, path, args, kwargs)
            made = tensors(_call(op, args, kwargs, path))
            old = tensors(step.outputs)
            if len(made) != len(old):
                raise ValueError(
                    f"{'/'.join(path)!r} gave {len(old)} tensors and the layer in its place, "
                    f"{op.name!r}, gives {len(made)}"
                )
            now.update({id(t): n for t, n in zip(old, made, strict=True)})
            ops.append(op)
        self._distinct(ops)
        if isinstance(model, keras.Sequential):
            return keras.Sequential([*tensors(inputs), *ops], name=model.name)
        outputs = keras.tree.map_structure(lambda t: now[id(t)], this.outputs)
        return keras.Model(inputs, outputs, name=model.name)

    def _nested(self, op, new: dict, path: _Path, args: tuple, kwargs: dict) -> keras.Operation:
        """``op``, or if it is a model that cannot stay as it is, another one."""
        if not is_functional(op):
            return op
        own = given(op, args, kwargs)
        fits = all(_takes(mine, t) for mine, t in zip(tensors(ends(op)[0]), own, strict=True))
        if fits and not any(p[: len(path)] == path for p in new):
            return op
        if path not in self.made:
            shapes = iter(own)
            inputs = keras.tree.map_structure(
                lambda t: _like(t, _wider(t, next(shapes))), tape(op).inputs
            )
            self.made[path] = self.run(op, new, path, inputs)
        return self.made[path]

    def _distinct(self, ops: list) -> None:
        names: dict[str, int] = {}
        for op in ops:
            if names.setdefault(op.name, id(op)) != id(op):
                raise ValueError(
                    f"two layers of {self.name!r} would be named {op.name!r}: give the new one "
                    "another name"
                )


def _like(tensor: keras.KerasTensor, shape: tuple | None = None) -> keras.KerasTensor:
    shape = tensor.shape if shape is None else shape
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)


def _wider(mine: keras.KerasTensor, got: keras.KerasTensor) -> tuple:
    """The shape of a nested model's new input: its own where that takes what it gets."""
    return tuple(mine.shape) if _takes(mine, got) else tuple(got.shape)


def _takes(mine: keras.KerasTensor, got: keras.KerasTensor) -> bool:
    if len(mine.shape) != len(got.shape):
        return True  # Keras adds or drops a last axis of 1 itself
    return all(n is None or n == m for n, m in zip(mine.shape, got.shape, strict=True))


def _fitting(op: keras.layers.Layer, args: tuple, kwargs: dict, path: _Path) -> tuple[tuple, dict]:
    """Of the arguments of the old call, those that the new layer takes: every tensor, and such
    as ``training``.
    """
    args = tuple(a for a in args if tensors(a))
    known = inspect.signature(op.call).parameters
    kwargs = {k: v for k, v in kwargs.items() if k in known or (tensors(v) and not args)}
    count = len(tensors((args, kwargs)))
    if isinstance(op, keras.layers.Identity) and count != 1:
        raise ValueError(
            f"{'/'.join(path)!r} takes {count} tensors, so taking it out leaves none to go on "
            "with: give a layer that makes one of them"
        )
    return args, kwargs


def _call(op: keras.Operation, args: tuple, kwargs: dict, path: _Path) -> Any:
    shapes = [tuple(t.shape) for t in tensors((args, kwargs))]
    got = " and ".join(map(str, shapes))
    built = _built_on(op)
    try:
        misfit = _misfit(op, shapes, built)
        outputs = None if misfit else op(*args, **kwargs)
    except Exception as e:  # Keras and its backends raise many kinds for a shape that is wrong
        misfit = e
    if not misfit:
        return outputs
    if built is not None and getattr(op, "weights", None):
        raise WeightsError(
            f"{'/'.join(path)!r} gets {got} and has weights for {built}: replace it too, or give "
            "a new layer before it whose output has the old shape"
        ) from None
    raise ValueError(f"{'/'.join(path)!r} does not take {got}: {sentence(misfit)}") from None


def _built_on(op: keras.Operation) -> tuple | None:
    """The shape that a layer's weights were made for."""
    config = op.get_build_config() if isinstance(op, keras.layers.Layer) and op.built else None
    shape = (config or {}).get("input_shape")
    return tuple(shape) if isinstance(shape, list | tuple) else None


def _misfit(op: keras.Operation, shapes: list[tuple], built: tuple | None) -> str:
    """What Keras does not notice before data flows: a layer normalisation, for one, takes any
    symbolic input.
    """
    if built is None or not shapes or getattr(op, "input_spec", None) or not op.weights:
        return ""
    axes = getattr(op, "axis", None)
    axes = [axes] if isinstance(axes, int) else axes
    if not isinstance(axes, list | tuple) or len(built) != len(shapes[0]):
        return ""
    return "another size" if any(built[a] != shapes[0][a] for a in axes) else ""
