"""What an optimizer takes as a rate and as settings."""

from __future__ import annotations

import numbers
from collections.abc import Callable

import keras

from finetune_keras._errors import sentence, shown

__all__ = ["checked_rate", "settings"]


def settings(**given) -> dict:
    """Settings of an optimizer's config that change: those that are not ``None``.

    Raises:
        ValueError: for a number out of range, or two ways of clipping at once.
    """
    given = {k: v for k, v in given.items() if v is not None}
    clips = [k for k in given if "clip" in k]
    if sum(given[k] is not False for k in clips) > 1:
        raise ValueError(f"gradients are clipped in one way at a time; given {', '.join(clips)}")
    for key, value in given.items():
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if key == "gradient_accumulation_steps":
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{key} must be an integer of 1 or more; given {value!r}")
            given[key] = None if value == 1 else int(value)
        elif value is False:
            given[key] = None
        elif not number or not 0 < value < float("inf"):
            raise ValueError(f"{key} must be a number above 0, or False; given {value!r}")
    if clips:
        given = {"clipnorm": None, "clipvalue": None, "global_clipnorm": None, **given}
    return given


def checked_rate(learning_rate):
    """A positive number as a float, a schedule or function as it is, or an error."""
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        return learning_rate
    if callable(learning_rate):
        return _checked_function(learning_rate)
    number = isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, bool)
    if not number or not 0 < float(learning_rate) < float("inf"):
        raise ValueError(
            "learning_rate takes a positive number or a LearningRateSchedule; "
            f"given {shown(learning_rate)}"
        )
    return float(learning_rate)


def _checked_function(function: Callable) -> Callable:
    """A rate as Keras calls it in each step."""
    what = "learning_rate as a function takes no arguments and gives a positive number"
    try:
        found = function()
        number = float(keras.ops.convert_to_numpy(found))
    except (TypeError, ValueError) as e:
        raise ValueError(f"{what}; given {shown(function)}, which says: {sentence(e)}") from e
    if not 0 <= number < float("inf"):
        raise ValueError(f"{what}; given one that gives {shown(found)}")
    return function
