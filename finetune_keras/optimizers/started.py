"""A schedule that is given to an optimizer which has made steps already.

Keras counts a schedule's steps from the optimizer's first one. `finetune_keras.thaw` and
`finetune_keras.compile` keep that count, so a schedule of 100 steps that is handed in after 500
would be over before it began, mostly at a rate of nearly nothing.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["Started", "plain", "told"]

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable(package="finetune_keras")
class Started(LearningRateSchedule):
    """A schedule whose step 0 is a later one of the optimizer.

    Args:
        schedule: any schedule.
        first_step: the optimizer's step at which it begins.

    Examples:
        >>> decay = keras.optimizers.schedules.CosineDecay(1.0, 100)
        >>> [round(float(Started(decay, 500)(step)), 3) for step in (500, 550, 600)]
        [1.0, 0.5, 0.0]
    """

    def __init__(self, schedule: LearningRateSchedule, first_step: int):
        self.schedule, self.first_step = plain(schedule), int(first_step)

    def __call__(self, step: Any) -> Any:
        """The rate at a step of the optimizer."""
        return self.schedule(ops.maximum(ops.convert_to_tensor(step) - self.first_step, 0))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "first_step": self.first_step,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Started:
        """The schedule again."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["first_step"])

    def plot(self, path: Any = None) -> Any:
        """Draws the schedule from its own step 0 on, if it can."""
        return self.schedule.plot(path)

    def __repr__(self) -> str:
        return f"{told(self.schedule)}, from step {self.first_step:,} on"


def plain(rate: Any) -> Any:
    """The schedule itself, as it was given."""
    return rate.schedule if isinstance(rate, Started) else rate


def told(rate: Any) -> str:
    """A schedule or function in a few words."""
    if type(rate).__module__.startswith("finetune_keras"):
        return repr(rate)
    return type(rate).__name__ if isinstance(rate, LearningRateSchedule) else "a function"
