"""From the config of a whole model of Keras 2 to a model of Keras 3, without its weights.

Keras 3 reads such configs itself, but miscounts the calls of nested models (Keras 2 counted the
model's own graph as its first call), and hands on lists where one tensor was meant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from finetune_keras._errors import WeightsError
from finetune_keras.backbones.legacy import config, tf_ops

__all__ = ["Part", "build"]

_MODELS = ("Functional", "Model", "Sequential")
_CONSTANT = "_CONSTANT_VALUE"


@dataclasses.dataclass(frozen=True)
class Part:
    """A layer of the file and what became of it.

    Attributes:
        name: in the file.
        kind: its class in the file.
        layer: the layer that holds its weights, ``None`` for an operation.
        parts: of a nested model, in the file's order.
    """

    name: str
    kind: str
    layer: keras.layers.Layer | None
    parts: tuple[Part, ...] = ()

    def leaves(self) -> Iterator[Part]:
        """The layers in it that are no models, in order."""
        if not self.parts and self.layer is not None:
            yield self
        for part in self.parts:
            yield from part.leaves()


def build(spec: dict[str, Any]) -> tuple[keras.Model, Part]:
    """A model and its parts from ``{"class_name": ..., "config": ...}``.

    Raises:
        WeightsError: for layers that Keras 3 has not, and models without a known input.
    """
    try:
        inner = spec["config"]
        model, part = _model(spec, inner.get("name") if isinstance(inner, dict) else None)
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise WeightsError(f"its config is not whole ({type(e).__name__}: {e})") from e
    if not getattr(model, "inputs", None):
        raise WeightsError(
            f"the model {model.name!r} was saved before it had an input: its layers have no shapes"
        )
    return model, part


def _is_model(spec: dict[str, Any]) -> bool:
    return spec["class_name"] in _MODELS


def _model(spec: dict[str, Any], name: str | None) -> tuple[keras.Model, Part]:
    make = _sequential if spec["class_name"] == "Sequential" else _functional
    if not _is_model(spec):
        raise WeightsError(
            f"the model is of a class of your own, {spec['class_name']!r}: make it in code and "
            "load the file's weights into it"
        )
    return make(spec, name)


def _make(spec: dict[str, Any], name: str) -> tuple[Any, Part]:
    """What is called in the place of an entry, and the part that it is."""
    kind, written = spec["class_name"], spec["config"]
    if _is_model(spec):
        return _model(spec, name)
    if kind in tf_ops.KINDS:
        return name, Part(written.get("name", name), kind, None)
    if kind == "InputLayer":
        return _input(written, name), Part(name, kind, None)
    if written.get("activation") == "hard_sigmoid" and not config.recurs(kind):
        return _hard_sigmoid(spec, name)
    if kind == "TimeDistributed" and _is_model(written["layer"]):
        model, inner = _model(written["layer"], written["layer"]["config"]["name"])
        made = keras.layers.TimeDistributed(model, name=name)
        return made, Part(written.get("name", name), kind, made, inner.parts)
    made = config.layer(spec, name)
    return made, Part(written.get("name", name), kind, made)


def _hard_sigmoid(spec: dict[str, Any], name: str) -> tuple[keras.Model, Part]:
    # Keras 2 had clip(x / 5 + 1/2), Keras 3 has clip(x / 6 + 1/2).
    linear = {**spec, "config": {**spec["config"], "activation": "linear"}}
    inner = config.layer(linear, name)
    gate = [keras.layers.Rescaling(1.2), keras.layers.Activation("hard_sigmoid")]
    both = keras.Sequential([inner, *gate], name=f"{name}_hard_sigmoid")
    return both, Part(spec["config"].get("name", name), spec["class_name"], inner)


def _input(written: dict[str, Any], name: str) -> keras.KerasTensor:
    shape = written.get("batch_input_shape", written.get("batch_shape"))
    for option in ("ragged", "sparse"):
        if written.get(option):
            raise WeightsError(f"the input {name!r} is {option}, which cannot be read")
    dtype = written.get("dtype") or "float32"
    dtype = dtype["config"]["name"] if isinstance(dtype, dict) else dtype
    return keras.Input(batch_shape=shape, dtype=dtype.removeprefix("mixed_"), name=name)


def _names(entries: list[dict[str, Any]]) -> list[str]:
    """Names as Keras 3 allows them, without slashes, each once."""
    found: list[str] = []
    for i, entry in enumerate(entries):
        inner = entry["config"]
        written = inner.get("name") if isinstance(inner, dict) else None
        wanted = (written or entry.get("name") or f"layer_{i}").replace("/", "_")
        name, n = wanted, 0
        while name in found:
            n += 1
            name = f"{wanted}_{n}"
        found.append(name)
    return found


def _sequential(spec: dict[str, Any], name: str | None) -> tuple[keras.Model, Part]:
    written = spec["config"]
    entries = written["layers"] if isinstance(written, dict) else written  # a list until 2.2
    first = entries[0]["config"] if entries else {}
    shape = first.get("batch_input_shape") if isinstance(first, dict) else None
    if shape is None and isinstance(written, dict):
        shape = written.get("build_input_shape")
    made, parts = [], []
    for entry, own in zip(entries, _names(entries), strict=True):
        item, part = _make(entry, own)
        made.append(item)
        parts.append(part)
    if shape is not None and entries[0]["class_name"] != "InputLayer" and not _is_model(entries[0]):
        # An embedding takes numbers of words, whatever its own precision.
        dtype = "int32" if entries[0]["class_name"] == "Embedding" else None
        made.insert(0, keras.Input(batch_shape=shape, dtype=dtype))
    model = keras.Sequential(made, name=name)
    return model, Part(name or "", "Sequential", model, tuple(parts))


def _functional(spec: dict[str, Any], name: str | None) -> tuple[keras.Model, Part]:
    written = spec["config"]
    entries = written["layers"]
    made, parts = {}, []
    for entry, own in zip(entries, _names(entries), strict=True):
        item, part = _make(entry, own)
        made[entry.get("name") or part.name] = item
        parts.append(part)
    calls = _Calls(entries, made)
    calls.run()
    inputs, outputs = (
        keras.tree.map_structure(lambda t: t, _single(calls.tensors(written[key])))
        for key in ("input_layers", "output_layers")
    )
    model = keras.Model(inputs, outputs, name=(name or "model").replace("/", "_"))
    if written.get("trainable") is False:
        model.trainable = False
    return model, Part(name or "", spec["class_name"], model, tuple(parts))


def _single(tensors: Any) -> Any:
    return tensors[0] if isinstance(tensors, list) and len(tensors) == 1 else tensors


class _Calls:
    """The calls of a functional model, each done as soon as what it reads is there."""

    def __init__(self, entries: list[dict[str, Any]], made: dict[str, Any]):
        self.entries = entries
        self.made = made
        self.done: dict[str, list[Any]] = {}
        for entry in entries:
            name = entry["name"]
            # The first call of a nested model was its own graph.
            self.done[name] = [None] if _is_model(entry) else []
            if entry["class_name"] == "InputLayer":
                self.done[name] = [[made[name]]]

    def run(self) -> None:
        waiting = {e["name"]: list(e.get("inbound_nodes") or []) for e in self.entries}
        while any(waiting.values()):
            before = sum(map(len, waiting.values()))
            for entry in self.entries:
                queue = waiting[entry["name"]]
                while queue and self.ready(queue[0]):
                    self.one(entry, queue.pop(0))
            if sum(map(len, waiting.values())) == before:
                stuck = next(name for name, queue in waiting.items() if queue)
                raise WeightsError(f"the layer {stuck!r} reads something that the file has not")

    def one(self, entry: dict[str, Any], node: Any) -> None:
        x, arguments = self.tensors(_single(node)), self.arguments(node)
        if entry["class_name"] in tf_ops.KINDS:
            output = tf_ops.call(entry, x, arguments, self.made[entry["name"]])
        else:
            output = self.layer(entry, x, arguments)
        self.done[entry["name"]].append(keras.tree.flatten(output))

    def layer(self, entry: dict[str, Any], x: Any, arguments: dict[str, Any]) -> Any:
        called = self.made[entry["name"]]
        x = _single(x)
        if isinstance(called, keras.layers.RNN | keras.layers.Bidirectional) and isinstance(
            x, list
        ):
            # Initial states that were tensors came after the input, in one list.
            x, arguments = x[0], {**arguments, "initial_state": x[1:]}
        return called(x, **arguments)

    def leaves(self, node: Any) -> Iterator[list]:
        """All references to tensors in a node, those in keyword arguments too."""
        if self.is_tensor(node):
            yield node
            if len(node) == 4:
                yield from self.leaves(node[3])
        elif isinstance(node, dict):
            for value in node.values():
                yield from self.leaves(value)
        elif isinstance(node, list):
            for value in node:
                yield from self.leaves(value)

    def is_tensor(self, value: Any) -> bool:
        """Whether this is ``[layer, call, output]``, perhaps with keyword arguments."""
        return (
            isinstance(value, list)
            and len(value) in (3, 4)
            and isinstance(value[0], str)
            and (value[0] in self.made or value[0] == _CONSTANT)
            and isinstance(value[1], int)
        )

    def ready(self, node: Any) -> bool:
        """Whether all that a node reads is there; what the file has not never is."""
        return not self.is_lost(node) and all(
            name == _CONSTANT or len(self.done[name]) > call for name, call, *_ in self.leaves(node)
        )

    def is_lost(self, node: Any) -> bool:
        """Whether the first thing that a node reads is of a layer that the file has not."""
        while isinstance(node, list) and node and isinstance(node[0], list):
            node = node[0]
        return isinstance(node, list) and bool(node) and not self.is_tensor(node)

    def tensors(self, value: Any) -> Any:
        """References replaced by the tensors themselves."""
        if self.is_tensor(value):
            name, call, output = value[:3]
            return output if name == _CONSTANT else self.done[name][call][output]
        if isinstance(value, dict):
            return {k: self.tensors(v) for k, v in value.items()}
        return [self.tensors(v) for v in value] if isinstance(value, list) else value

    def arguments(self, node: Any) -> dict[str, Any]:
        """Keyword arguments of a call: they stand with its first tensor."""
        first = next((leaf for leaf in self.leaves(node) if len(leaf) == 4), None)
        return {} if first is None else {k: self.tensors(v) for k, v in first[3].items()}
