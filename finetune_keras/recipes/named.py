"""The recipes. Each is a function of a `Task` that gives phases."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_keras import select
from finetune_keras.recipes.phase import Phase
from finetune_keras.recipes.task import Task

__all__ = ["full", "linear_probe", "lp_ft"]


def linear_probe(task: Task) -> Iterable[Phase]:
    """The head alone, on features that are computed once.

    Fast, and right where the new images are like those of the pretraining or there are few.
    """
    return [task.probe()]


def full(task: Task) -> Iterable[Phase]:
    """A probe, then everything at one rate, normalisation layers and their statistics too.

    For many examples that are unlike those of the pretraining.
    """
    everything = select.everything()
    return [task.probe(), task.phase("all", everything, norms=True, layer_decay=None)]


def lp_ft(task: Task) -> Iterable[Phase]:
    """A probe, then everything but normalisation, at rates that fall with depth.

    The head is at its optimum before the backbone moves, so that features are not distorted by
    the gradients of a random head (Kumar et al. 2022, arXiv:2202.10054).
    """
    return [task.probe(), task.phase("all", select.everything())]
