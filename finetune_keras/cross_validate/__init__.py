"""Several trainings on folds or with several seeds, scored on examples that they have not seen."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune_keras._errors import nearest, plain, whole
from finetune_keras.cache import sharing
from finetune_keras.cross_validate import jobs
from finetune_keras.cross_validate.folds import rows, warn_few
from finetune_keras.cross_validate.jobs import Job
from finetune_keras.cross_validate.record import CrossValidation, Run
from finetune_keras.cross_validate.runs import Fresh, Mean, Trained, run
from finetune_keras.recipes import fine_tune

__all__ = ["CrossValidation", "Run", "cross_validate"]

_OWN = ("model", "train", "validation_data", "test_data", "seed", "verbose")
_SETTINGS = [name for name in inspect.signature(fine_tune).parameters if name not in _OWN]


def cross_validate(
    build: Callable[[], keras.Model],
    data: Any,
    *,
    folds: int | None = 5,
    seeds: int | Iterable[int] | None = None,
    groups: Any = None,
    validation_data: Any = None,
    test_data: Any = None,
    train: Callable[[keras.Model, Any, Any], Any] | None = None,
    verbose: int | str = "auto",
    **settings: Any,
) -> CrossValidation:
    """Trains on all folds but one and scores on that one, for each fold and seed.

    Each run trains a new model, by default by `finetune_keras.fine_tune`. What is scored takes no
    part in it: the best epoch is chosen by a fifth of the other folds, from which `fine_tune` then
    learns too. So it is the score to expect of such a training on such data; the models themselves
    are gone afterwards, and one for use is trained on all data.

    What a frozen network makes of an example is computed once for all runs, as far as its weights
    are equal in all models: see `finetune_keras.cache.sharing`.

    Args:
        build: a function without arguments that gives a new compiled model at each call, with a
            backbone of its own. It is called once more than there are runs, to see to that.
        data: ``(x, y)`` or ``(x, y, sample_weight)`` of arrays, or a data set of
            ``finetune_keras.data``. With ``folds=None`` what ``fine_tune`` takes.
        folds: into how many parts the data are divided, each class in proportion. ``None`` for
            one training on all of ``data`` with each seed, scored on ``test_data``.
        seeds: how many (0, 1, ...), or which. Each sets the random states at the start of its runs,
            for ``build`` too, and gives a division into folds of its own. By default one, 0.
        groups: one value an example, such as the patient. Examples of one group are in one fold,
            and on one side of what is held out to choose by. A file that a data set has several
            times is such a group by itself.
        validation_data: chooses the best epoch in all runs, instead of a fifth of the folds.
        test_data: with ``folds=None``, what is scored.
        train: ``train(model, train, validation)`` in place of ``fine_tune``, with data as it would
            get them; ``finetune_keras.fit`` in it shares features as well.
        verbose: 1 prints a line a run, 2 also what ``fine_tune`` prints, 0 nothing.
        **settings: of ``fine_tune``, such as ``recipe=`` and ``epochs=``. Callbacks are the same
            objects in all runs; each run has a folder of its own in ``directory=``.

    Returns:
        A `CrossValidation`: a table when printed, with ``.mean``, ``.std``, ``.interval()``, the
        ``.scores`` and ``.runs``, and ``.predictions`` of each example by a model that has not
        seen it. A run whose loss is NaN or that fails later than the first is reported there, with
        a ``RuntimeWarning``. Ctrl-C gives the runs that are done.

    Raises:
        TypeError: if ``build`` is no function, or gives no model; if the data cannot be divided.
        ValueError: if two models share variables; for fewer examples or groups than folds; if
            what is to be scored is not clear; for a number out of range.
        Exception: whatever the first run raises.

    Examples:
        >>> import finetune_keras as ftk
        >>> from finetune_keras import heads
        >>> def build():
        ...     base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        ...     return ftk.build(base, heads.Classification(2))
        >>> x, y = np.random.uniform(0, 255, (20, 24, 24, 3)), np.arange(20) % 2
        >>> found = ftk.cross_validate(build, (x, y), folds=2, recipe="linear_probe", verbose=0)
        >>> found.scores["accuracy"].shape, found.predictions.shape
        ((2, 1), (20, 2))
    """
    if not callable(build) or isinstance(build, keras.Model):
        raise TypeError(
            "build is a function without arguments that gives a new model for each run; given a "
            f"{type(build).__name__}"
        )
    numbers = _seeds(seeds)
    way = _way(train, settings)
    verbose = 1 if verbose == "auto" else int(verbose)
    if folds is None:
        parts, predictions = 0, Mean(None)
        todo = jobs.by_seed(data, numbers, groups, validation_data, test_data)
    else:
        parts = 1 if folds == 1 else whole("folds", folds, 2)
        if parts == 1 or test_data is not None:
            raise ValueError(
                f"folds={parts} "
                + ("leaves nothing to learn from: " if parts == 1 else "are scored themselves: ")
                + "folds=None trains on all of the data and scores on test_data="
            )
        found = rows(data, groups)
        todo, predictions = jobs.by_fold(found, parts, numbers, validation_data), Mean(found.count)
        warn_few(found, parts)
    total = max(parts, 1) * len(numbers)
    fresh = Fresh(build)
    with sharing():
        fresh(numbers[0])  # so that a variable that is not new is found before anything is trained
        gc.collect()
        runs, interrupted = run(
            todo, total, fresh, functools.partial(way, verbose), predictions, verbose=verbose
        )
    return CrossValidation(
        runs=runs,
        folds=parts,
        seeds=numbers,
        predictions=predictions.result(),
        interrupted=interrupted,
    )


def _seeds(seeds: Any) -> tuple[int, ...]:
    if seeds is None:
        return (0,)
    if np.ndim(seeds) == 0 and not isinstance(seeds, Iterable):
        return tuple(range(whole("seeds", seeds, 1)))
    found = tuple(whole("each of seeds", seed, 0) for seed in seeds)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds are different whole numbers, or how many; given {list(found)}")
    return found


def _way(train: Any, settings: dict[str, Any]) -> Callable[[int, keras.Model, Job], Trained]:
    """How a run is trained."""
    for name in settings:
        if name not in _SETTINGS:
            hint = "seeds= are given instead" if name == "seed" else nearest(name, _SETTINGS)
            raise TypeError(f"cross_validate and fine_tune have no argument {name!r}: {hint}")
    if train is None:
        return functools.partial(_fine_tuned, settings)
    if not callable(train):
        raise TypeError(
            f"train is a function of a model, data and validation data; given {plain(train)!r}"
        )
    if settings:
        raise TypeError(
            f"{next(iter(settings))}= is for fine_tune, and train= is trained by: leave out one"
        )
    return functools.partial(_trained, train)


def _fine_tuned(settings: dict[str, Any], verbose: int, model: keras.Model, job: Job) -> Trained:
    if settings.get("directory") is not None:  # a folder for each run
        name = f"seed_{job.seed}" if job.fold is None else f"seed_{job.seed}_fold_{job.fold + 1}"
        settings = {**settings, "directory": Path(settings["directory"]) / name}
    whole = job.whole is not None and settings.get("refit", True)
    history = fine_tune(
        model,
        job.train if whole else job.learn,
        validation_data=None if whole else job.choose,
        seed=job.seed,
        verbose=max(verbose - 1, 0),
        **settings,
    )
    return Trained(str(history.best), history.plan.batch_size, history.interrupted)


def _trained(train: Callable, verbose: int, model: keras.Model, job: Job) -> Trained:
    told = train(model, job.learn, job.choose)
    return Trained(interrupted=bool(getattr(told, "interrupted", False)))
