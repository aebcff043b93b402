"""The variables of a SavedModel by their name scopes: layers for the flags, blocks for the depth.

A SavedModel is one opaque function. What is left of its layers are the scopes in the names of its
variables (``resnet/block1/unit_2/conv1/weights``) and the order in which the function reads
them, which is the order of depth.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras

__all__ = [
    "FixedScope",
    "Place",
    "Scope",
    "ScopeNorm",
    "Weight",
    "grouped",
    "is_norm_scope",
    "kinds",
]


@dataclasses.dataclass(frozen=True)
class Weight:
    """What is known of a variable without having it; all that a config has to say.

    Attributes:
        name: with its scopes, ``"net/block1/kernel"``.
        shape: its shape.
        dtype: its dtype, in Keras' words.
        learnable: false for statistics, and for all of a module that cannot learn.
        place: which one it is in the order in which TensorFlow makes the variables when it loads
            the SavedModel; ``None`` for those of TensorFlow 1, which it makes in a graph.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    learnable: bool
    place: int | None

    @classmethod
    def of(cls, fields: Sequence[Any]) -> Weight:
        """From its fields as they come out of JSON."""
        name, shape, dtype, learnable, place = fields
        return cls(str(name), tuple(shape), str(dtype), bool(learnable), place)

    @property
    def scope(self) -> str:
        """The name without its last part."""
        return self.name.rpartition("/")[0]

    @property
    def last(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def is_statistic(self) -> bool:
        """Whether training may move it, though not by a gradient."""
        return not self.learnable and "float" in self.dtype


class Scope(keras.layers.Layer):
    """One name scope: it holds variables and scopes below it, for flags, paths and files.

    It computes nothing. ``training`` is in the signature because the module that it is a part of
    may move its statistics.
    """

    def __init__(self, name: str):
        super().__init__(name=name)
        self.held: list[keras.Variable] = []
        self.below: list[keras.layers.Layer] = []
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Never: the layer that holds it computes."""
        raise NotImplementedError(f"the name scope {self.name!r} computes nothing by itself")


class ScopeNorm(Scope):
    """A scope of a normalisation, which ``thaw`` leaves as it is and ``select.norms`` finds."""


class FixedScope(Scope):
    """A scope of a module that cannot learn. Its values are in the embedded SavedModel.

    Attributes:
        ftk_fixed: why it cannot learn.
    """

    def __init__(self, name: str, fixed: str):
        super().__init__(name)
        self.ftk_fixed = fixed

    def call(self, inputs: Any) -> Any:
        """Never; and there is no training that could move statistics."""
        raise NotImplementedError

    def save_own_variables(self, store: Any) -> None:
        """Nothing: the archive has the SavedModel's own file of variables."""

    def load_own_variables(self, store: Any) -> None:
        """Nothing, likewise."""


_NORM_NAMES = re.compile(r"norm|(^|[^a-z])bn([^a-z]|$)", re.IGNORECASE)
_NORM_VARIABLES = {"gamma", "moving_mean", "moving_variance"}


def is_norm_scope(scope: str, weights: Sequence[Weight]) -> bool:
    """Whether a scope is a normalisation: it holds vectors only, and says so by its own name or
    those of its variables.

    Examples:
        >>> vector = Weight("net/bn1/gamma", (8,), "float32", True, 0)
        >>> is_norm_scope("net/bn1", [vector])
        True
    """
    if not weights or any(len(w.shape) > 1 for w in weights):
        return False
    own = {w.last for w in weights}
    return bool(own & _NORM_VARIABLES or _NORM_NAMES.search(scope.rpartition("/")[2]))


def kinds(weights: Sequence[Weight]) -> dict[str, str]:
    """The scopes that are no step of depth by themselves, for `grouped`."""
    by_scope: dict[str, list[Weight]] = {}
    for weight in weights:
        by_scope.setdefault(weight.scope, []).append(weight)
    fixed = not any(w.learnable for w in weights)
    found = {}
    for scope, own in by_scope.items():
        if is_norm_scope(scope, own) or not (fixed or any(w.learnable for w in own)):
            found[scope] = "norm"
        elif all(w.last == "embeddings" for w in own):
            found[scope] = "table"
    return found


@dataclasses.dataclass(frozen=True)
class Place:
    """A block inside a layer.

    Attributes:
        path: names from the layer down to the scope that it is known by.
        scopes: the scopes that hold its variables.
    """

    path: str
    scopes: tuple[str, ...]


def grouped(scopes: Sequence[str], kinds: Mapping[str, str]) -> tuple[Place, ...]:
    """Name scopes as blocks in depth order.

    A scope is taken apart where it holds a series: several scopes whose names differ by numbers
    alone and that hold several layers each (``unit_1``, ``unit_2``; ``layer_0`` to ``layer_11``).
    A number in a flat name ends a scope too, as in ``block_1_expand``. Where there is no series,
    each layer is a block.

    Args:
        scopes: each once, in the order in which their variables are read.
        kinds: of those that are no step of depth: ``"norm"`` (also for statistics) or
            ``"table"``. They join the block before them; a norm that has none, the one after.

    Examples:
        >>> names = ["stem", "body/b1/x", "body/b1/y", "body/b2/x", "body/b2/y", "body/norm"]
        >>> [p.path for p in grouped(names, {"body/norm": "norm"})]
        ['stem', 'body/b1', 'body/b2']
    """
    items = [_Item(s, tuple(_parts(s)), kinds.get(s, "")) for s in scopes]
    found = _split(items, 0) if _series(items, 0) else _runs(items, _fork(items))
    joined: list[list[_Item]] = []
    for group in found:
        alone = all(i.kind for i in group)
        waiting = joined and all(i.kind == "norm" for i in joined[-1])
        if joined and (alone or waiting):
            joined[-1] = [*joined[-1], *group]
        else:
            joined.append(list(group))
    return tuple(_place(group, scopes) for group in joined)


@dataclasses.dataclass(frozen=True)
class _Item:
    scope: str
    parts: tuple[str, ...]
    kind: str  # "" for a layer


def _parts(scope: str) -> list[str]:
    # "block_1_expand" is "expand" in "block_1"; the letter is that of "block1a_dwconv".
    return [p for name in scope.split("/") for p in re.split(r"(?<=\d)_|(?<=\d[a-c])_", name)]


def _runs(items: Sequence[_Item], depth: int) -> list[list[_Item]]:
    """Neighbours that have the same part at a depth."""
    key = lambda i: i.parts[: depth + 1]  # noqa: E731
    return [list(run) for _, run in itertools.groupby(items, key)]


def _fork(items: Sequence[_Item]) -> int:
    """The first depth at which the names differ."""
    depth = 0
    while len(_runs(items, depth)) == 1 and any(len(i.parts) > depth + 1 for i in items):
        depth += 1
    return depth


def _several(run: Sequence[_Item]) -> bool:
    return sum(not i.kind for i in run) > 1


def _series(items: Sequence[_Item], depth: int) -> bool:
    """Whether a series begins at this depth or below."""
    runs = [run for run in _runs(items, depth) if _several(run)]
    keys = [re.sub(r"\d+[a-z]?", "", r[0].parts[depth]) for r in runs if len(r[0].parts) > depth]
    if len(keys) > len(set(keys)):
        return True
    return any(max(len(i.parts) for i in r) > depth + 1 and _series(r, depth + 1) for r in runs)


def _split(items: Sequence[_Item], depth: int) -> list[list[_Item]]:
    found: list[list[_Item]] = []
    for run in _runs(items, depth):
        deeper = max(len(i.parts) for i in run) > depth + 1
        if deeper and _several(run) and _series(run, depth + 1):
            found += _split(run, depth + 1)
        else:
            found.append(run)
    return found


def _place(group: Sequence[_Item], scopes: Sequence[str]) -> Place:
    """The scope that holds all of the group and nothing else, or the last layer in it."""
    mine = tuple(i.scope for i in group)
    main = [i.scope for i in group if not i.kind] or [i.scope for i in group if i.kind != "norm"]
    main = main or list(mine)
    for some in (mine, main):
        path = _common(some)
        if path and {s for s in scopes if f"{s}/".startswith(f"{path}/")} <= set(mine):
            return Place(path, mine)
    return Place(main[-1], mine)


def _common(scopes: Sequence[str]) -> str:
    """The scope that holds all of ``scopes``."""
    levels = zip(*(s.split("/") for s in scopes), strict=False)
    return "/".join(names[0] for names in itertools.takewhile(lambda n: len(set(n)) == 1, levels))
