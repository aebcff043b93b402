"""What a gradual thaw takes as counts, epochs and rates."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras

from finetune_keras import optimizers
from finetune_keras._errors import shown

__all__ = ["change", "count", "epochs", "rate_at", "rates"]

Schedule = keras.optimizers.schedules.LearningRateSchedule


def count(what: str, value: Any) -> int:
    """``value`` as an integer of 1 or more.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{what} must be an integer of 1 or more; given {shown(value)}")
    return int(value)


def change(monitor: Any, least: Any) -> tuple[str, float]:
    """What is monitored, and which change counts.

    Raises:
        ValueError: for what is no name of a metric, or no size of a change.
    """
    if not isinstance(monitor, str):
        raise ValueError(f"monitor is the name of a metric; given {shown(monitor)}")
    real = isinstance(least, numbers.Real) and not isinstance(least, bool)
    if not real or not 0 <= abs(least) < float("inf"):
        raise ValueError(f"min_delta is a number of 0 or more; given {shown(least)}")
    return monitor, float(least)


def epochs(what: str, value: Any) -> tuple[int, ...]:
    """``value`` as epochs from 0, each later than the one before.

    Raises:
        ValueError: if they are not.
    """
    try:
        given = [None] if isinstance(value, str | bytes) else list(value)
    except TypeError:
        given = [None]
    whole = all(isinstance(e, numbers.Integral) and not isinstance(e, bool) for e in given)
    if not (given and whole and given[0] >= 0) or any(a >= b for a, b in itertools.pairwise(given)):
        raise ValueError(
            f"{what} lists epochs from 0, each later than the one before, such as [1, 3, 6]; "
            f"given {shown(value)}"
        )
    return tuple(int(e) for e in given)


def rates(learning_rate: Any, decay: Any) -> tuple[Any, float]:
    """The two as they will be used.

    Raises:
        ValueError: for what is no rate and no factor, or both a list and a factor.
    """
    real = isinstance(decay, numbers.Real) and not isinstance(decay, bool)
    if not real or not 0 < float(decay) < float("inf"):
        raise ValueError(f"decay is a factor above 0; given {shown(decay)}")
    if isinstance(learning_rate, str | bytes | dict):
        raise ValueError(
            f"learning_rate is a number, a list or a function; given {learning_rate!r}"
        )
    if isinstance(learning_rate, Sequence) or hasattr(learning_rate, "__array__"):
        learning_rate = list(learning_rate) if getattr(learning_rate, "ndim", 1) else learning_rate
    several = isinstance(learning_rate, list)
    if several and not learning_rate:
        raise ValueError("learning_rate has no rate in it; given []")
    if decay != 1.0 and (several or callable(learning_rate)):
        raise ValueError(
            "decay= goes with one learning rate; a list, function or schedule says it all"
        )
    for one in learning_rate if several else [learning_rate]:
        if one is not None and (several or not callable(one)):  # one function is of the thaw
            optimizers.checked_rate(one)
    return learning_rate, float(decay)


def rate_at(
    learning_rate: Any, decay: float, number: int, joined: int, optimizer: Any
) -> float | Schedule | None:
    """What `finetune_keras.thaw` gets as its rate.

    Args:
        learning_rate: what `rates` gave, like ``decay``.
        decay: factor at each thaw but the first.
        number: how many steps are thawed after this one.
        joined: how many of them now.
        optimizer: the model's, for the rate in force.
    """
    if isinstance(learning_rate, list):
        return learning_rate[min(number, len(learning_rate)) - 1]
    if isinstance(learning_rate, Schedule):  # one, from the first thaw on
        return optimizers.running(optimizer, learning_rate)
    if isinstance(learning_rate, Callable):
        return learning_rate(number)
    if learning_rate is not None:
        return float(learning_rate) * decay ** (number - 1)
    if decay == 1.0:
        return None
    first = number == joined
    now = optimizers.rate(optimizer)
    now = min(now, optimizers.open_rate(optimizer)) if first else now
    return now * decay ** (joined - first)
