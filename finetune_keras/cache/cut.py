"""Two models in place of one: its first calls, and the others on what comes out of them.

Nested models that belong to one side as a whole stay as they are; one that is divided becomes two
nested ones, so that names need to be unique only where they were.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import keras

from finetune_keras.tape import Step, Tape, ends, inside, tape, tensors

__all__ = ["cut"]


def cut(
    model: keras.Model, first: Set[int], masked: Set[int] = frozenset()
) -> tuple[keras.Model, keras.Model, tuple[str, ...]]:
    """Divides a functional or sequential model.

    Args:
        model: the model; it stays as it is and shares layers and variables with the two.
        first: indices of calls, as in `finetune_keras.graph.opened`, that read nothing that the
            others make.
        masked: indices of those whose outputs may carry a mask.

    Returns:
        The two models, and what makes each tensor that goes from one to the other.
    """
    work = _Cut(first, masked)
    this = tape(model)
    inputs = keras.tree.map_structure(_like, this.inputs)
    top = _Level(work.enter)
    for t, new in zip(tensors(this.inputs), tensors(inputs), strict=True):
        top.early[id(t)] = new
        work.path[id(new)] = new.name
    _run(work, top, this, "")
    late = [top.late(t) for t in tensors(this.outputs)]
    wanted = getattr(model, "output_names", [t.name for t in late])
    late = [
        t if work.name.get(id(t)) == name else keras.layers.Identity(name=name)(t)
        for t, name in zip(late, wanted, strict=True)
    ]
    outputs = keras.tree.pack_sequence_as(ends(model)[1], late)
    name = model.name
    before = keras.Model(inputs, _one(work.handed), name=f"{name}_prefix")
    after = Suffix(_one(work.taken), outputs, name=f"{name}_suffix")
    after.order(model.trainable_variables)
    return before, after, tuple(work.paths)


class Suffix(keras.Model):
    """A functional model whose trainable variables are given, with their order.

    So one optimizer serves this and the model that it is a part of: on JAX an optimizer goes by
    the order of the variables alone.
    """

    _ordered: tuple[keras.Variable, ...] = ()

    def order(self, variables: list[keras.Variable]) -> None:
        """Says which variables learn here."""
        # Keras would track a plain attribute, and count the variables twice.
        object.__setattr__(self, "_ordered", tuple(variables))
        self.supports_masking = True

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables that `order` was given."""
        return list(self._ordered)

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The variables that `order` was given."""
        return list(self._ordered)


class _Mask(keras.layers.Layer):
    """The mask that a tensor carries, shape ``(batch, steps)``; all true where it has none."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x: Any, mask: Any = None) -> Any:
        if mask is None:
            return keras.ops.ones(keras.ops.shape(x)[:2], dtype="bool")
        return mask

    def compute_output_spec(self, x: Any, mask: Any = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape[:2], dtype="bool")


class _Masked(keras.layers.Layer):
    """Gives a tensor a mask, for the layers after it: ``[x, mask]`` to ``x``."""

    def call(self, pair: Any) -> Any:
        # A tensor of its own: two may be made of one, with masks or without.
        return keras.ops.reshape(pair[0], keras.ops.shape(pair[0]))

    def compute_mask(self, pair: Any, previous_mask: Any = None) -> Any:
        return pair[1]

    def compute_output_spec(self, pair: Any) -> keras.KerasTensor:
        return keras.KerasTensor(pair[0].shape, dtype=pair[0].dtype)


class _Cut:
    """What the levels of the nest share."""

    def __init__(self, first: Set[int], masked: Set[int]) -> None:
        self.first, self.masked = first, masked
        self.next = 0  # index of the next call, in the order of `graph.opened`
        self.path: dict[int, str] = {}  # by tensor of the first model: what makes it
        self.veiled: set[int] = set()  # those that may carry a mask
        self.name: dict[int, str] = {}  # by tensor of the second model: the layer that makes it
        self.handed: list[keras.KerasTensor] = []
        self.taken: list[keras.KerasTensor] = []
        self.paths: list[str] = []

    def enter(self, early: keras.KerasTensor) -> keras.KerasTensor:
        """What a tensor of the first model is in the second one: an input."""
        path = self.path[id(early)]
        late = self._input(early, path)
        if id(early) in self.veiled and len(early.shape) > 1:
            number = len(self.taken)
            mask = self._input(_Mask(name=f"mask_{number}")(early), f"{path} (mask)")
            late = _Masked(name=f"masked_{number}")([late, mask])
        return late

    def _input(self, early: keras.KerasTensor, path: str) -> keras.KerasTensor:
        late = keras.Input(
            batch_shape=early.shape, dtype=early.dtype, name=f"frontier_{len(self.taken)}"
        )
        self.handed.append(early)
        self.taken.append(late)
        self.paths.append(path)
        return late


