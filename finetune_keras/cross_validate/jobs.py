"""What each run is to do: with which data, and by which seed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from finetune_keras.cache import source
from finetune_keras.cache.features import unpacked
from finetune_keras.cross_validate.folds import Rows, divisions, held_out, rows
from finetune_keras.data.dataset import Plan
from finetune_keras.recipes.examples import Divided

__all__ = ["Job", "by_fold", "by_seed"]


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What a run is to do.

    Attributes:
        fold: its number, from 0; ``None`` for test data.
        seed: of the run.
        learn: data to learn from.
        choose: to choose the best epoch by, or ``None``.
        whole: gives both together; ``None`` where ``choose`` are no part of the data.
        score: to be scored on.
        at: the numbers of these, among all that are scored; ``None`` if they have none.
        counts: number of examples to learn from, choose by and score; ``None`` if not known.
        name: in messages.
    """

    fold: int | None
    seed: int
    learn: Any
    choose: Any
    whole: Callable[[], Any] | None
    score: Any
    at: np.ndarray | None
    counts: tuple[int | None, int | None, int | None]
    name: str

    @property
    def train(self) -> Any:
        """What `finetune_keras.fine_tune` gets."""
        if self.whole is None:
            return self.learn
        return Divided(self.whole(), self.learn, self.choose)


def by_fold(
    data: Rows, folds: int, seeds: tuple[int, ...], validation_data: Any = None
) -> Iterator[Job]:
    """A run for each fold and seed. Data are taken when it is their turn.

    Raises:
        ValueError: at once, if the data cannot be divided so.
    """
    choose = validation_data is None
    parts = [(s, part) for s in seeds for part in divisions(data, folds, s, choose=choose)]

    def jobs() -> Iterator[Job]:
        for seed, part in parts:
            score, at = data.held(part.score)
            every = np.union1d(part.learn, part.choose)
            yield Job(
                fold=part.fold,
                seed=seed,
                learn=data.learn(part.learn),
                choose=data.held(part.choose)[0] if choose else validation_data,
                whole=functools.partial(data.learn, every) if choose else None,
                score=score,
                at=at,
                counts=(len(part.learn), len(part.choose), len(at)),
                name=f"fold {part.fold + 1} of {folds}, seed {seed}",
            )

    return jobs()


def by_seed(
    data: Any, seeds: tuple[int, ...], groups: Any, validation_data: Any, test_data: Any
) -> Iterator[Job]:
    """A run on all of the data for each seed, scored on ``test_data``.

    Raises:
        ValueError: at once, if there is nothing to score on or to choose by.
    """
    if test_data is None:
        why = ", since the best epoch is chosen by validation_data= and its score is too high"
        raise ValueError(
            "folds=None trains on all of the data: give test_data= to score on"
            + (why if validation_data is not None else "")
        )
    if isinstance(getattr(test_data, "plan", None), Plan):
        test_data = test_data.in_order()
        score = len(test_data.labels)
    else:
        read = source.source(*unpacked(test_data), what="the test data")
        score = read.examples if read.arrays else None
    # Another data set may come in another order at each reading: predictions of what?
    every = None if score is None else np.arange(score)
    if validation_data is not None:
        given = data, validation_data, None, test_data, every, (None, None, score)
        return (Job(None, seed, *given, _name(seed)) for seed in seeds)
    if source.is_stream(unpacked(data)[0]) and not isinstance(getattr(data, "plan", None), Plan):
        raise ValueError(
            f"a {type(data).__name__} comes without validation data to choose the best epoch by: "
            "give validation_data="
        )
    found = rows(data, groups)
    parts = [(s, *held_out(found, np.arange(found.count), s)) for s in seeds]

    def jobs() -> Iterator[Job]:
        for seed, at, held in parts:
            learn, choose = found.learn(at), found.held(held)[0]
            whole = functools.partial(found.learn, np.arange(found.count))
            counts = len(at), len(held), score
            yield Job(None, seed, learn, choose, whole, test_data, every, counts, _name(seed))

    return jobs()


def _name(seed: int) -> str:
    return f"seed {seed}"
