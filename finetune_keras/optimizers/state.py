"""A fresh optimizer for a new set of variables, with the state of the old one.

Keras builds an optimizer for one list of variables. When what learns changes, the old one is of
no use (``Unknown variable``) and a new one forgets everything. `carry` makes the new one
from the old one's config and copies each slot (momentum, second moment, moving average) to the
variable it belonged to, by identity.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable

import keras
import numpy as np

from finetune_keras import _private
from finetune_keras._errors import nearest
from finetune_keras.optimizers import newcomers, started
from finetune_keras.optimizers.checks import checked_rate
from finetune_keras.optimizers.wrapper import Optimizer, Wrapper, chain, innermost

__all__ = [
    "Carried",
    "carry",
    "copied",
    "count",
    "counted",
    "default_rate",
    "make",
    "nested",
    "open_rate",
    "rate",
    "running",
    "scaled",
    "schedule",
    "scheduled",
    "variables",
    "without",
]

_AROUND = ("LossScaleOptimizer", "MultiOptimizer")  # others, so that a name is not enough
_OPEN = 0.01  # an open backbone learns at a hundredth of the rate of a new head


@dataclasses.dataclass(frozen=True)
class Carried:
    """What became of an optimizer.

    Attributes:
        optimizer: the new one, built on the new variables.
        restarted: true if its slots could not be matched and start at zero (Adafactor, which
            makes them in a way of its own).
    """

    optimizer: Optimizer
    restarted: bool


def default_rate(optimizer: Optimizer) -> float:
    """The rate for a new head: the default of the optimizer's own class in Keras."""
    signature = inspect.signature(type(innermost(optimizer)).__init__)
    rate_ = signature.parameters.get("learning_rate")
    return rate_.default if rate_ is not None and isinstance(rate_.default, float) else 1e-3


def open_rate(optimizer: Optimizer) -> float:
    """The rate where pretrained layers learn: a hundredth of `default_rate`, which is 1e-5 for
    Adam; a tenth of it where the rate falls with depth.
    """
    shares = [o.open_share for o in chain(optimizer) if isinstance(o, Wrapper) and o.open_share]
    return (shares or [_OPEN])[0] * default_rate(optimizer)


def rate(optimizer: Optimizer) -> float:
    """The learning rate now in force, of a schedule too."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def scheduled(optimizer: Optimizer) -> bool:
    """Whether the rate comes from a schedule."""
    return _by_schedule(optimizer) or any(getattr(o, "sets_rate", False) for o in chain(optimizer))


def _by_schedule(optimizer: Optimizer) -> bool:
    return callable(_private.rate_object(innermost(optimizer)))


def schedule(optimizer: Optimizer) -> str:
    """The schedule that the rate comes from, in a few words; empty if it is a number."""
    rate_ = _private.rate_object(innermost(optimizer))
    if callable(rate_):
        return started.told(rate_)
    return "up and down" if scheduled(optimizer) else ""


def running(optimizer: Optimizer, wanted: keras.optimizers.schedules.LearningRateSchedule):
    """The schedule that is in force, with the step at which it began, if it is ``wanted`` or has
    its settings; else ``wanted``, which will then begin anew.
    """
    now = _private.rate_object(innermost(optimizer))
    schedule_ = started.plain(now)
    if schedule_ is wanted:
        return now
    same = type(schedule_) is type(wanted) and schedule_.get_config() == wanted.get_config()
    return now if same else wanted


def variables(optimizer: Optimizer) -> list[keras.Variable]:
    """All that an optimizer has; its ``variables`` lack a number of Nadam's where Keras builds it
    inside of ``LossScaleOptimizer``, without tracking it.

    Examples:
        >>> scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam())
        >>> scaled.build([keras.Variable([1.0])])
        >>> len(variables(scaled)) - len(scaled.variables)
        1
    """
    found = {id(v): v for v in optimizer.variables}
    for link in chain(optimizer):
        found.update((id(v), v) for v in vars(link).values() if isinstance(v, keras.Variable))
    return list(found.values())


def count(optimizer: Optimizer) -> keras.Variable:
    """The steps that a schedule counts: batches, where gradients are accumulated too."""
    return next(v for v in innermost(optimizer).variables if v.name == "iteration")


def counted(optimizer: Optimizer) -> int:
    """How many that are."""
    return int(keras.ops.convert_to_numpy(count(optimizer)))


def scaled(optimizer: Optimizer) -> Optimizer:
    """The optimizer with its loss scaled, so that gradients in float16 do not underflow."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def make(
    optimizer: str | Optimizer,
    learning_rate=None,
    *,
    default: float | None = None,
    settings: dict | None = None,
):
    """An optimizer from a name or an instance, with a rate.

    Args:
        optimizer: a Keras name such as ``"adamw"``, or an instance. An instance that was built
            for other variables is copied by its config, since Keras would refuse it.
        learning_rate: a number or a ``LearningRateSchedule``; ``None`` leaves an instance's own.
        default: the rate for an optimizer given by name when ``learning_rate`` is ``None``.
        settings: what `finetune_keras.optimizers.settings` gave.
    """
    if isinstance(optimizer, Optimizer):
        if learning_rate is None and optimizer.built and _by_schedule(optimizer):
            learning_rate = _private.rate_object(innermost(optimizer))
        learning_rate = started.plain(learning_rate)  # a new optimizer counts from 0
        if optimizer.built or learning_rate is not None or settings:
            optimizer = _from_config(optimizer, learning_rate, settings)
        return optimizer
    made = _named(optimizer)
    wanted = default if learning_rate is None else learning_rate
    return made if wanted is None and not settings else _from_config(made, wanted, settings)


