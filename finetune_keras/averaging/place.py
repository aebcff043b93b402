"""The weights of a model as NumPy arrays in the order of its graph, and back."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np

from finetune_keras import graph
from finetune_keras._errors import WeightsError

__all__ = [
    "Weights",
    "averaged",
    "check_averageable",
    "check_finite",
    "matched",
    "mixed",
    "put",
    "read",
    "undone",
]

Weights = tuple[np.ndarray, ...]  # of all units of a model, in their order


def read(units: Sequence[graph.Unit]) -> Weights:
    """Copies of the values of variables, each in its own dtype."""
    return tuple(np.array(keras.ops.convert_to_numpy(u.variable)) for u in units)


def put(units: Sequence[graph.Unit], weights: Weights) -> None:
    """Writes values into variables."""
    for unit, array in zip(units, weights, strict=True):
        # A copy: JAX may share the memory that it is handed with whoever writes to it later.
        unit.variable.assign(np.array(array))
    for layer in {id(u.layer): u.layer for u in units}.values():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes from a copy of its weights


@contextlib.contextmanager
def undone(units: Sequence[graph.Unit]) -> Iterator[Weights]:
    """A scope that gives the weights as they are, and puts them back if it is left by an error
    or an interruption.
    """
    before = read(units)
    try:
        yield before
    except BaseException:
        put(units, before)
        raise


def matched(found: Mapping[str, np.ndarray], units: Sequence[graph.Unit], what: str) -> Weights:
    """The arrays of another record of weights in the order of a model's.

    By path where the paths are the model's. Otherwise by place: Keras numbers its names anew for
    each model that is made, and the order of a graph stays.

    Args:
        found: arrays by path, in the order of their graph.
        units: of the model.
        what: names the record in messages.

    Raises:
        WeightsError: if it is of another architecture, with the first difference.
    """
    if set(found) == {u.path for u in units}:
        found = {u.path: found[u.path] for u in units}
    for unit, other in itertools.zip_longest(units, found.items()):
        mine = "no more weights" if unit is None else _named(unit.path, unit.variable.shape)
        its = "no more weights" if other is None else _named(other[0], other[1].shape)
        if unit is None or other is None or not _alike(unit, *other):
            raise WeightsError(
                f"{what} is of another architecture: it has {its} where the model has {mine}; "
                "averages are of weights of the same layers"
            )
    return tuple(found.values())


def _named(path: str, shape) -> str:
    return f"{path!r} of shape {tuple(shape)}"


def _alike(unit: graph.Unit, path: str, array: np.ndarray) -> bool:
    mine, its = (p.rsplit("/", 1)[-1] for p in (unit.path, path))
    return mine == its and tuple(unit.variable.shape) == array.shape


def check_averageable(model: keras.Model, units: Sequence[graph.Unit]) -> None:
    """Refuses weights whose average means nothing.

    Raises:
        WeightsError: for LoRA factors and quantised weights.
    """
    paths = {id(u.layer): u.path.rpartition("/")[0] for u in units}
    for layer in {id(u.layer): u.layer for u in units}.values():
        where = f"{paths[id(layer)]!r} in {model.name!r}"
        if getattr(layer, "lora_enabled", False):
            raise WeightsError(
                f"{where} has LoRA factors, and the average of factors is not that of their "
                "products: merge them first, into a model with layer.kernel as its kernels"
            )
        if getattr(layer, "quantization_mode", None):
            raise WeightsError(
                f"{where} has {layer.quantization_mode} weights, which cannot be averaged: "
                "average first, then quantize"
            )


def check_finite(weights: Weights, units: Sequence[graph.Unit], what: str) -> None:
    """Refuses weights of a run that diverged.

    Raises:
        WeightsError: naming the first variable with NaN or infinity.
    """
    for unit, array in zip(units, weights, strict=True):
        if _is_float(unit) and not np.isfinite(array.astype("float32")).all():
            raise WeightsError(
                f"{what} has NaN or infinity in {unit.path!r}: its training diverged; leave it out"
            )


def mixed(start: Weights, tuned: Weights, mix: float, units: Sequence[graph.Unit]) -> Weights:
    """``(1 - mix) * start + mix * tuned`` of all that is a floating-point number; the rest is
    ``tuned``'s.
    """
    return tuple(
        ((1 - mix) * a.astype("float64") + mix * b.astype("float64")).astype(b.dtype)
        if _is_float(u)
        else b
        for u, a, b in zip(units, start, tuned, strict=True)
    )


def averaged(
    total: Weights | None, more: Weights, count: int, units: Sequence[graph.Unit]
) -> tuple[Weights, Weights]:
    """A running mean in float64.

    Args:
        total: sums so far, ``None`` before the first.
        more: what joins.
        count: how many there are then.
        units: of the model; what is no floating-point number is that of the first.

    Returns:
        The sums and the means, the latter in the dtypes of ``more``.
    """
    total = (None,) * len(more) if total is None else total
    sums, means = [], []
    for unit, t, a in zip(units, total, more, strict=True):
        if _is_float(unit):
            t = a.astype("float64") if t is None else t + a
            means.append((t / count).astype(a.dtype))
        else:
            t = a if t is None else t
            means.append(t)
        sums.append(t)
    return tuple(sums), tuple(means)


def _is_float(unit: graph.Unit) -> bool:
    return keras.backend.is_float_dtype(unit.variable.dtype)
