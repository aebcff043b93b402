"""Which part of a model is its head, and which its backbone."""

from __future__ import annotations

import dataclasses

import keras

from finetune_keras import graph

__all__ = ["HEAD", "PREPROCESSING", "Parts", "activation", "classifier", "parts"]

HEAD = "ftk_head_"
PREPROCESSING = "ftk_preprocessing_"

_SQUASHING = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model, opened and divided.

    Attributes:
        model: the model.
        opened: its graph.
        head_calls: indices into ``opened.calls`` of the head.
        head_units: the variables of the head.
        rule: how the head was found, in words; empty if the model has none.
        counted: the layers as ``select.first`` and ``select.last`` count them: the backbone's
            own ``.layers``, then the head's; of a model not built here, its ``.layers``.
        head_counted: how many of ``counted``, from the end, are the head's.
    """

    model: keras.Model
    opened: graph.Opened
    head_calls: frozenset[int]
    rule: str
    counted: tuple[keras.layers.Layer, ...]
    head_counted: int

    @property
    def head_units(self) -> tuple[graph.Unit, ...]:
        first: dict[int, graph.Unit] = {}
        shared = {
            id(u.variable)
            for i, call in enumerate(self.opened.calls)
            if i not in self.head_calls
            for u in call.units
        }
        for i in sorted(self.head_calls):
            for unit in self.opened.calls[i].units:
                if id(unit.variable) not in shared:
                    first.setdefault(id(unit.variable), unit)
        return tuple(first.values())


def parts(model: keras.Model) -> Parts:
    """Opens ``model`` and finds its head.

    In a model from `finetune_keras.build` the head is made of the layers named
    ``ftk_head_*``. In any other model it is, by the first rule that fits: what follows the one
    nested model that holds most of the parameters; what follows the pooling or flattening that
    turns maps or sequences into vectors; the last dense layer, if it looks like a classifier.
    """
    seen = graph.opened(model)
    top = [layer.name for layer in model.layers]
    if any(name.startswith(HEAD) for name in top):
        head = {i for i, c in enumerate(seen.calls) if c.path.startswith(HEAD)}
        return Parts(model, seen, frozenset(head), f"layers named {HEAD}*", *_counted(model))
    head, rule = _foreign_head(model, seen)
    return Parts(model, seen, frozenset(head), rule, tuple(model.layers), 0)


def _counted(model: keras.Model) -> tuple[tuple[keras.layers.Layer, ...], int]:
    head = [layer for layer in model.layers if layer.name.startswith(HEAD)]
    rest = [layer for layer in model.layers if not layer.name.startswith(HEAD)]
    nested = [layer for layer in rest if isinstance(layer, keras.Model)]
    # The last one before the head: augmentation may be a Sequential too.
    body = [layer for network in nested[-1:] for layer in network.layers]
    return (*body, *head), len(head)


def _foreign_head(model: keras.Model, seen: graph.Opened) -> tuple[set[int], str]:
    if seen.closed or len(seen.outputs) != 1:
        return set(), ""
    flat_output = len(seen.shapes[seen.outputs[0]]) == 2
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    big = max(nested, key=lambda m: m.count_params(), default=None)
    if big is not None and flat_output and 2 * big.count_params() > model.count_params():
        inside = [i for i, c in enumerate(seen.calls) if _within(c.path, big.name)]
        after = graph.descendants(seen, inside) - set(inside)
        if any(seen.calls[i].units for i in after):
            return after, f"what follows the nested model {big.name!r}"
    if flat_output:
        pooled = [i for i, c in enumerate(seen.calls) if _flattens(seen, c)]
        after = graph.descendants(seen, pooled[-1:]) - set(pooled[-1:])
        if any(seen.calls[i].units for i in after):
            return after, f"what follows {seen.calls[pooled[-1]].path!r}"
    last = classifier(seen)
    if last is not None:
        return set(range(last, len(seen.calls))), "the last dense layer"
    return set(), ""


def _within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}/")


def _flattens(seen: graph.Opened, call: graph.Call) -> bool:
    """Whether the call turns maps or sequences into one vector an example."""
    return any(len(seen.shapes[t]) > 2 for t in call.inputs) and all(
        len(seen.shapes[t]) == 2 for t in call.outputs
    )


def classifier(seen: graph.Opened) -> int | None:
    """Index of the call that is a classifier's last weighted layer, or None.

    It is a ``Dense`` (or a 1x1 convolution that a softmax or sigmoid follows), the last call that
    has weights, on the only path to the only output; a ``Dense`` with an activation such as ReLU
    makes features, not classes.
    """
    if seen.closed or len(seen.outputs) != 1:
        return None
    weighted = [i for i, c in enumerate(seen.calls) if c.units]
    if not weighted:
        return None
    last = weighted[-1]
    made = {t for c in seen.calls[last:] for t in c.outputs}
    if any(t not in made for c in seen.calls[last + 1 :] for t in c.inputs):
        return None  # something runs beside it, a residual for one
    op = seen.calls[last].op
    later = [activation(c.op) for c in seen.calls[last + 1 :]]
    squashed = any(a in _SQUASHING for a in later)
    own = activation(op)
    if isinstance(op, keras.layers.Dense):
        fits = own in (*_SQUASHING, "linear")
        fits = fits and all(_passes(c.op) for c in seen.calls[last + 1 :])
        return last if fits and len(seen.shapes[seen.outputs[0]]) == 2 else None
    if isinstance(op, keras.layers.Conv2D) and tuple(op.kernel_size) == (1, 1):
        return last if squashed or own in _SQUASHING else None
    return None


def _passes(op: keras.Operation) -> bool:
    """Whether what follows a classifier's last layer leaves classes classes."""
    plain = keras.layers.Identity | keras.layers.Dropout | keras.layers.Flatten
    return activation(op) in _SQUASHING or isinstance(op, plain)


def activation(op: keras.Operation) -> str:
    """Name of the activation an operation applies, ``""`` if it is none."""
    if isinstance(op, keras.layers.Softmax):
        return "softmax"
    function = getattr(op, "activation", None)
    if function is not None:
        return getattr(function, "__name__", type(function).__name__)
    name = type(op).__name__.lower()
    return name if name in _SQUASHING else ""
