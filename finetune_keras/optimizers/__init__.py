"""Optimizers across a change of what learns."""

from finetune_keras.optimizers.state import (
    Carried,
    carry,
    counted,
    default_rate,
    innermost,
    make,
    open_rate,
    rate,
    scaled,
    schedule,
    scheduled,
    settings,
)

__all__ = [
    "Carried",
    "carry",
    "counted",
    "default_rate",
    "innermost",
    "make",
    "open_rate",
    "rate",
    "scaled",
    "schedule",
    "scheduled",
    "settings",
]