def _named(name) -> Optimizer:
    if not isinstance(name, str):
        raise TypeError(
            "optimizer= takes a name such as 'adamw' or a keras.optimizers.Optimizer; "
            f"given {name!r}"
        )
    names = {
        n.lower(): n
        for n, cls in vars(keras.optimizers).items()
        if isinstance(cls, type)
        and issubclass(cls, Optimizer)
        and cls is not Optimizer
        and n not in _AROUND
    }
    if name.lower() not in names:
        raise ValueError(f"unknown optimizer {name!r}; {nearest(name.lower(), names)}")
    return getattr(keras.optimizers, names[name.lower()])()


def copied(optimizer: Optimizer) -> Optimizer:
    """A fresh optimizer with the same settings."""
    return _from_config(optimizer)


def _from_config(optimizer: Optimizer, learning_rate=None, changed=None) -> Optimizer:
    """A fresh optimizer with the same settings, but for another rate and what is ``changed``."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if isinstance(inner, Optimizer):
        made = _from_config(inner, learning_rate, changed)
        if learning_rate is not None and getattr(optimizer, "sets_rate", False):
            return made  # the rate from now on
        return _around(optimizer, made)
    config = optimizer.get_config()
    if learning_rate is not None:
        config["learning_rate"] = checked_rate(learning_rate)
    elif _by_schedule(optimizer):
        # The object itself: a lambda, or a class of the user's, does not survive the config.
        config["learning_rate"] = _private.rate_object(optimizer)
    made = type(optimizer).from_config({**config, **(changed or {})})
    _private.copy_decay_exclusions(optimizer, made)
    return made


def without(optimizer: Optimizer, kind: type[Wrapper]) -> Optimizer:
    """``optimizer``, not yet built, without the wrappers of a kind."""
    *wrappers, made = chain(optimizer)
    for wrapper in reversed(wrappers):
        if type(wrapper) is not kind:
            made = _around(wrapper, made)
    return made


def _around(wrapper: Optimizer, inner: Optimizer) -> Optimizer:
    """A fresh wrapper with the settings of another, around ``inner``."""
    config = wrapper.get_config()
    config.pop("inner_optimizer")
    made = type(wrapper)(inner, **config)
    if isinstance(made, Wrapper):
        made.inherit(wrapper)
    return made


def nested(optimizer: Optimizer, new: Wrapper) -> Optimizer:
    """``optimizer``, not yet built, with ``new`` around its steps in place of one like it.

    From the inside out come the optimizer, the rates by depth, the average of weights and the
    scale of the loss, whatever the order in which they were asked for.
    """
    *wrappers, made = chain(optimizer)
    wrappers = [w for w in wrappers if type(w) is not type(new)]
    for wrapper in sorted([*wrappers, new], key=lambda w: getattr(w, "order", 9)):
        made = _around(wrapper, made)
    return made


def carry(
    old: Optimizer,
    new_variables: list[keras.Variable],
    learning_rate=None,
    settings: dict | None = None,
    change: Callable[[Optimizer], Optimizer] | None = None,
    restart: frozenset[int] = frozenset(),
) -> Carried:
    """Makes an optimizer like ``old`` for ``new_variables``, and moves its state over.

    Variables that ``old`` did not know get slots of their own at zero; with Adam, AdamW and Nadam
    their first steps are corrected for that (`finetune_keras.optimizers.newcomers`).

    Args:
        old: a Keras optimizer, built or not. It is not changed, and not used any more.
        new_variables: the variables that learn from now on.
        learning_rate: a number or schedule; ``None`` keeps the rate in force. A schedule begins
            now: the optimizer's count of steps goes on, and is taken off.
        settings: what `finetune_keras.optimizers.settings` gave.
        change: what is done to the new optimizer before it is built, such as a wrapper put on.
        restart: ``id``s of variables that ``old`` is to have known nothing of.
    """
    scheduled_ = isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule)
    if scheduled_ and not isinstance(learning_rate, started.Started) and old.built:
        first_step = counted(old)
        if first_step:
            learning_rate = started.Started(learning_rate, first_step)
    new = _from_config(old, learning_rate, settings)
    new = new if change is None else change(new)
    slots, rest = _build(new, new_variables)
    if not old.built:
        return Carried(new, restarted=False)
    old_variables = _private.built_on(old)
    slots_, rest_, restarted = _slots_of(old, old_variables)
    known = {key: slot for key, slot in slots_.items() if key[0] not in restart}
    mine, theirs = {**slots, **rest}, {**known, **rest_}
    pairs = [(theirs[key], slot) for key, slot in mine.items() if key in theirs]
    if restarted:
        pairs.append((count(old), count(new)))
    for source, target in pairs:
        # Through NumPy: on JAX ``assign`` would share a buffer that the next step donates.
        target.assign(np.array(keras.ops.convert_to_numpy(source)))
    _start_averages(slots, new_variables, known)
    if not restarted:
        kept = [v for v in old_variables if id(v) not in restart]
        newcomers.attach(innermost(new), _newcomers(old, kept, new_variables))
    return Carried(new, restarted)


def _start_averages(slots: dict, variables: list, carried: dict) -> None:
    """Moving averages of weights begin at the weights; Keras sees to it at step 0 only, and would
    later write an average near zero over them.
    """
    by_id = {id(v): v for v in variables}
    for (key, name), slot in slots.items():
        if name == "average" and (key, name) not in carried:
            slot.assign(np.array(keras.ops.convert_to_numpy(by_id[key])))


def _newcomers(old: Optimizer, old_variables: list, new_variables: list) -> list[newcomers.Group]:
    """The variables without history, now and from earlier changes, by their first step."""
    step = int(keras.ops.convert_to_numpy(innermost(old).iterations))
    known = {id(v) for v in old_variables}
    still = known & {id(v) for v in new_variables}
    groups = [
        newcomers.Group(g.since, tuple(v for v in g.variables if id(v) in still))
        for g in newcomers.groups(innermost(old))
    ]
    groups.append(newcomers.Group(step, tuple(v for v in new_variables if id(v) not in known)))
    return [g for g in groups if g.variables]


def _build(optimizer: Optimizer, variables: list, *, tiny: bool = False):
    """Builds an optimizer and notes which slot it makes for which variable.

    Returns:
        ``({(id(variable), slot name): slot}, {(link, number): every other variable})``, where a
        link is the name of the optimizer's class, or of one inside it.
    """
    slots: dict[tuple[int, str], keras.Variable] = {}

    def noting(link: Optimizer):
        plain = link.add_variable_from_reference

        def noted(reference_variable, name=None, initializer="zeros"):
            if tiny:  # only the order matters: no second copy of a large model's slots
                slot = link.add_variable(shape=(), name=name)
            else:
                slot = plain(reference_variable, name=name, initializer=initializer)
            slots[id(reference_variable), name] = slot
            return slot

        link.add_variable_from_reference = noted

    links = chain(optimizer)
    for link in links:
        noting(link)
    try:
        optimizer.build(variables)
    finally:
        for link in links:
            del link.add_variable_from_reference
    taken = {id(s) for s in slots.values()}
    rest = {}
    for link in reversed(links):  # the innermost first: the others list its variables too
        # The rate is part of the config, and no variable at all where there is a schedule.
        own = [v for v in link.variables if id(v) not in taken and v.name != "learning_rate"]
        taken |= {id(v) for v in own}
        rest.update({(type(link).__name__, i): v for i, v in enumerate(own)})
    return slots, rest


def _slots_of(old: Optimizer, variables: Iterable[keras.Variable]):
    """Like `_build` for an optimizer that exists, and whether the innermost's variables cannot be
    told and are left out.

    A twin is built on the same variables; it makes its own in the same order.
    """
    variables = list(variables)
    twin = _from_config(old)
    try:
        twin_slots, twin_rest = _build(twin, variables, tiny=True)
    except ValueError:  # one that writes to its slots while it builds, such as ScheduleFreeAdamW
        twin = _from_config(old)
        twin_slots, twin_rest = _build(twin, variables)
    inner, its = innermost(old).variables, innermost(twin).variables
    pairs = list(zip(twin.variables, old.variables, strict=False))
    shapes = {id(v): tuple(v.shape) for v in variables}
    of = {id(slot): shapes[key[0]] for key, slot in twin_slots.items()}
    odd = len(its) != len(inner) or any(
        tuple(o.shape) != of.get(id(t), ()) for t, o in zip(its, inner, strict=True)
    )
    if odd:  # its variables come last
        pairs = pairs[: len(old.variables) - len(inner)]
    by_twin = {id(t): o for t, o in pairs}
    slots = {key: by_twin[id(slot)] for key, slot in twin_slots.items() if id(slot) in by_twin}
    rest = {key: by_twin[id(t)] for key, t in twin_rest.items() if id(t) in by_twin}
    return slots, rest, odd
