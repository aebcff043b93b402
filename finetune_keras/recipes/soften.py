"""A head that leaves the layers below something to learn."""

from __future__ import annotations

import keras

from finetune_keras import select
from finetune_keras.cache.answers import losses
from finetune_keras.cache.shared import shares
from finetune_keras.recipes.examples import Examples
from finetune_keras.recipes.measure import features, training
from finetune_keras.recipes.phase import Phase
from finetune_keras.recipes.task import Task

__all__ = ["follows_probe", "soften"]

_SHARE = 0.5  # of the loss by chance
_HALVINGS = 30


def follows_probe(task: Task, before: Phase | None, phase: Phase) -> bool:
    """Whether a phase begins with what one left in which the head learned alone, and goes on with
    the head and more.
    """
    if before is None or not phase.soften or before.solver is None:
        return False
    head = task.learned(select.head())
    return task.learned(before.learn) == head < task.learned(phase.learn)


def soften(task: Task, data: Examples) -> float:
    """Makes a solved head less sure, until half of the loss that it had by chance is there again.

    A head at its optimum on few examples is right and sure about all of them. The loss has no
    gradient then, and what is thawed would learn next to nothing. How far a head is trained before
    decides how far the features move: Ren et al. 2023 (How to prepare your task head for
    finetuning, arXiv:2302.05779), who stop its training early. Here kernel and bias are multiplied
    by one number, so that the answers stay the same. A head whose loss is above is left as it is,
    and so is a regression.

    Args:
        task: its model has the head.
        data: what is learned from.

    Returns:
        The number; 1 if nothing was changed.
    """
    head = task.solvable()
    if head is None or head.task == "regression":
        return 1.0
    network = task.divided(select.head()).prefix
    if data is not task.data and shares(network):
        features(task, network)  # each example among the others of its batch then, as in a refit
    x, y, weights = training(task, network, data).view()
    chance, now = losses(head, x, y, (0.0, 1.0), sample_weight=weights)
    if now > _SHARE * chance * (1 - 1e-6):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        (loss,) = losses(head, x, y, (middle,), sample_weight=weights)
        low, high = (low, middle) if loss < _SHARE * chance else (middle, high)
    for variable in head.layer.weights:
        variable.assign(keras.ops.convert_to_numpy(variable) * high)
    return high
