"""Optimizers across a change of what learns, by depth, and averaged."""

from finetune_keras.optimizers.checks import checked_rate, settings
from finetune_keras.optimizers.ema import AveragingOptimizer, averaged, averaging_of, ema
from finetune_keras.optimizers.layerwise import (
    LayerwiseOptimizer,
    by_decay,
    layerwise,
    layerwise_of,
    rebind,
    retargeted,
)
from finetune_keras.optimizers.scheduled import ScheduledOptimizer, up_and_down
from finetune_keras.optimizers.state import (
    Carried,
    carry,
    counted,
    default_rate,
    make,
    open_rate,
    rate,
    running,
    scaled,
    schedule,
    scheduled,
    variables,
    without,
)
from finetune_keras.optimizers.wrapper import chain, innermost

__all__ = [
    "AveragingOptimizer",
    "Carried",
    "LayerwiseOptimizer",
    "ScheduledOptimizer",
    "averaged",
    "averaging_of",
    "by_decay",
    "carry",
    "chain",
    "checked_rate",
    "counted",
    "default_rate",
    "ema",
    "innermost",
    "layerwise",
    "layerwise_of",
    "make",
    "open_rate",
    "rate",
    "rebind",
    "retargeted",
    "running",
    "scaled",
    "schedule",
    "scheduled",
    "settings",
    "up_and_down",
    "variables",
    "without",
]
