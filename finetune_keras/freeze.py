"""Freezing and thawing as one transaction.

A flag that changes after ``fit`` is silently ignored by Keras on TensorFlow, and on JAX the next
``fit`` raises with the weights gone. Here the flags, the optimizer and the compiled functions
change together or not at all.
"""

from __future__ import annotations

import dataclasses

import keras

from finetune_keras import blocks, flags, graph, optimizers, parts, record, select
from finetune_keras._errors import SelectionError
from finetune_keras.compile import recompile, scope

__all__ = ["Change", "freeze", "thaw"]


@dataclasses.dataclass(frozen=True)
class Change:
    """What a freeze or a thaw did.

    Attributes:
        frozen: paths of variables that learned before and do not now.
        thawed: paths of variables that learn now and did not before.
        norms: paths of normalisation variables that were selected to thaw and stay frozen.
        learning_rate: the rate before and after; ``None`` if the model is not compiled.
        schedule: the schedule that the rate follows from now on, in a few words; empty if it is a
            number.
        schedule_dropped: whether a learning rate schedule gave way to that constant rate.
        restarted: whether the optimizer's slots could not be kept and start at zero.
    """

    frozen: tuple[str, ...]
    thawed: tuple[str, ...]
    norms: tuple[str, ...] = ()
    learning_rate: tuple[float, float] | None = None
    schedule: str = ""
    schedule_dropped: bool = False
    restarted: bool = False

    def __str__(self) -> str:
        lines = [] if self.frozen or self.thawed else ["nothing changed"]
        for word, paths in (("frozen", self.frozen), ("thawed", self.thawed)):
            if paths:
                lines.append(f"{word}: {len(paths)} variables in {_layers(paths)}")
        if self.norms:
            lines.append(
                f"left frozen: {len(self.norms)} normalisation variables in {_layers(self.norms)} "
                "(norms=True thaws them)"
            )
        if self.learning_rate and self.learning_rate[0] != self.learning_rate[1]:
            constant = ", constant from now on: the schedule was dropped"
            lines.append(
                "learning rate: {:.3g} -> {:.3g}".format(*self.learning_rate)
                + (constant if self.schedule_dropped else "")
                + (f" now, by {self.schedule}" if self.schedule else "")
            )
        if self.restarted:
            lines.append("the optimizer's slots could not be matched and start at zero")
        return "\n".join(lines)


def _layers(paths: tuple[str, ...]) -> str:
    names = list(dict.fromkeys(p.rsplit("/", 1)[0] for p in paths))
    return names[0] if len(names) == 1 else f"{len(names)} layers, {names[0]} to {names[-1]}"


def freeze(model: keras.Model, selector: select.Selector, *, only: bool = False) -> Change:
    """Stops variables from learning; the next ``fit`` keeps them to the bit.

    Frozen normalisation layers run in inference mode. If the model is compiled, it is compiled
    again with all it was given, and the optimizer keeps its state for what still learns.

    Args:
        model: a built ``keras.Model``, compiled or not, trained or not.
        selector: what to freeze, such as ``select.backbone()`` or ``select.first(10)``.
        only: freeze this and nothing else, so that all the rest learns.

    Returns:
        A `Change` that lists what was frozen.

    Raises:
        SelectionError: if the selector matches nothing. The model is then as it was.

    Examples:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((4,)), dense(8, name="a"), dense(2, name="b")])
        >>> print(freeze(model, select.first(1)))
        frozen: 2 variables in a
    """
    divided = _opened(model)
    chosen = _ids(select.resolve_parts(divided, selector))
    units = divided.opened.units
    now = flags.on(units, model)
    all_ = _ids(flags.switches(units))
    return _change(divided, (all_ if only else now) - chosen, now)


