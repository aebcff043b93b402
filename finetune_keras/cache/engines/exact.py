"""The exact engine: Keras' own pass, on PyTorch with tensors dropped once they were read.

On TensorFlow and JAX ``predict_on_batch`` compiles the pass, and the compiler frees what is not
needed any more. On PyTorch Keras runs it call by call and keeps every tensor until the end; here
a tensor goes after its last use. The operations and their order are the same, so the results are
equal to the bit.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from finetune_keras.cache.engines.engine import Run
from finetune_keras.tape import Step, Tape, ends, given, is_functional, tape, tensors

__all__ = ["runner"]


def runner(model: keras.Model) -> Run:
    """A function from a flat list of arrays to the flat list of the model's outputs."""
    if keras.backend.backend() == "torch" and is_functional(model):
        return _freeing(model)
    structure = ends(model)[0]

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = model.predict_on_batch(keras.tree.pack_sequence_as(structure, list(arrays)))
        return keras.tree.flatten(found)

    return run


def _freeing(model: keras.Model) -> Run:
    import torch

    plan = _planned(tape(model))
    dtypes = [t.dtype for t in tensors(ends(model)[0])]

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            batch = map(keras.ops.convert_to_tensor, arrays, dtypes)
            return [keras.ops.convert_to_numpy(x) for x in _follow(plan, list(batch))]

    return run


@dataclasses.dataclass(frozen=True)
class _Planned:
    """One call: what it reads where it is a nested model, and what nobody reads after it."""

    step: Step
    inner: _Plan | None
    kwargs: dict[str, Any]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    drops: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The calls of one level. Tensors are known by the ids of the tape's symbolic ones."""

    tape: Tape  # keeps the ids valid
    inputs: tuple[int, ...]
    calls: tuple[_Planned, ...]
    outputs: tuple[int, ...]


def _planned(this: Tape) -> _Plan:
    outputs = _ids(this.outputs)
    last: dict[int, int] = {}
    for i, step in enumerate(this.steps):
        for key in (*_ids(step.outputs), *_ids((step.args, step.kwargs))):
            last[key] = i
    calls = []
    for i, step in enumerate(this.steps):
        drops = tuple(k for k, n in last.items() if n == i and k not in outputs)
        inner, reads = _inner(step)
        kwargs = {**step.kwargs, **_inference(step.op)}
        calls.append(_Planned(step, inner, kwargs, reads, _ids(step.outputs), drops))
    return _Plan(this, _ids(this.inputs), tuple(calls), outputs)


def _inner(step: Step) -> tuple[_Plan | None, tuple[int, ...]]:
    """The plan of a nested model, unless it casts or reshapes what it is given."""
    if is_functional(step.op):
        this, reads = tape(step.op), given(step.op, step.args, step.kwargs)
        pairs = list(zip(tensors(this.inputs), reads, strict=True))
        if all(a.dtype == b.dtype and len(a.shape) == len(b.shape) for a, b in pairs):
            return _planned(this), tuple(map(id, reads))
    return None, ()


def _inference(op: keras.Operation) -> dict[str, bool]:
    """``training=False`` for what takes it, as Keras passes it in ``predict``, also over what the
    graph was made with.
    """
    if not isinstance(op, keras.layers.Layer):
        return {}
    return {"training": False} if "training" in inspect.signature(op.call).parameters else {}


def _ids(structure: Any) -> tuple[int, ...]:
    return tuple(map(id, tensors(structure)))


def _follow(plan: _Plan, batch: list) -> list:
    now = dict(zip(plan.inputs, batch, strict=True))
    batch.clear()
    for call in plan.calls:
        if call.inner is not None:
            made = _follow(call.inner, [now[key] for key in call.reads])
        else:
            args, kwargs = keras.tree.map_structure(
                lambda x: now.get(id(x), x), (call.step.args, call.kwargs)
            )
            made = keras.tree.flatten(call.step.op(*args, **kwargs))
            del args, kwargs
        for key in call.drops:
            now.pop(key, None)
        now.update((k, x) for k, x in zip(call.makes, made, strict=True) if k not in call.drops)
        del made
    return [now[key] for key in plan.outputs]
