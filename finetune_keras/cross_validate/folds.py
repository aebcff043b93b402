"""Which examples each run learns from, chooses by, and is scored on; and how they are taken."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from finetune_keras import arrays
from finetune_keras.cache import source
from finetune_keras.cache.features import unpacked
from finetune_keras.data.dataset import Plan, dataset
from finetune_keras.data.split import stratified
from finetune_keras.recipes.examples import SHARE, strata, taken

__all__ = ["Division", "Rows", "divisions", "held_out", "rows", "warn_few"]


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Data of which any examples can be taken.

    Attributes:
        count: number of examples.
        strata: the class of each, for proportions; all one where there are no classes.
        groups: the number of the group of each; ``None`` where each stands for itself.
        learn: gives examples to learn from, by their numbers.
        held: gives examples to be scored on, neither shuffled nor augmented, and the numbers of
            those that are there: files that cannot be read are not.
    """

    count: int
    strata: np.ndarray
    groups: np.ndarray | None
    learn: Callable[[np.ndarray], Any]
    held: Callable[[np.ndarray], tuple[Any, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Division:
    """The numbers of the examples of one run, each in ascending order.

    Attributes:
        fold: its number, from 0.
        learn: to learn from.
        choose: to choose the best epoch by; empty if others serve for that.
        score: the fold that is scored.
    """

    fold: int
    learn: np.ndarray
    choose: np.ndarray
    score: np.ndarray


def rows(data: Any, groups: Any = None) -> Rows:
    """Looks at the data.

    Args:
        data: ``(x, y)`` or ``(x, y, sample_weight)`` of arrays, or a data set of
            ``finetune_keras.data``.
        groups: one value an example.

    Raises:
        TypeError: for data whose examples cannot be taken by number.
        ValueError: if lengths differ.
    """
    plan = getattr(data, "plan", None)
    if isinstance(plan, Plan):
        return _of_files(data, plan, groups)
    if several := arrays.splits(data):
        raise TypeError(f"the data are {several}")
    x, y, weights = unpacked(data)
    if x is None or source.is_stream(x):
        raise TypeError(
            "folds are made of examples that can be taken by number: give arrays (x, y), or a data "
            f"set of finetune_keras.data before any map() of yours; given a {type(x).__name__}"
        )
    count = source.source(x, y, weights, what="the data").examples
    if y is None:
        raise ValueError(
            f"the data are (x, y) or (x, y, sample_weight); given {arrays.short(x)} without labels"
        )
    parts = [arrays.bare(part) for part in (x, y, weights) if part is not None]

    def take(at: np.ndarray) -> tuple:
        return tuple(arrays.each(functools.partial(taken, at=at), part) for part in parts)

    own = _groups(groups, count)
    return Rows(count, strata(parts[1], count=count), own, take, lambda at: (take(at), at))


def _of_files(data: Any, plan: Plan, groups: Any) -> Rows:
    def take(at: np.ndarray, **changes: Any) -> Any:
        return dataset(dataclasses.replace(plan, rows=plan.rows[at], skipped=None, **changes))

    def held(at: np.ndarray) -> tuple[Any, np.ndarray]:
        made = take(at, shuffle=False, transforms=())
        return made, at[np.isin(plan.rows[at], made.plan.rows)]

    count = len(plan.rows)
    if groups is None and data.file_paths and len(set(data.file_paths)) < count:
        groups = data.file_paths  # a file that comes several times is in one fold only
    labels = plan.examples.labels[plan.rows]
    return Rows(count, strata(labels, count=count), _groups(groups, count), take, held)


def _groups(groups: Any, count: int) -> np.ndarray | None:
    if groups is None:
        return None
    found = arrays.to_numpy(groups)
    if found.ndim != 1 or len(found) != count:
        raise ValueError(
            f"groups= is one value an example, {count} in all; given an array of shape "
            f"{found.shape}"
        )
    if any(value is None or value != value for value in found.tolist()):
        raise ValueError("groups= has examples without a group: give each one of its own")
    return np.unique(found.astype(str) if found.dtype.kind == "O" else found, return_inverse=True)[
        1
    ]


def divisions(data: Rows, folds: int, seed: int, *, choose: bool) -> Iterator[Division]:
    """Divides the examples into folds, each class in proportion, groups kept together.

    Args:
        data: what `rows` gave.
        folds: how many.
        seed: another one gives other folds.
        choose: whether examples to choose by are held out of those to learn from.

    Raises:
        ValueError: if there are fewer examples or groups than folds, or too few groups to hold
            some out.

    Examples:
        >>> found = rows((np.zeros((20, 2)), np.arange(20) % 2))
        >>> [len(d.score) for d in divisions(found, 3, seed=0, choose=True)]
        [7, 7, 6]
    """
    every = np.arange(data.count)
    what = "examples" if data.groups is None else "groups"
    many = data.count if data.groups is None else int(data.groups.max()) + 1
    if many < folds:
        raise ValueError(f"folds={folds} needs as many {what} at least, and there are {many}")
    for fold, score in enumerate(_parts(data.strata, data.groups, folds, seed)):
        learn, held = np.setdiff1d(every, score), every[:0]
        if choose:
            learn, held = held_out(data, learn, seed)
        yield Division(fold, learn, held, score)


def held_out(data: Rows, at: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of some examples four fifths to learn from, and a fifth to choose by.

    Without groups they are those of `finetune_keras.fine_tune` with this seed.

    Raises:
        ValueError: if they are all of one group.
    """
    if data.groups is None:
        rest, part = stratified(data.strata[at], SHARE, seed)
        return at[rest], at[part]
    groups = np.unique(data.groups[at], return_inverse=True)[1]
    count = min(round(1 / SHARE), int(groups.max()) + 1)
    if count < 2:
        raise ValueError(
            "a fifth is held out to choose the best epoch by, and all that is left to learn from "
            "is of one group: give validation_data=, or finer groups="
        )
    held = at[_parts(data.strata[at], groups, count, seed)[0]]
    return np.setdiff1d(at, held), held


def warn_few(data: Rows, folds: int) -> None:
    """Warns of a class that not every fold can have."""
    classes, counts = np.unique(data.strata, return_counts=True)
    if counts.min() < min(folds, counts.max()):
        few = classes[counts.argmin()]
        warnings.warn(
            f"the class {few} has {counts.min()} of {data.count} examples, fewer than "
            f"folds={folds}: some folds are scored without it",
            stacklevel=3,
        )


def _parts(
    classes: np.ndarray, groups: np.ndarray | None, count: int, seed: int
) -> list[np.ndarray]:
    """Disjoint parts that hold all examples."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    classes = np.unique(classes, return_inverse=True)[1]
    if np.bincount(classes).max() < count:  # too few of each for proportions
        classes = np.zeros_like(classes)
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = kind(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return [np.sort(part) for _, part in folds.split(classes, classes, groups)]
