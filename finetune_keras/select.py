"""One way to choose layers and variables, for freezing and all that works by depth.

A `Selector` is a description, not a list: it is resolved against a model when it is used,
on the opened graph, so that the names of layers inside a nested backbone are found. Selectors
combine with ``|`` (or), ``&`` (and) and ``~`` (not).

Examples:
    >>> from finetune_keras import select
    >>> select.backbone() & ~select.norms()
    select.backbone() & ~select.norms()
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

import keras

from finetune_keras import blocks as _blocks
from finetune_keras import graph, parts
from finetune_keras._errors import SelectionError, nearest

__all__ = [
    "Selector",
    "after",
    "backbone",
    "biases",
    "blocks",
    "everything",
    "first",
    "head",
    "last",
    "named",
    "norms",
    "nothing",
    "of_type",
    "resolve",
    "up_to",
    "where",
]

_Ids = frozenset[int]


class Selector:
    """A composable choice of variables. Made by the functions of this module."""

    def __init__(
        self, text: str, choose: Callable[[parts.Parts], _Ids], *, may_be_empty: bool = False
    ):
        self._text = text
        self._choose = choose
        self._may_be_empty = may_be_empty

    def __or__(self, other: Selector) -> Selector:
        _check(other)
        return Selector(
            f"{self} | {other}",
            lambda p: self._choose(p) | other._choose(p),
            may_be_empty=self._may_be_empty and other._may_be_empty,
        )

    def __and__(self, other: Selector) -> Selector:
        _check(other)
        return Selector(
            f"{_grouped(self)} & {_grouped(other)}",
            lambda p: self._choose(p) & other._choose(p),
            may_be_empty=self._may_be_empty or other._may_be_empty,
        )

    def __invert__(self) -> Selector:
        return Selector(
            f"~{_grouped(self, '|&')}",
            lambda p: _all(p) - self._choose(p),
            may_be_empty=self._text == "select.everything()",
        )

    def __repr__(self) -> str:
        return self._text


def _check(other: object) -> None:
    if not isinstance(other, Selector):
        raise TypeError(
            f"a selector combines with another selector; given {other!r}. "
            f"Did you mean select.named({str(other)!r})?"
        )


def _grouped(selector: Selector, operators: str = "|") -> str:
    """The text of an operand, in brackets where an operator that binds less stands outside any."""
    text = str(selector)
    outside = re.sub(r"\([^()]*(\([^()]*\)[^()]*)*\)", "", text)
    return f"({text})" if any(f" {op} " in outside for op in operators) else text


def resolve(model: keras.Model, selector: Selector) -> tuple[graph.Unit, ...]:
    """The variables that a selector chooses in a model, in the order of the graph.

    Args:
        model: a built ``keras.Model``.
        selector: a selector.

    Raises:
        SelectionError: if it chooses nothing (and is not ``nothing()``, ``first(0)`` or
            ``last(0)``), or names what the model does not have.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> [unit.path for unit in resolve(model, biases())]
        ['d/bias']
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}")
    return resolve_parts(parts.parts(model), selector)


def resolve_parts(divided: parts.Parts, selector: Selector) -> tuple[graph.Unit, ...]:
    """`resolve` for a model that is opened already."""
    if not isinstance(selector, Selector):
        if callable(selector) and getattr(selector, "__module__", "") == __name__:
            raise TypeError(
                f"select.{selector.__name__} is a function: call it, "
                f"as in select.{selector.__name__}(...)"
            )
        raise TypeError(
            "expected a selector such as select.backbone() or select.first(10); given "
            + (repr(selector) if isinstance(selector, str) else f"a {type(selector).__name__}")
        )
    chosen = selector._choose(divided)
    if not chosen and not selector._may_be_empty:
        raise SelectionError(
            f"{selector} matches nothing in the model {divided.model.name!r}; use "
            "select.nothing() to choose nothing on purpose"
        )
    return tuple(u for u in divided.opened.units if id(u.variable) in chosen)


def _all(p: parts.Parts) -> _Ids:
    return _ids(p.opened.units)


def _ids(units) -> _Ids:
    return frozenset(id(u.variable) for u in units)


def everything() -> Selector:
    """Every variable of the model."""
    return Selector("select.everything()", _all, may_be_empty=True)


def nothing() -> Selector:
    """No variable, on purpose."""
    return Selector("select.nothing()", lambda p: frozenset(), may_be_empty=True)


