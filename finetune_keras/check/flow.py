"""Real values through a model's graph, one call at a time, to look at them on their way.

What a preprocessing does and what a pretrained network is used to is measured on the data
themselves, not read from a table of networks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras

from finetune_keras import graph

__all__ = ["forward", "watch"]


class _EnoughError(Exception):
    """Ends the walk."""


def forward(model: keras.Model, x: Any) -> Any:
    """What ``model`` predicts in inference, as NumPy arrays; nothing in the model changes."""
    # A layer of the user's own may write to its state in inference too: the scope drops it.
    with keras.StatelessScope():
        given = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
        out = model(given, training=False)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, out)


def watch(
    model: keras.Model, x: Any, see: Callable[[keras.Operation, list[Any]], bool | None]
) -> None:
    """Computes ``model`` call by call, nested models opened, in inference.

    Args:
        model: a functional or sequential model.
        x: a batch, in the structure of its inputs.
        see: called before each call with the operation and the tensors it reads; the walk ends
            when it returns true.
    """
    with keras.StatelessScope():
        given = [keras.ops.convert_to_tensor(v) for v in keras.tree.flatten(x)]
        given = [
            keras.ops.cast(v, t.dtype) if "float" in str(t.dtype) else v
            for v, t in zip(given, model.inputs, strict=True)
        ]
        try:
            _run(model, given, see)
        except _EnoughError:
            return


def _run(model: keras.Model, given: list[Any], see) -> list[Any]:
    this = graph.tape(model)
    values = dict(zip(map(id, _symbols(this.inputs)), given, strict=True))

    def now(part):
        return values.get(id(part), part)

    for step in this.steps:
        args, kwargs = keras.tree.map_structure(now, (step.args, step.kwargs))
        reads = [values[id(t)] for t in _symbols((step.args, step.kwargs))]
        if graph.is_functional(step.op):
            made = _run(step.op, reads, see)
        else:
            if see(step.op, reads):
                raise _EnoughError
            # Random layers augment unless told not to: outside of a model nobody tells them.
            if isinstance(step.op, keras.layers.Layer) and _takes_training(step.op):
                kwargs = {**kwargs, "training": False}
            made = keras.tree.flatten(step.op(*args, **kwargs))
        values.update(zip(map(id, _symbols(step.outputs)), made, strict=True))
    return [values[id(t)] for t in _symbols(this.outputs)]


def _takes_training(layer: keras.layers.Layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters


def _symbols(structure: Any) -> list[keras.KerasTensor]:
    return [t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)]
