"""One call that ends with the best model."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras

from finetune_keras import _private, losses, optimizers, parts
from finetune_keras._errors import SelectionError, nearest, whole
from finetune_keras.cache.features import unpacked
from finetune_keras.compile import compile as _compile
from finetune_keras.recipes import named
from finetune_keras.recipes.examples import check, examples
from finetune_keras.recipes.folder import Folder
from finetune_keras.recipes.identity import CHANGED, identity
from finetune_keras.recipes.phase import Phase
from finetune_keras.recipes.plan import make
from finetune_keras.recipes.run import Before, run
from finetune_keras.recipes.task import Task

__all__ = ["fine_tune"]


@dataclasses.dataclass(frozen=True)
class _Begun:
    """The folder of a model's last run, and the optimizer that the model had before it."""

    path: Path
    optimizer: keras.optimizers.Optimizer


# For a cell that is run again, with the model that its run has left.
_BEGUN: weakref.WeakKeyDictionary[keras.Model, _Begun] = weakref.WeakKeyDictionary()
_RECIPES = {name: getattr(named, name) for name in named.__all__}


def fine_tune(
    model: keras.Model,
    train: Any,
    *,
    validation_data: Any = None,
    test_data: Any = None,
    recipe: str | Callable[[Task], Iterable[Phase]] = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
    class_weight: Any = None,
    patience: int | None = None,
    monitor: str = "auto",
    refit: bool = True,
    callbacks: Any = None,
    seed: int | None = None,
    directory: str | os.PathLike | None = None,
    verbose: int | str = "auto",
) -> keras.callbacks.History:
    """Trains a model by a recipe, and leaves the best weights in it.

    Every recipe begins with a probe: the head alone, on features that are computed once. What
    comes after is kept only as far as it is better on the validation data, or as good, so that the
    model is never worse there than its probe. A solved head begins the next phase less sure than
    it is, or there would be no loss to learn from. What is not said is chosen, and printed with
    the reasons before anything is trained.

    The flags that say what learns are the recipe's. The model ends with those of the last phase,
    and a fresh optimizer at that phase's rate. Augmentation, of the model or of the data set, is
    drawn once for the phases that compute a frozen part once, as in `finetune_keras.fit`.

    NaN or an infinite loss ends the training with the best weights so far and a
    ``RuntimeWarning``. So does Ctrl-C, without a warning, once one epoch has ended. After any
    other error the model is as it was, but for one while the test data are evaluated.

    Args:
        model: a compiled ``keras.Model`` with a head, such as `finetune_keras.build` gives.
        train: ``(x, y)`` or ``(x, y, sample_weight)`` of arrays, or a data set of batches that
            can be read several times.
        validation_data: likewise. By default a fifth of arrays, or of a data set of
            ``finetune_keras.data``, is held out, each class in proportion.
        test_data: likewise; evaluated once, in the end.
        recipe: ``"auto"``, ``"linear_probe"``, ``"lp_ft"``, ``"full"``, ``"gradual"`` or
            ``"surgical"``, see `finetune_keras.recipes`; or a function of a `recipes.Task` that
            gives `recipes.Phase` objects.
        epochs: of all phases after the probe together, at most. A probe that cannot be solved has
            as many more. With ``"linear_probe"`` those of the probe, which is then trained.
        batch_size: of arrays.
        learning_rate: of the phases after the probe: a number, to which the rate rises and from
            which it falls, or a schedule. With ``"linear_probe"`` that of the probe, which is then
            trained.
        class_weight: ``"balanced"``, or weights by class name or number, as in
            `finetune_keras.compile`; ``False`` for none. They are part of the loss, also later.
        patience: epochs without a better score that end a phase.
        monitor: the metric that validation compares, such as ``"val_auc"``. By default the
            accuracy of a model with one output, or the loss (also where classes are weighted);
            of equal ones the later phase is best, and in a phase the least loss.
        refit: whether, after all phases, those that led to the best weights are done once more
            from the start, with the examples that were held out by default, each for as many
            epochs as it took. Where ``validation_data`` are given there is nothing to add. It is
            undone if even so it ends worse on these examples than the probe, or than the best by
            more than the standard error of an accuracy. There is none where a callback of Keras
            sets the rate by scores or epochs.
        callbacks: as in ``fit``; they see all phases, whose epochs are numbered on. In a refit
            each score by validation is NaN for them at the end of an epoch, and ``EarlyStopping``
            is left out.
        seed: sets the random states of Python, NumPy and Keras, and what is held out.
        directory: keeps the run after each epoch: weights, optimizer, random states, the best so
            far. The same call in a later process goes on from there, and on a CPU ends with the
            weights of a run without a break, to the bit, if the data are arrays or of
            ``finetune_keras.data``; of another data set only its kind and the number of batches
            tell whether it is the same. A run that is over is given again.
        verbose: 0 for nothing; 1 for the plan, the phases and a line an epoch with the rate and
            the time that is left; 2 for Keras' own bar of each epoch in place of the line.

    Returns:
        A ``keras.callbacks.History`` over all phases: ``.history["phase"]`` names the phase of
        each epoch. Beside it ``.plan``, what was chosen and why; ``.best``, the phase, epoch and
        score of the weights that were kept; ``.test``, loss and metrics on the test data;
        ``.notes``, what the recipe measured; ``.refit``, whether the weights are those of a
        refit, whose epochs are in the History too; ``.interrupted``, whether Ctrl-C ended it.

    Raises:
        TypeError: if the model, the data or the recipe are none.
        ValueError: if the model is not compiled, data are empty, can be read once only, have no
            end, or are a data set without validation data; if labels are not what the loss takes;
            for a number out of range; if the loss is NaN from the start.
        SelectionError: if the model has no head.
        CacheError: if ``directory`` has the run of another model, other data, other arguments or
            another version, or cannot be written.

    Examples:
        >>> import numpy as np
        >>> import finetune_keras as ftk
        >>> from finetune_keras import heads
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> model = ftk.build(base, heads.Classification(2))
        >>> x, y = np.random.uniform(0, 255, (20, 24, 24, 3)), np.arange(20) % 2
        >>> history = ftk.fine_tune(model, (x, y), recipe="linear_probe", verbose=0)
        >>> history.history["phase"], history.best.phase
        (['probe', 'refit probe'], 'probe')
    """
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            f"the model {model.name!r} is not compiled, so there is no loss: "
            "finetune_keras.compile(model, loss=..., metrics=[...])"
        )
    name, function = _recipe(recipe)
    if isinstance(recipe, str) and not parts.parts(model).head_units:
        raise SelectionError(
            f"the recipe {recipe!r} trains the head first, and {model.name!r} has none that is "
            "found: build the model by finetune_keras.build, or give recipe= a function of a task "
            "that says what learns"
        )
    if seed is not None:
        keras.utils.set_random_seed(whole("seed", seed, 0))
    verbose = 1 if verbose == "auto" else int(verbose)
    given = getattr(callbacks, "callbacks", callbacks)
    given = [] if given is None else keras.tree.flatten(given)
    arguments = {
        "recipe": function if callable(recipe) else recipe,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "class_weight": class_weight,
        "patience": patience,
        "monitor": monitor,
        "refit": bool(refit),
        "seed": seed,
    }
    folder = None if directory is None else Folder(directory)
    if folder is not None and any(isinstance(c, keras.callbacks.BackupAndRestore) for c in given):
        raise ValueError("directory= keeps the run, as BackupAndRestore would: leave it out")
    with contextlib.nullcontext() if folder is None else folder.locked():
        data = examples(model, train, validation_data, seed)
        if test_data is not None:
            check(model, test_data, "the test data")
        begun = None if folder is None else _BEGUN.get(model)
        begun = begun if begun and begun.path == folder.path.resolve() and folder.run else None
        optimizer = optimizers.make(
            model.optimizer, learning_rate=optimizers.default_rate(model.optimizer)
        )
        if begun:
            optimizer = begun.optimizer
        plan = make(
            model,
            data,
            optimizer,
            recipe=name,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            class_weight=class_weight,
            patience=patience,
            monitor=monitor,
            refit=refit,
            callbacks=given,
            timed=bool(verbose),
        )
        if folder is not None:
            plan = plan.of_size(folder.run.get("batch size", plan.batch_size), data)
            known = identity(model, data, arguments) | {"batch size": plan.batch_size}
            if begun:  # the run itself has changed these
                known |= {name: folder.run.get(name) for name in CHANGED}
            folder.begin(known)
            _BEGUN[model] = _Begun(folder.path.resolve(), optimizer)
        if verbose:
            print(plan)
        before = Before(model)
        try:
            if plan.class_weight is not None or class_weight is False:
                _weigh(model, plan.class_weight)
            task = Task(model, data, plan, optimizer, verbose=verbose)
            history = run(task, function, callbacks=given, verbose=verbose, folder=folder)
            history.plan, history.test = plan, None
        except BaseException:
            before.restore()
            raise
    if test_data is not None:  # whatever happens meanwhile, the model is trained
        history.test = _evaluated(model, test_data, plan.batch_size)
    if verbose:
        print(f"best: {history.best}")
        if history.test is not None:
            told = ", ".join(f"{k} {v:.4g}" for k, v in history.test.items())
            print(f"on the test data: {told}")
    return history