def head() -> Selector:
    """The head: the layers named ``ftk_head_*``, or in a model that was not built here what
    `finetune_keras.describe` shows as its head.
    """

    def choose(p: parts.Parts) -> _Ids:
        if not p.head_calls:
            raise SelectionError(
                f"select.head() finds no head in the model {p.model.name!r}: build one with "
                "finetune_keras.build, or choose layers by select.after(name) or select.last(n)"
            )
        return _ids(p.head_units)

    return Selector("select.head()", choose)


def backbone() -> Selector:
    """All that is not the head."""
    return Selector("select.backbone()", lambda p: _all(p) - _ids(p.head_units))


def first(n: int) -> Selector:
    """The first ``n`` layers as Keras counts them, inputs and layers without weights too.

    Of a model from `finetune_keras.build`, the first ``n`` of the backbone's own
    ``.layers``, without the preprocessing that was put before it; of any other,
    ``model.layers[:n]``. A nested model counts as one.
    """
    _count("first", n)

    def choose(p: parts.Parts) -> _Ids:
        layers = p.counted[: len(p.counted) - p.head_counted]
        return _of_layers(p, layers[: _at_most("first", n, len(layers), p)])

    return Selector(f"select.first({n})", choose, may_be_empty=n == 0)


def last(n: int) -> Selector:
    """The last ``n`` layers as Keras counts them, those of the head included; ``last(0)`` is
    empty.
    """
    _count("last", n)

    def choose(p: parts.Parts) -> _Ids:
        n_ = _at_most("last", n, len(p.counted), p)
        return _of_layers(p, p.counted[len(p.counted) - n_ :])

    return Selector(f"select.last({n})", choose, may_be_empty=n == 0)


