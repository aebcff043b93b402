"""Optimizers across a change of what learns."""

from finetune_keras.optimizers.state import (
    Carried,
    carry,
    checked_rate,
    default_rate,
    innermost,
    make,
    open_rate,
    rate,
    scaled,
    scheduled,
    settings,
)

__all__ = [
    "Carried",
    "carry",
    "checked_rate",
    "default_rate",
    "innermost",
    "make",
    "open_rate",
    "rate",
    "scaled",
    "scheduled",
    "settings",
]
