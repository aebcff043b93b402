"""The best training once more, with the examples that were held out to find it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import keras

from finetune_keras.recipes.phase import Phase, Refit
from finetune_keras.recipes.task import Task

__all__ = ["phases"]


def phases(task: Task, done: list[tuple[Phase, int]]) -> Iterator[Refit]:
    """What led to the best weights, each phase for as many epochs as it took to come there.

    The examples that were held out have served: nothing is chosen by them any more. With few
    examples they are worth more than anything else is. That is the first of the two ways of
    Goodfellow et al. 2016 (Deep Learning, section 7.8, algorithm 7.2), with the rate falling to
    its end in these epochs; the penalty of a solved head is chosen by cross-validation.

    Args:
        task: the run.
        done: those phases, and the number of epochs of each.
    """
    held = task.data.validation
    many = f"{len(keras.tree.flatten(held[0])[0])} " if isinstance(held, tuple) else ""
    task.say(f"refit: what was best is done again, with the {many}examples held out")
    for i, (phase, epochs) in enumerate(done):
        given = {f.name: getattr(phase, f.name) for f in dataclasses.fields(Phase)}
        given |= {"name": f"refit {phase.name}", "epochs": epochs, "patience": None}
        yield Refit(**given, first=i == 0, last=i == len(done) - 1)
