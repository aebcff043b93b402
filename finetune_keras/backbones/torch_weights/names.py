"""From the paths of a Keras network to names in PyTorch: a table, of which the first row wins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from finetune_keras import graph
from finetune_keras._errors import SelectionError, nearest
from finetune_keras.backbones.torch_weights import layout

__all__ = ["Names", "rows"]

_SHOWN = 4

Name = str | Callable[[re.Match], str]
Row = Name | tuple[Name, Callable[[np.ndarray], np.ndarray]] | None
Names = Mapping[str, Row] | Callable[[str], Row]


def rows(units: tuple[graph.Unit, ...], names: Names) -> dict[str, tuple | None]:
    r"""For each path, the tensor's name and the function that the array goes through first, or
    ``None`` if the variable is left as it is.

    Raises:
        SelectionError: if a row matches nothing, or no row matches a variable.

    Examples:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="dense_1")])
        >>> rows(graph.opened(model).units, {r"dense_(.)": r"fc\1"})
        {'dense_1/kernel': ('fc1.weight', None), 'dense_1/bias': ('fc1.bias', None)}
    """
    if callable(names):
        return {u.path: _row(names(u.path)) for u in units}
    patterns = [(_compiled(pattern), row) for pattern, row in names.items()]
    result, hit, without = {}, set(), []
    for unit in units:
        layer, _, own = unit.path.rpartition("/")
        for i, (pattern, row) in enumerate(patterns):
            found = pattern.fullmatch(unit.path)
            kind = ""
            if found is None:
                found = pattern.fullmatch(layer)
                kind = f".{layout.KINDS.get(own, '')}"
            if found is None:
                continue
            hit.add(i)
            if kind == "." and row is not None:
                raise SelectionError(
                    f"{unit.path!r} has no counterpart in every module of PyTorch: give names= a "
                    f"row for this variable itself, before that of {pattern.pattern!r}"
                )
            result[unit.path] = _row(row, found, kind)
            break
        else:
            without.append(unit.path)
    if without:
        more = f", ... ({len(without)} in all)" if len(without) > _SHOWN else ""
        raise SelectionError(
            f"no row of names= is for {', '.join(map(repr, without[:_SHOWN]))}{more}: give each "
            "variable or layer a name in PyTorch, or None to leave it as it is"
        )
    idle = [p.pattern for i, (p, _) in enumerate(patterns) if i not in hit]
    if idle:
        paths = {u.path.rpartition("/")[0]: None for u in units}
        raise SelectionError(
            f"the row {idle[0]!r} of names= matches nothing that an earlier row does not; "
            f"{nearest(idle[0], paths)}"
        )
    return result


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as e:
        raise SelectionError(f"names= has {pattern!r}, which is no regular expression: {e}") from e


def _row(row: Row, found: re.Match | None = None, kind: str = "") -> tuple | None:
    if row is None:
        return None
    pair = isinstance(row, tuple) and len(row) == 2 and (row[1] is None or callable(row[1]))
    if isinstance(row, tuple) and not pair:
        raise TypeError(f"a pair in names= is (name, function of an array); given {row!r}")
    name, change = row if pair else (row, None)
    if found is not None and (callable(name) or isinstance(name, str)):
        try:
            name = name(found) if callable(name) else found.expand(name)
        except (re.error, IndexError) as e:
            raise SelectionError(
                f"the name {name!r} for {found.re.pattern!r} cannot be made: {e}"
            ) from e
    if not isinstance(name, str):
        of = f" for {found.re.pattern!r}" if found is not None else ""
        raise TypeError(f"a name in PyTorch is a string; names= gave {name!r}{of}")
    return name + kind, change