def _count(name: str, n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise SelectionError(f"select.{name}(n) takes a number of layers, 0 or more; given {n!r}")


def _at_most(name: str, n: int, have: int, p: parts.Parts) -> int:
    if n > have:
        raise SelectionError(
            f"select.{name}({n}): the model {p.model.name!r} has {have} layers to count from"
        )
    return n


def _of_layers(p: parts.Parts, layers) -> _Ids:
    mine = {id(w) for layer in layers for w in layer.weights}
    return frozenset(_all(p) & mine)


def up_to(name: str) -> Selector:
    """The layer (or operation) called ``name`` and all that it is computed from.

    ``name`` is a layer's name, also inside a nested model, or a path such as
    ``"resnet50/conv4_block6_out"`` where the name alone is ambiguous.
    """
    if not isinstance(name, str):
        raise SelectionError(f"select.up_to and after take the name of a layer; given {name!r}")

    def choose(p: parts.Parts) -> _Ids:
        path, found = _find(name, p)
        before = graph.ancestors(p.opened, found)
        return _ids(u for i in before for u in p.opened.calls[i].units) - _blocks.later(
            p.opened, path
        )

    return Selector(f"select.up_to({name!r})", choose)


def after(name: str) -> Selector:
    """All that `up_to` leaves: what comes after ``name``, and what runs beside it."""
    up = up_to(name)
    return Selector(f"select.after({name!r})", lambda p: _all(p) - up._choose(p))


def _find(name: str, p: parts.Parts) -> tuple[str, list[int]]:
    """The path that ``name`` means, and the indices of its calls: an operation's, or all of a
    nested model's.
    """
    calls = p.opened.calls
    if p.opened.closed:
        raise SelectionError(
            f"up_to({name!r}) and after({name!r}) need a graph to read, and {p.model.name!r} is a "
            "subclassed model: choose by select.named(regex), select.first(n) or select.where(fn)"
        )
    paths: dict[str, list[int]] = {}
    for i, call in enumerate(calls):
        names = call.path.split("/")
        for k in range(1, len(names) + 1):
            paths.setdefault("/".join(names[:k]), []).append(i)
    for path, layer in p.opened.layers:  # layers held by a layer count as the layer that runs
        owner = next((q for q in _prefixes(path) if q in paths), None)
        if path not in paths and owner is not None and isinstance(layer, keras.layers.Layer):
            paths[path] = paths[owner]
    own = {q for q in paths if q.endswith(f"/{name}")}
    ops = {c.path for c in calls}
    # A call of the graph comes before the layers that a layer holds: a block is named by one.
    hits = [q for q in paths if q == name] or [q for q in paths if q in own & ops]
    hits = hits or [q for q in paths if q in own]
    if len(hits) > 1:
        raise SelectionError(f"{name!r} is ambiguous: give one of {', '.join(map(repr, hits))}")
    if not hits and name in _input_names(p.model):
        return name, []  # nothing comes before an input, and everything after
    if not hits:
        known = list(dict.fromkeys(q.rsplit("/", 1)[-1] for q in paths))
        raise SelectionError(
            f"no layer {name!r} in the model {p.model.name!r}; {nearest(name, known)}"
        )
    return hits[0], paths[hits[0]]


def _input_names(model: keras.Model) -> set[str]:
    nested = (x for x in model.layers if isinstance(x, keras.Model))
    own = {x.name for x in model.layers if isinstance(x, keras.layers.InputLayer)}
    return own.union(*(_input_names(x) for x in nested))


def _prefixes(path: str):
    names = path.split("/")
    return ("/".join(names[:k]) for k in range(len(names) - 1, 0, -1))


def named(regex: str) -> Selector:
    """Variables whose path (``"resnet50/conv1_conv/kernel"``) contains a match of ``regex``."""
    try:
        pattern = re.compile(regex)
    except (re.error, TypeError) as e:
        raise SelectionError(f"select.named({regex!r}) is not a regular expression: {e}") from e

    def choose(p: parts.Parts) -> _Ids:
        found = _ids(u for u in p.opened.units if pattern.search(u.path))
        if not found:
            names = dict.fromkeys(n for u in p.opened.units for n in u.path.split("/"))
            raise SelectionError(
                f"select.named({regex!r}) matches no variable of {p.model.name!r}; "
                f"{nearest(regex, names)}"
            )
        return found

    return Selector(f"select.named({regex!r})", choose)


def of_type(*classes: type) -> Selector:
    """The variables of layers of these classes, and of the layers they hold."""
    if not classes or not all(isinstance(c, type) for c in classes):
        raise SelectionError(
            f"select.of_type takes layer classes such as keras.layers.Conv2D; given {classes!r}"
        )
    text = ", ".join(c.__name__ for c in classes)

    def choose(p: parts.Parts) -> _Ids:
        layers = [layer for _, layer in p.opened.layers if isinstance(layer, classes)]
        if not layers:
            have = dict.fromkeys(type(layer).__name__ for _, layer in p.opened.layers)
            raise SelectionError(
                f"select.of_type({text}) matches no layer of {p.model.name!r}; "
                f"{nearest(text, have)}"
            )
        return _of_layers(p, layers)

    return Selector(f"select.of_type({text})", choose)


def norms() -> Selector:
    """Normalisation layers: gamma, beta and statistics."""
    return Selector(
        "select.norms()", lambda p: _ids(u for u in p.opened.units if _blocks.is_norm(u.layer))
    )


def biases() -> Selector:
    """Additive terms: variables named ``bias``, and the ``beta`` of normalisations."""
    return Selector(
        "select.biases()",
        lambda p: _ids(u for u in p.opened.units if u.variable.name in ("bias", "beta")),
    )


def blocks(which: slice | int) -> Selector:
    """Blocks in depth order, the head left out: ``blocks(slice(-2, None))`` are the last two."""
    try:
        if isinstance(which, slice):
            which.indices(0)
        else:
            which = operator.index(which)
    except (TypeError, ValueError):
        raise SelectionError(
            f"select.blocks takes a slice or a number, such as slice(-2, None); given {which!r}"
        ) from None

    def choose(p: parts.Parts) -> _Ids:
        found = _blocks.blocks_of(p.opened, p.head_calls)
        try:
            chosen = found[which] if isinstance(which, slice) else (found[which],)
        except IndexError:
            chosen = ()
        if not chosen:
            raise SelectionError(
                f"select.blocks({which}) is empty: {p.model.name!r} has {len(found)} blocks"
            )
        return _ids(u for block in chosen for u in block.units)

    return Selector(f"select.blocks({which})", choose)


def where(fn: Callable[[str, keras.layers.Layer, keras.Variable], bool]) -> Selector:
    """Variables for which ``fn(path, layer, variable)`` is true."""
    if not callable(fn):
        raise SelectionError(
            f"select.where takes a function of (path, layer, variable); given {fn!r}"
        )
    name = getattr(fn, "__name__", repr(fn))

    def holds(u: graph.Unit) -> bool:
        try:
            return bool(fn(u.path, u.layer, u.variable))
        except Exception as e:
            raise SelectionError(
                f"select.where({name}) takes a function of (path, layer, variable) that returns "
                f"true or false; for {u.path!r} it raised {type(e).__name__}: {e}"
            ) from e

    return Selector(f"select.where({name})", lambda p: _ids(u for u in p.opened.units if holds(u)))
