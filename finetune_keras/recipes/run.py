"""Running the phases of a recipe, and keeping the best of all."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator

import keras

from finetune_keras import flags, record
from finetune_keras._errors import CacheError, LossError
from finetune_keras.cache.fit import fit
from finetune_keras.cache.forward import telling
from finetune_keras.cache.shared import sharing
from finetune_keras.compile import compile as _compile
from finetune_keras.recipes.aside import aside
from finetune_keras.recipes.best import Values, Watch
from finetune_keras.recipes.chance import Begins
from finetune_keras.recipes.examples import Examples
from finetune_keras.recipes.folder import Folder
from finetune_keras.recipes.phase import Phase, Refit
from finetune_keras.recipes.prepared import Prepared
from finetune_keras.recipes.progress import Progress
from finetune_keras.recipes.refit import compute_as_before, lasting
from finetune_keras.recipes.refit import phases as refit
from finetune_keras.recipes.soften import follows_probe, soften
from finetune_keras.recipes.statistics import following
from finetune_keras.recipes.survive import Survival
from finetune_keras.recipes.task import Task

__all__ = ["Before", "run"]

_FEW = 20_000  # examples; of more a head is hardly sure of all, and each is hashed to be shared


class Before:
    """A model as it is: weights, flags, optimizer and what is compiled."""

    def __init__(self, model: keras.Model):
        self.model = model
        self._values, self._flags = Values(model), flags.Snapshot(model)
        self._attributes = dict(vars(model))

    def restore(self) -> None:
        """Goes back to it."""
        self._flags.restore()
        for name in set(vars(self.model)) - set(self._attributes):
            del vars(self.model)[name]
        vars(self.model).update(self._attributes)
        self._values.restore()
        record.refresh(self.model)


def run(
    task: Task,
    recipe: Callable[[Task], Iterable[Phase]],
    *,
    callbacks: list[keras.callbacks.Callback],
    verbose: int,
    folder: Folder | None = None,
) -> keras.callbacks.History:
    """Runs a recipe; the model ends with the best weights.

    Args:
        task: the model with its data and plan.
        recipe: gives the phases.
        callbacks: of the user.
        verbose: as in ``fit``.
        folder: keeps the run, and perhaps has it already.

    Returns:
        One History of all phases.

    Raises:
        ValueError: if the loss is no number before anything was learned.
    """
    model, optimizer = task.model, task.optimizer
    whole = task.data.whole
    held = 0 if whole is None else whole.count - task.data.count
    watch = Watch(model, task.plan.monitor, held)
    history = keras.callbacks.History()
    history.set_model(model)
    history.epoch, history.history, history.interrupted = [], {}, False
    last: Phase | None = None
    kept = None if folder is None else Survival(folder, task, watch, history, callbacks)
    progress = Progress(watch)
    if verbose and kept is not None and kept.resumed:
        print(kept.resumed)
    done: list[Phase] = []
    prepared = Prepared(model, optimizer, warm=task.plan.warm, refit=task.plan.refit)
    try:
        # What is computed for a probe is asked for again before the next phase, and in a refit.
        told_of = telling(progress.features) if verbose == 1 else contextlib.nullcontext()
        with told_of, contextlib.ExitStack() as shared:
            few = task.data.count <= _FEW
            if few:
                shared.enter_context(sharing())
            for number, phase in enumerate(_phases(task, recipe, watch, history)):
                done.append(phase)
                last, told, over = phase, _Told(), 0
                past = kept is not None and kept.past(number, phase)
                if verbose and not past:
                    print(_line(phase, model))
                if kept is not None and not past:
                    over = kept.enter(number, told)
                steps = _data(task, phase).steps(task.plan.batch_size)
                prepared.make(phase, steps)
                if past:
                    kept.take_up(number, told)
                    _append(history, told, phase)
                    if watch.lost:
                        break
                    continue
                watch.begin(phase, number, len(history.epoch))
                progress.begin(phase, over)
                seen = [*callbacks, told]
                if isinstance(phase, Refit):
                    seen = aside(seen, list(history.history))
                seen += [watch, *([progress] if verbose == 1 else [])]
                seen += [] if kept is None else [kept]
                try:
                    if isinstance(phase, Refit):
                        compute_as_before(task)
                    if few and not over and follows_probe(task, _before(done, watch), phase):
                        _soften(task, _data(task, phase), verbose)
                    if phase.solver is None and not task.plan.refit:
                        shared.close()
                    begins = Begins(model, task.data)
                    _train(task, phase, [begins, *seen], len(history.epoch), verbose, over=over)
                    prepared.keep()
                finally:
                    _append(history, told, phase)
                    watch.values.restore()
                if watch.lost:
                    break
    except KeyboardInterrupt:
        if watch.best is None:
            raise  # there is nothing better than what there was
        watch.values.restore()  # it may have come while they were put back
        history.interrupted = True
        watch.give_up()
        if verbose:
            _say_interrupted(last, watch, folder)
    if last is None:
        raise ValueError(f"the recipe {task.plan.recipe!r} gave no phase")
    if watch.best is None:
        raise LossError(
            f"nothing was learned, as the {watch.lost} of the first phase, {last.name!r}: "
            "finetune_keras.check(model, data) looks for the cause"
        )
    if watch.lost:
        watch.give_up()
        _warn_lost(last, watch)
    rate = task.plan.head_rate if last.learning_rate is None else last.learning_rate
    _compile(
        model, optimizer=optimizer, learning_rate=rate, layer_decay=last.layer_decay
    )  # without what a step on the way left in it, and at a rate that does not end in 0
    if watch.refitted is False and not watch.lost and not history.interrupted:
        task.say("refit: not kept, as it ended early, or with a worse score on what was held out")
    history.best, history.notes = watch.best, tuple(task.notes)
    history.refit = bool(watch.refitted)
    model.history = history
    return history


def _phases(
    task: Task,
    recipe: Callable[[Task], Iterable[Phase]],
    watch: Watch,
    history: keras.callbacks.History,
) -> Iterator[Phase]:
    """Those of the recipe, and those that led to the best weights once more."""
    given = []
    for phase in recipe(task):
        given.append(phase)
        yield phase
    if task.plan.refit and watch.path:
        path = [(given[number], epochs) for number, epochs in watch.path]
        phase, epochs = path[-1]
        first = watch.best.epoch - epochs + 1  # names may stand for several phases
        told = slice(first, first + phase.epochs)
        scores, names = history.history[watch.best.monitor][told], history.history["phase"][told]
        own = [s for s, name in zip(scores, names, strict=True) if name == phase.name]
        last = lasting(own, watch.best.value, watch.held)
        yield from refit(task, [*path[:-1], (phase, last)])


def _before(done: list[Phase], watch: Watch) -> Phase | None:
    """The phase that left the weights which the last one begins with."""
    if isinstance(done[-1], Refit):
        return None if done[-1].first else done[-2]
    return done[watch.path[-1][0]] if watch.path else None


def _soften(task: Task, data: Examples, verbose: int) -> None:
    factor = soften(task, data)
    if verbose and factor < 1:
        print(f"the head begins with {factor:.2g} times its logits, so that there is a loss")


def _data(task: Task, phase: Phase) -> Examples:
    return task.data.whole if isinstance(phase, Refit) else task.data


def _train(
    task: Task,
    phase: Phase,
    callbacks: list[keras.callbacks.Callback],
    first: int,
    verbose: int,
    *,
    over: int = 0,
) -> None:
    data, plan = _data(task, phase), task.plan
    x, y, weights = data.train
    own, epochs = {"validation_data": data.validation}, first + phase.epochs
    if isinstance(phase, Refit) and (phase.solver or not phase.last):
        own = {}
    elif isinstance(phase, Refit):  # once, to see that all went well: it has learned from these
        own["validation_freq"] = [epochs]
    steps = task.data.steps(plan.batch_size)  # in a refit as before it: a traced step has it
    with warnings.catch_warnings(), following(task.model, steps):
        # Recipes keep drawing once: said in the guide, and not at each phase.
        warnings.filterwarnings("ignore", message=".*in this training, since each")
        train = functools.partial(
            fit,
            task.model,
            x,
            y,
            sample_weight=weights,
            batch_size=plan.batch_size if data.arrays else None,
            epochs=epochs,
            initial_epoch=first + over,
            callbacks=callbacks,
            verbose=max(verbose - 1, 0),
            **own,
        )
        before = _epochs(callbacks)
        try:
            train(solver=phase.solver)
        except CacheError as e:  # there is no room, on the disk either
            if phase.solver or _epochs(callbacks) != before:
                raise
            task.say(f"phase {phase.name!r}: what is frozen is computed at each epoch, as {e}")
            train(cache=False)


def _epochs(callbacks: list[keras.callbacks.Callback]) -> list[int]:
    """Those of the phase that have ended."""
    told = next(c for c in callbacks if isinstance(c, _Told))
    return list(getattr(told, "epoch", []))


class _Told(keras.callbacks.History):
    """What a phase reported, so far as it came."""


def _append(history: keras.callbacks.History, told: _Told, phase: Phase) -> None:
    """Adds the epochs of a phase; what only some phases report is NaN in the others."""
    epochs = getattr(told, "epoch", [])
    before, more = history.history, {**told.history, "phase": [phase.name] * len(epochs)}
    for name in {**before, **more}:
        values = before.setdefault(name, [math.nan] * len(history.epoch))
        found = more.get(name, [])
        values += [math.nan] * (len(epochs) - len(found)) + found
    history.epoch += [len(history.epoch) + i for i in range(len(epochs))]
    history.params = told.params or history.params


def _line(phase: Phase, model: keras.Model) -> str:
    how = "solved"
    if phase.solver is None:
        rate = phase.learning_rate
        rate = f"{rate:.3g}" if isinstance(rate, float) else "a schedule" if rate else "by default"
        how = f"{phase.epochs} epochs at most, learning rate {rate}"
        if phase.layer_decay is not None:
            how += f", {phase.layer_decay:g} times that a block"
    return f"phase {phase.name!r}: {phase.learn} learns, {how}"


def _say_interrupted(phase: Phase, watch: Watch, folder: Folder | None) -> None:
    print(f"interrupted in phase {phase.name!r}: the model has its best weights, {watch.best}")
    if folder is not None:
        print(f"the run is kept in {folder.path}: the same call goes on from there")


def _warn_lost(phase: Phase, watch: Watch) -> None:
    lower = ""
    if isinstance(phase.learning_rate, float):
        lower = f"learning_rate={phase.learning_rate / 10:.1g}, or "
    warnings.warn(
        f"training stopped in phase {phase.name!r}, as {watch.lost}; the model has its best "
        f"weights, {watch.best}: try {lower}finetune_keras.compile(model, clipnorm=1.0) before",
        RuntimeWarning,
        stacklevel=4,
    )
