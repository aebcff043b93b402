"""Do the inputs have the shape that the model takes?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from finetune_keras import graph, outputs
from finetune_keras.check.findings import Finding

__all__ = ["fits", "inputs"]


def fits(given: tuple, wanted: tuple) -> bool:
    """Whether Keras takes an input of shape ``given`` where the model says ``wanted``.

    Examples:
        >>> fits((8, 24, 24, 3), (None, 24, 24, 3)), fits((24, 24, 3), (None, 24, 24, 3))
        (True, False)
        >>> fits((8,), (None, 1))     # Keras adds and drops a last axis of 1
        True
    """
    if len(given) == len(wanted) + 1 and given[-1] == 1:
        given = given[:-1]
    if len(given) == len(wanted) - 1 and wanted[-1] == 1:
        given = (*given, 1)
    return len(given) == len(wanted) and all(
        None in (g, w) or g == w for g, w in zip(given, wanted, strict=True)
    )


def inputs(model: keras.Model, x: Any) -> Iterator[Finding]:
    """Inputs that the model refuses."""
    if not graph.is_functional(model):
        return
    wanted = [(t.name, tuple(t.shape)) for t in model.inputs]
    given = outputs.pairs(x, [n for n, _ in wanted])
    names = {n for n, _ in given}
    if isinstance(x, dict) and not names >= {n for n, _ in wanted}:
        missing = sorted({n for n, _ in wanted} - names)
        if isinstance(model.input, dict):
            missing = sorted(set(model.input) - names)
        if missing:
            also = "also " if names & {n for n, _ in wanted} else ""
            yield Finding(
                "shape",
                f"the inputs are a dict of {', '.join(map(repr, sorted(names)))}, and the model "
                f"{also}takes {', '.join(map(repr, missing))}",
                "give the inputs these names",
            )
        return
    if len(given) < len(wanted):
        yield Finding(
            "shape",
            f"the data have {len(given)} inputs and the model takes {len(wanted)}",
            f"give a dict with {', '.join(repr(n) for n, _ in wanted)}",
        )
        return
    by_name = dict(wanted)
    for (name, value), (own, shape) in zip(given, wanted, strict=False):
        shape = by_name.get(name, shape)
        if fits(tuple(value.shape), shape):
            continue
        of = f" {name or own!r}" if len(wanted) > 1 else ""
        if fits((1, *value.shape), shape):
            fix = "batch them: dataset.batch(32), or x[None] for one example"
        elif fits(tuple(value.shape), (None, *shape[1:])):
            fix = f"build the model for batches of any size, or give batches of {shape[0]}"
        else:
            fix = "resize or transpose them, or build the model with input_shape="
        yield Finding(
            "shape",
            f"the inputs{of} have shape {tuple(value.shape)} and the model takes {shape}",
            fix,
        )
