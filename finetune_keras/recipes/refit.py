"""A probe that was best, solved again with the examples that were held out to find that."""

from __future__ import annotations

import keras

from finetune_keras import flags, record, select
from finetune_keras.cache.fit import fit
from finetune_keras.freeze import thaw
from finetune_keras.recipes.task import Task

__all__ = ["refit"]


def refit(task: Task) -> bool:
    """Solves the head of a model anew on all examples, if some were held out by `fine_tune`.

    They have served: nothing is chosen by them any more. With few examples they are worth more to
    the head than anything else is. The penalty is chosen by cross-validation.

    Args:
        task: with the weights of the probe in the model.

    Returns:
        Whether there were any.
    """
    if task.data.whole is None:
        return False
    model, (x, y, weights) = task.model, task.data.whole
    before = flags.Snapshot(model)
    try:
        thaw(model, select.head(), only=True, norms=True)
        fit(
            model,
            x,
            y,
            sample_weight=weights,
            batch_size=task.plan.batch_size if task.data.arrays else None,
            verbose=0,
            solver="lbfgs",
        )
    finally:
        before.restore()
        record.refresh(model)
    held = task.data.validation
    many = f"{len(keras.tree.flatten(held[0])[0])} " if isinstance(held, tuple) else ""
    task.say(f"the probe is best, so it is solved again with the {many}examples held out")
    return True