class _Level:
    """One model of the nest: its tensors in the first model and in the second."""

    def __init__(self, enter: Any) -> None:
        self.early: dict[int, keras.KerasTensor] = {}
        self.made: dict[int, keras.KerasTensor] = {}
        self.names: set[str] = set()
        self._enter = enter

    def late(self, t: keras.KerasTensor) -> keras.KerasTensor:
        """A tensor of the tape in the second model."""
        if id(t) not in self.made:
            self.made[id(t)] = self._enter(self.early[id(t)])
        return self.made[id(t)]

    def carry(self, early: keras.KerasTensor) -> keras.KerasTensor:
        """A tensor that is in no tape at this level, in the second model."""
        return self._enter(early)

    def unique(self, name: str) -> str:
        """A name that no nested model of this level has."""
        n, found = 1, name
        while found in self.names:
            n, found = n + 1, f"{name}_{n}"
        self.names.add(found)
        return found


def _run(work: _Cut, level: _Level, this: Tape, before: str) -> None:
    """Computes the calls of one level, each in the model that it belongs to."""
    for step in this.steps:
        path = f"{before}{step.op.name}"
        within = inside(step)
        span = range(work.next, work.next + (1 if within is None else _count(within[0])))
        reads = tensors((step.args, step.kwargs)) if within is None else within[1]
        early = all(id(t) in level.early for t in reads) and all(i in work.first for i in span)
        if early or not any(i in work.first for i in span):
            work.next = span.stop
            made = _call(step, level.early.__getitem__ if early else level.late, early)
            for old, new in zip(tensors(step.outputs), made, strict=True):
                if early:
                    level.early[id(old)] = new
                    work.path[id(new)] = path
                    if any(i in work.masked for i in span):
                        work.veiled.add(id(new))
                else:
                    level.made[id(old)] = new
                    work.name[id(new)] = step.op.name
        else:
            _divide(work, level, step, path, *within)


def _call(step: Step, find: Any, early: bool) -> list[keras.KerasTensor]:
    def given(x: Any) -> Any:
        if not isinstance(x, keras.KerasTensor):
            return x
        return find(id(x) if early else x)

    args, kwargs = keras.tree.map_structure(given, (step.args, step.kwargs))
    return tensors(step.op(*args, **kwargs))


def _divide(
    work: _Cut, outer: _Level, step: Step, path: str, this: Tape, reads: list[keras.KerasTensor]
) -> None:
    """A call of a nested model of which some calls are in the first model, some in the second."""
    handed: list[tuple[keras.KerasTensor, keras.KerasTensor]] = []

    def enter(early: keras.KerasTensor) -> keras.KerasTensor:
        late = keras.Input(batch_shape=early.shape, dtype=early.dtype)
        handed.append((early, late))
        return late

    level = _Level(enter)
    own = list(zip(tensors(this.inputs), reads, strict=True))
    known = [(t, r) for t, r in own if id(r) in outer.early]
    open_ = [(t, r) for t, r in own if id(r) not in outer.early]
    for t, r in known:
        level.early[id(t)] = new = _like(t)
        work.path[id(new)] = work.path[id(outer.early[id(r)])]
        if id(outer.early[id(r)]) in work.veiled:
            work.veiled.add(id(new))
    for t, _ in open_:
        level.made[id(t)] = _like(t)
    late_inputs = [level.made[id(t)] for t, _ in open_]
    early_inputs = [level.early[id(t)] for t, _ in known]
    _run(work, level, this, f"{path}/")
    outputs = list(zip(tensors(step.outputs), tensors(this.outputs), strict=True))
    name = outer.unique(step.op.name)
    training = {k: v for k, v in step.kwargs.items() if k == "training" and not tensors(v)}

    closed = [(old, level.early[id(t)]) for old, t in outputs if id(t) in level.early]
    given = [early for early, _ in handed] + [early for _, early in closed]
    first = keras.Model(early_inputs, given, name=name)
    made = tensors(first([outer.early[id(r)] for _, r in known], **training))
    for early, new in zip(given, made, strict=True):
        work.path[id(new)] = work.path[id(early)]
        if id(early) in work.veiled:
            work.veiled.add(id(new))
    for (old, _), new in zip(closed, made[len(handed) :], strict=True):
        outer.early[id(old)] = new

    later = [(old, level.made[id(t)]) for old, t in outputs if id(t) not in level.early]
    if later:
        entered = [outer.carry(new) for new in made[: len(handed)]]
        second = keras.Model(
            late_inputs + [late for _, late in handed], [t for _, t in later], name=name
        )
        given_late = [outer.late(r) for _, r in open_] + entered
        for (old, _), new in zip(later, tensors(second(given_late, **training)), strict=True):
            outer.made[id(old)] = new
            work.name[id(new)] = name


def _count(this: Tape) -> int:
    """How many calls there are in a tape, nested ones opened."""
    found = [(step, inside(step)) for step in this.steps]
    return sum(1 if within is None else _count(within[0]) for _, within in found)


def _like(t: keras.KerasTensor) -> keras.KerasTensor:
    return keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name)


def _one(found: list[keras.KerasTensor]) -> Any:
    return found[0] if len(found) == 1 else found