def _recipe(recipe: Any) -> tuple[str, Callable[[Task], Iterable[Phase]]]:
    if isinstance(recipe, str):
        if recipe not in _RECIPES:
            raise ValueError(f"there is no recipe {recipe!r}: {nearest(recipe, _RECIPES)}")
        return recipe, _RECIPES[recipe]
    if not callable(recipe):
        raise TypeError(
            f"recipe= is a name such as 'lp_ft', or a function of a task; given {recipe!r}"
        )
    return getattr(recipe, "__name__", type(recipe).__name__), recipe


def _weigh(model: keras.Model, weights: tuple[float, ...] | None) -> None:
    """Puts the weights of the classes into the loss, or takes those away that it has."""
    loss = _private.compile_arguments(model)["loss"]
    given = False if weights is None else list(weights)
    has = losses.takes_weights
    if weights is None and not any(map(has, keras.tree.flatten(loss))):
        return
    if isinstance(loss, dict):
        given = {name: given for name, own in loss.items() if weights is not None or has(own)}
    _compile(model, class_weight=given)


def _evaluated(model: keras.Model, data: Any, batch_size: int) -> dict[str, float]:
    x, y, weights = unpacked(data)
    size = batch_size if y is not None else None
    return model.evaluate(x, y, sample_weight=weights, batch_size=size, verbose=0, return_dict=True)
