"""The best training once more, with the examples that were held out to find it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import keras

from finetune_keras._errors import CacheError
from finetune_keras.averaging.scoring import divided
from finetune_keras.cache.shared import shares
from finetune_keras.recipes.best import margin
from finetune_keras.recipes.measure import features
from finetune_keras.recipes.phase import Phase, Refit
from finetune_keras.recipes.task import Task

__all__ = ["compute_as_before", "lasting", "phases"]


def lasting(values: list[float], best: float, held: int) -> int:
    """The epochs of a phase until the last one that may be as good as the best of all.

    Among few examples the best epoch is one of several by chance, and an early one would cut the
    training short. An accuracy of ``held`` examples within its standard error counts as good, the
    more so as the rate is lower in later epochs; of other scores, such as a loss, only the best.

    Args:
        values: the score of each epoch.
        best: the best of them.
        held: the number of examples.

    Examples:
        >>> lasting([0.6, 0.8, 0.75, 0.75, 0.6], 0.8, 20), lasting([0.9, 1.0, 0.9, 0.9], 1.0, 10)
        (4, 4)
        >>> lasting([0.6, 0.8, 0.75, 0.75, 0.6], 0.8, 2000), lasting([0.9, 0.5, 0.7], 0.5, 20)
        (2, 2)
    """
    most = max(values) == best > min(values)
    error = 2**0.5 * margin(best, held) if most and min(values) >= 0 else 0.0
    return max(i for i, v in enumerate(values, 1) if abs(v - best) <= error)


def phases(task: Task, done: list[tuple[Phase, int]]) -> Iterator[Refit]:
    """What led to the best weights, each phase for as many epochs as it took to come there.

    The examples that were held out have served: nothing is chosen by them any more. With few
    examples they are worth more than anything else is. That is the first of the two ways of
    Goodfellow et al. 2016 (Deep Learning, section 7.8, algorithm 7.2), with the rate falling to
    its end in these epochs; the penalty of a solved head is chosen by cross-validation.

    Args:
        task: the run.
        done: those phases, and the number of epochs of each, from `lasting`.
    """
    held = task.data.validation
    many = f"{len(keras.tree.flatten(held[0])[0])} " if isinstance(held, tuple) else ""
    task.say(f"refit: what was best is done again, with the {many}examples held out")
    for i, (phase, epochs) in enumerate(done):
        given = {f.name: getattr(phase, f.name) for f in dataclasses.fields(Phase)}
        given |= {"name": f"refit {phase.name}", "epochs": epochs, "patience": None}
        yield Refit(**given, first=i == 0, last=i == len(done) - 1)


def compute_as_before(task: Task) -> None:
    """Has what is frozen computed for the examples in the batches of the phase that is refitted.

    There it was, if this process ran that phase, and is looked up. A process that goes on in a
    refit computes it so: what else is in a batch may show in the last bit of a row.
    """
    division = divided(task.model)
    if division is not None and shares(division.prefix):
        with contextlib.suppress(CacheError):  # no room: then it is computed at each epoch
            features(task, division.prefix)
