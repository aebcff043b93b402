"""What each output of a model gives, and what its loss takes.

A model built here says so in its record. Of any other model it is read off the last activation
and the loss; what these leave open stays empty, and nothing is concluded from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from finetune_keras import _private, graph, parts, record
from finetune_keras.heads.missing import KnownLoss

__all__ = ["Loss", "Output", "activations", "loss_of", "outputs", "pairs"]

# By the name of Keras' class and function: what labels it takes.
_FAMILIES = {
    "sparse": ("SparseCategoricalCrossentropy",),
    "one-hot": ("CategoricalCrossentropy", "CategoricalFocalCrossentropy"),
    "binary": ("BinaryCrossentropy", "BinaryFocalCrossentropy"),
    "regression": (
        "MeanSquaredError",
        "MeanAbsoluteError",
        "MeanAbsolutePercentageError",
        "MeanSquaredLogarithmicError",
        "Huber",
        "LogCosh",
    ),
}
_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names}


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss of one output.

    Attributes:
        name: Keras' name of its class; of a function of the user's own, its name.
        family: ``"sparse"``, ``"one-hot"``, ``"binary"`` or ``"regression"``; empty if unknown.
        from_logits: whether it takes logits.
        ignore_class: the label that it skips.
        function: called on labels and predictions.
        missing: whether labels may be missing, as in `heads.Multi(missing=True)`.
    """

    name: str
    family: str
    from_logits: bool
    ignore_class: int | None
    function: Callable[[Any, Any], Any]
    missing: bool = False


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of a model.

    Attributes:
        name: its key or name where there are several; empty for the only one.
        kind: as in `finetune_keras.record.Output`; empty if unknown.
        size: its last dimension.
        activation: ``"softmax"``, ``"sigmoid"``, ``"linear"``, or empty if the graph does not say.
        loss: its `Loss`, or ``None``.
        recorded: what the model's record says of it, or ``None``.
    """

    name: str
    kind: str
    size: int
    activation: str
    loss: Loss | None
    recorded: record.Output | None

    @property
    def gives(self) -> str:
        """``"probabilities"``, ``"logits"``, or empty if unknown."""
        if self.recorded is not None and self.recorded.kind != "regression":
            return "logits" if self.recorded.from_logits else "probabilities"
        if self.activation in ("softmax", "sigmoid"):
            return "probabilities"
        if self.loss is not None and self.loss.family in ("sparse", "one-hot", "binary"):
            return "logits" if self.loss.from_logits else "probabilities"
        return ""

    def class_name(self, index: int) -> str:
        """The name of a class, its number if it has none."""
        names = self.recorded.class_names if self.recorded is not None else ()
        return names[index] if index < len(names) else str(index)


def pairs(structure: Any, names: list[str] | None = None) -> list[tuple[str, Any]]:
    """Names and leaves of what a model gives or takes: a dict, a list, or one array.

    In the order of ``model.outputs``, whatever that of the dict: it differs by backend.

    Examples:
        >>> pairs({"a": 1, "b": 2})
        [('a', 1), ('b', 2)]
        >>> pairs([1, 2], ["x", "y"]), pairs(1)
        ([('x', 1), ('y', 2)], [('', 1)])
    """
    if isinstance(structure, dict):
        keys = keras.tree.flatten(type(structure)((k, k) for k in structure))
        return [(str(k), structure[k]) for k in keys]
    if isinstance(structure, list | tuple):
        named = names if names and len(names) == len(structure) else map(str, range(10**6))
        return list(zip(named, structure, strict=False))
    return [("", structure)]


def loss_of(given: Any, shape: tuple = ()) -> Loss | None:
    """What is known of a loss, from a name, a function or an object.

    Args:
        given: as in ``model.compile``.
        shape: of the predictions; Keras chooses by it what ``"crossentropy"`` is.

    Examples:
        >>> loss_of("mse").family, loss_of(keras.losses.BinaryCrossentropy(from_logits=True)).name
        ('regression', 'BinaryCrossentropy')
    """
    if given is None:
        return None
    if given in ("crossentropy", "ce"):
        # One-hot or sparse depends on the labels, which Keras looks at too.
        single = bool(shape) and shape[-1] == 1
        given = keras.losses.BinaryCrossentropy() if single else None
        if given is None:
            return Loss("crossentropy", "", False, None, None)
    whole = found = keras.losses.get(given)
    missing = False
    while isinstance(getattr(found, "loss", None), keras.losses.Loss):
        # Losses of this library around one of Keras': what they take is what that takes.
        missing = missing or isinstance(found, KnownLoss)
        found = found.loss
    plain = not isinstance(found, keras.losses.Loss)
    name = getattr(found, "__name__", type(found).__name__) if plain else type(found).__name__
    own = found if plain else type(found)
    camel = "".join(w.capitalize() for w in name.split("_")) if plain else name
    camel = {"LogCosh": "LogCosh", "Logcosh": "LogCosh"}.get(camel, camel)
    keras_own = getattr(own, "__module__", "").split(".")[0] == "keras"
    return Loss(
        name=camel if camel in _FAMILY and keras_own else name,
        family=_FAMILY.get(camel, "") if keras_own else "",
        from_logits=bool(getattr(found, "from_logits", False)),
        ignore_class=getattr(found, "ignore_class", None),
        function=whole,
        missing=missing,
    )


def activations(model: keras.Model) -> list[str]:
    """The activation that makes each output, in the order of ``model.outputs``; empty where the
    graph does not say.
    """
    seen = graph.opened(model)
    if seen.closed:
        return []
    made = {t: c for c in seen.calls for t in c.outputs}
    return [_activation(made, t) for t in seen.outputs]


def _activation(made: dict[int, graph.Call], tensor: int) -> str:
    plain = keras.layers.Identity | keras.layers.Flatten | keras.layers.Reshape
    while tensor in made:
        op = made[tensor].op
        own = parts.activation(op)
        if own in ("softmax", "sigmoid"):
            # A softmax over another axis than the last is no answer for each example.
            return own if getattr(op, "axis", -1) in (-1, None) else ""
        passes = isinstance(op, plain | keras.layers.Activation) and own in ("", "linear")
        if not passes:
            dense = isinstance(op, keras.layers.Dense | keras.layers.Conv2D)
            return "linear" if dense and own == "linear" else ""
        tensor = made[tensor].inputs[0]
    return ""


def outputs(model: keras.Model, predicted: Any) -> list[Output]:
    """What each output of ``model`` is.

    Args:
        model: any built model, compiled or not.
        predicted: what it gives: tensors or arrays, or their structure with anything that has a
            ``shape``.
    """
    given = _private.compile_arguments(model).get("loss") if model.compiled else None
    names = list(getattr(model, "output_names", None) or ())
    found = record.read(model)
    recorded = found.outputs if found is not None else ()
    last = activations(model)
    flat = pairs(predicted, names)
    if len(last) != len(flat):
        last = [""] * len(flat)
    result = []
    for i, (name, value) in enumerate(flat):
        shape = tuple(value.shape)
        size = int(shape[-1]) if shape else 0
        own = _recorded(recorded, name, size, single=len(flat) == 1)
        loss = loss_of(_loss_for(given, name, i, names), shape)
        kind = own.kind if own is not None else _kind(loss, last[i], size)
        result.append(Output(name, kind, size, last[i], loss, own))
    return result


def _recorded(recorded, name: str, size: int, *, single: bool) -> record.Output | None:
    for own in recorded:
        # Of a model with a record nested in it, the output may be another.
        if (own.name == name or (single and len(recorded) == 1)) and own.size == size:
            return own
    return None


def _loss_for(given: Any, name: str, index: int, names: list[str]) -> Any:
    if isinstance(given, dict):
        return given.get(name or (names[0] if len(names) == 1 else name))
    if isinstance(given, list | tuple):
        return given[index] if index < len(given) else None
    return given


def _kind(loss: Loss | None, activation: str, size: int) -> str:
    family = loss.family if loss is not None else ""
    if family in ("sparse", "one-hot") or (activation == "softmax" and size > 1):
        return "classification"
    if family == "binary" or (activation == "sigmoid" and not family):
        return "binary" if size == 1 else "multi_label"
    return "regression" if family == "regression" else ""
