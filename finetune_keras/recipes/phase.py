"""One step of a recipe: what learns, for how long, and at which rate."""

from __future__ import annotations

import dataclasses
from typing import Any

from finetune_keras import select

__all__ = ["Phase", "Refit"]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training in which the same variables learn.

    A phase starts from the best weights so far, with a fresh optimizer of the kind that the model
    is compiled with.

    Attributes:
        name: in the printed plan and in the History.
        learn: this learns, and nothing else does.
        epochs: at most so many; a solved phase is one epoch.
        learning_rate: a number, which the rate rises to in the first tenth of the steps and falls
            from along a cosine; or a schedule, which is taken as it is.
        norms: whether normalisation layers in ``learn`` learn too.
        layer_decay: share of the rate that each block has of the next one's; ``None`` for one
            rate.
        solver: ``"lbfgs"`` solves one dense layer in place of training it.
        patience: epochs without a better validation score after which the phase ends; ``None``
            goes on to the end.
        soften: whether a head that was solved just before becomes less sure first, see
            `finetune_keras.recipes.soften`; otherwise layers below find little left to learn.

    Examples:
        >>> Phase("top", select.blocks(-1) | select.head(), epochs=3, learning_rate=1e-4).norms
        False
    """

    name: str
    learn: select.Selector
    epochs: int
    learning_rate: Any = None
    norms: bool = False
    layer_decay: float | None = None
    solver: str | None = None
    patience: int | None = None
    soften: bool = True


@dataclasses.dataclass(frozen=True)
class Refit(Phase):
    """A phase once more, on all examples.

    Attributes:
        first: whether it begins with the weights that the run began with; otherwise with those
            that the one before ended with.
        last: whether the model is done after it.
    """

    first: bool = False
    last: bool = False
