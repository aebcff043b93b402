"""The runs, one after the other, each with a model of its own that is let go of afterwards."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from finetune_keras._errors import LossError, sentence
from finetune_keras.cross_validate.held_out import scored
from finetune_keras.cross_validate.jobs import Job
from finetune_keras.cross_validate.record import Run
from finetune_keras.recipes.progress import lasting

__all__ = ["Fresh", "Mean", "Trained", "run"]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is known of a training.

    Attributes:
        best: the epoch that was kept, in words.
        batch_size: of arrays.
        interrupted: whether Ctrl-C ended it.
    """

    best: str = ""
    batch_size: int | None = None
    interrupted: bool = False


class Fresh:
    """Models from a user's function, no two of which share a variable."""

    def __init__(self, build: Callable[[], keras.Model]):
        self._build = build
        self._known: dict[int, weakref.ref] = {}

    def __call__(self, seed: int) -> keras.Model:
        """A new model, drawn with the seed.

        Raises:
            TypeError: if it is none.
            ValueError: if it is not compiled, or shares variables with one before.
        """
        keras.utils.set_random_seed(seed)
        model = self._build()
        if not isinstance(model, keras.Model):
            raise TypeError(f"build gives a compiled keras.Model; it gave a {type(model).__name__}")
        if not model.compiled or model.optimizer is None:
            raise ValueError(
                f"the model {model.name!r} that build gave is not compiled, so there is no loss: "
                "finetune_keras.compile(model, loss=..., metrics=[...])"
            )
        known = {key: ref for key, ref in self._known.items() if ref() is not None}
        shared = [v.path for v in model.variables if id(v) in known and known[id(v)]() is v]
        if shared:
            raise ValueError(
                f"two models that build gave share {len(shared)} variables, such as "
                f"{shared[0]!r}, so that what one fold learned would be there in the next: make "
                "everything in build, the backbone too"
            )
        self._known = known | {id(v): weakref.ref(v) for v in model.variables}
        return model


class Mean:
    """The mean of predictions that come for some rows at a time."""

    def __init__(self, count: int | None):
        self._count = count
        self._sums: list[np.ndarray] | None = None
        self._times: np.ndarray | None = None
        self._structure: Any = None

    def add(self, at: np.ndarray | None, predicted: Any) -> None:
        """Adds predictions of the rows ``at``, if both are known."""
        if at is None or predicted is None:
            return
        flat = keras.tree.flatten(predicted)
        if self._sums is None:
            count = len(flat[0]) if self._count is None else self._count
            self._structure = predicted
            self._sums = [np.zeros((count, f.shape[1])) for f in flat]
            self._times = np.zeros((count, 1))
        for total, rows in zip(self._sums, flat, strict=True):
            total[at] += rows
        self._times[at] += 1

    def result(self) -> Any:
        """The mean, NaN where nothing came; ``None`` if nothing came at all."""
        if self._sums is None:
            return None
        times = np.where(self._times, self._times, np.nan)
        means = [(total / times).astype(keras.config.floatx()) for total in self._sums]
        return keras.tree.pack_sequence_as(self._structure, means)


def run(
    jobs: Iterable[Job],
    total: int,
    fresh: Fresh,
    train: Callable[[keras.Model, Job], Trained],
    predictions: Mean,
    *,
    verbose: int,
) -> tuple[tuple[Run, ...], bool]:
    """Does all jobs, and says how they went.

    An error of the first run is raised, as the next ones would hardly fare better. Later there is
    something to lose: the run is recorded as failed, with a warning, and the next one begins. So
    is a run whose loss is no number.

    Returns:
        The runs, and whether Ctrl-C ended them early.
    """
    done: list[Run] = []
    for job in jobs:
        start, scores, best, failed = time.perf_counter(), {}, "", ""
        try:
            scores, best, predicted = _one(job, fresh, train)
            if not math.isfinite(scores.get("loss", 0.0)):
                failed, scores = f"the loss on what is scored is {scores['loss']}", {}
            else:
                predictions.add(job.at, predicted)
        except KeyboardInterrupt:
            if not done:
                raise  # there is nothing to tell
            if verbose:
                print(f"interrupted in {job.name}: {len(done)} of {total} runs are done")
            return tuple(done), True
        except Exception as e:
            if not done and not isinstance(e, LossError):
                raise
            failed = sentence(e)
        # Models are cycles, and would stay until some later time: on a GPU that may be too late.
        gc.collect()
        seconds = time.perf_counter() - start
        done.append(Run(job.fold, job.seed, scores, best, *job.counts, seconds, failed))
        if failed:
            warnings.warn(f"{job.name} failed: {failed}", RuntimeWarning, stacklevel=3)
        elif verbose:
            print(_line(job.name, done, total))
    return tuple(done), False


def _one(
    job: Job, fresh: Fresh, train: Callable[[keras.Model, Job], Trained]
) -> tuple[dict[str, float], str, Any]:
    model = fresh(job.seed)
    trained = train(model, job)
    if trained.interrupted:
        raise KeyboardInterrupt
    scores, predicted = scored(model, job.score, trained.batch_size)
    return scores, trained.best, predicted


def _line(name: str, done: list[Run], total: int) -> str:
    told = ", ".join(f"{metric} {value:.4g}" for metric, value in done[-1].scores.items())
    left = sum(run.seconds for run in done) / len(done) * (total - len(done))
    more = f", about {lasting(left)} left" if total > len(done) else ""
    return f"{name}: {told} ({lasting(done[-1].seconds)}{more})"
