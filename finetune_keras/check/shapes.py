"""Do the inputs have the shape that the model takes?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from finetune_keras import graph, outputs
from finetune_keras.check.findings import Finding

__all__ = ["fits", "inputs", "text"]


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


def text(model: keras.Model, x: Any) -> Iterator[Finding]:
    """Strings for a model that takes numbers.

    Args:
        model: of any kind; of one whose graph cannot be read nothing is known.
        x: arrays, or lists of strings, or what says their type, in a structure.
    """
    takes = [str(t.dtype) for t in model.inputs] if graph.is_functional(model) else ["string"]
    example = next((v for v in map(_string, keras.tree.flatten(x)) if v is not None), None)
    if example is None or "string" in takes:
        return
    tokens = all("int" in dtype for dtype in takes)
    yield Finding(
        "shape",
        f"the inputs are text{example}, and the model takes {takes[0]} "
        + ("tokens" if tokens else "numbers"),
        "finetune_keras.preprocessor(model) of a model built on a preset makes them; hand it to "
        "finetune_keras.data.text(preprocessor=), or call it on the texts"
        if tokens
        else "numbers of the shape that the model takes",
    )


def _string(value: Any) -> str | None:
    """An example of the strings in an array, for a message; empty if only its type is known."""
    if isinstance(value, str | bytes):
        return f" ({_short(value)})"
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return None
    if getattr(dtype, "kind", "") in "OSUT" and hasattr(value, "reshape") and value.size:
        first = value.reshape(-1)[:1].tolist()[0]
        return f" ({_short(first)})" if isinstance(first, str | bytes) else None
    return "" if "string" in str(dtype) else None


def _short(value: str | bytes) -> str:
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    return repr(value if len(value) <= 40 else f"{value[:40]}...")


def inputs(model: keras.Model, x: Any) -> Iterator[Finding]:
    """Inputs that the model refuses."""
    if not graph.is_functional(model):
        return
    words = list(text(model, x))
    yield from words
    if words:
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