def thaw(
    model: keras.Model,
    selector: select.Selector,
    *,
    only: bool = False,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
    norms: bool = False,
) -> Change:
    """Lets variables learn from the next ``fit`` on.

    Variables that learned already keep the optimizer's state; the step count goes on. The first
    steps of those that join are corrected for their empty moments, so that with Adam, AdamW and
    Nadam none of their elements moves more than about the learning rate. When layers of the
    backbone join, the rate falls to a hundredth of the optimizer's default (1e-5 for Adam) unless
    it is lower already or ``learning_rate`` is given.

    Args:
        model: a built ``keras.Model``, compiled or not, trained or not.
        selector: what to thaw, such as ``select.after("conv4_block6_out")``.
        only: thaw this and nothing else, so that all the rest is frozen.
        learning_rate: the rate from now on, a number or a schedule, whose step 0 is the next step.
        norms: thaw normalisation layers too. By default they stay as they are, gamma and beta
            included: their statistics belong to the pretraining data, and a few small batches
            of new data spoil them.

    Returns:
        A `Change` that lists what was thawed and which normalisations stay frozen.

    Raises:
        SelectionError: if the selector matches nothing that can be thawed. The model is then as
            it was.

    Examples:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((4,)), dense(8, name="a"), dense(2, name="b")])
        >>> _ = freeze(model, select.everything())
        >>> print(thaw(model, select.after("a")))
        thawed: 2 variables in b
    """
    divided = _opened(model)
    found = select.resolve_parts(divided, selector)
    units = divided.opened.units
    now = flags.on(units, model)
    held = [u for u in found if not norms and blocks.is_norm(u.layer)]
    held_ids = _ids(held)
    chosen = _ids(flags.switches(found)) - held_ids
    if found and not chosen:
        why = next(filter(None, (getattr(u.layer, "ftk_fixed", "") for u in found)), "")
        if why:
            raise SelectionError(
                f"nothing that {selector} matches in {model.name!r} can learn: {why}"
            )
        what = "normalisation layers, which thaw leaves as they are: pass norms=True"
        if len(held) < len(found):
            what = "statistics and normalisation layers, which no gradient changes"
        raise SelectionError(f"all that {selector} matches in {model.name!r} are {what}")
    # Normalisations that were asked for and learn already go on.
    wanted = chosen | (held_ids & now if only else now)
    still = tuple(u.path for u in held if id(u.variable) not in wanted)
    return _change(divided, wanted, now, norms=still, learning_rate=learning_rate)


def _opened(model) -> parts.Parts:
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    return parts.parts(model)


def _ids(units) -> frozenset[int]:
    return frozenset(id(u.variable) for u in units)


def _change(
    divided: parts.Parts,
    wanted: frozenset[int],
    now: frozenset[int],
    *,
    norms: tuple[str, ...] = (),
    learning_rate: float | None = None,
) -> Change:
    """Sets the flags, carries the optimizer over and compiles again; all of it or nothing."""
    model, units = divided.model, divided.opened.units
    learners = [u for u in units if u.learnable]
    head = _ids(divided.head_units)
    joins = any(id(u.variable) in wanted - now and id(u.variable) not in head for u in learners)
    before = flags.Snapshot(model)
    try:
        flags.put(model, units, wanted)
        done = {}
        if model.compiled and model.optimizer is not None:
            done = _recompile(model, joins, learning_rate)
    except BaseException:
        before.restore()
        raise
    record.refresh(model)
    return Change(
        frozen=_paths(units, now - wanted),
        thawed=_paths(units, wanted - now),
        norms=norms,
        **done,
    )


def _recompile(model: keras.Model, joins: bool, learning_rate) -> dict:
    optimizers.rebind(model)
    old = model.optimizer
    rate = optimizers.rate(old)
    if learning_rate is None and joins and rate > optimizers.open_rate(old):
        learning_rate = optimizers.open_rate(old)
    with scope(model):
        carried = optimizers.carry(old, model.trainable_variables, learning_rate=learning_rate)
        done = {
            "learning_rate": (rate, optimizers.rate(carried.optimizer)),
            "schedule": optimizers.schedule(carried.optimizer),
            "schedule_dropped": optimizers.scheduled(old)
            and not optimizers.scheduled(carried.optimizer),
            "restarted": carried.restarted,
        }
        recompile(model, carried.optimizer)  # after all that can fail
    return done


def _paths(units: tuple[graph.Unit, ...], ids: frozenset[int]) -> tuple[str, ...]:
    return tuple(u.path for u in units if id(u.variable) in ids)
