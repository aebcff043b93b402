"""Recipes for a whole training, and what they are made of.

`finetune_keras.fine_tune` runs one. A recipe is a function of a `Task` that gives `Phase` objects;
`linear_probe`, `full`, `lp_ft`, `gradual`, `surgical` and `auto` are such functions.
"""

from finetune_keras.recipes.best import Best
from finetune_keras.recipes.fine_tune import fine_tune
from finetune_keras.recipes.named import auto, full, gradual, linear_probe, lp_ft, surgical
from finetune_keras.recipes.phase import Phase
from finetune_keras.recipes.plan import Plan
from finetune_keras.recipes.task import Task

__all__ = [
    "Best",
    "Phase",
    "Plan",
    "Task",
    "auto",
    "fine_tune",
    "full",
    "gradual",
    "linear_probe",
    "lp_ft",
    "surgical",
]
