"""The average of several fine-tuned models, as one model."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from finetune_keras import _plots
from finetune_keras._errors import nearest
from finetune_keras.averaging import place
from finetune_keras.averaging.scoring import Score, Scorer
from finetune_keras.averaging.snapshot import Snapshot, snapshot
from finetune_keras.averaging.sources import Reader, located, opened

__all__ = ["RECIPES", "Soup", "soup"]

RECIPES = ("greedy", "uniform")


@dataclasses.dataclass(frozen=True)
class Soup:
    """What validation said of ingredients and of their average.

    Attributes:
        names: of the ingredients, in the order in which they were given.
        scores: of each alone, of what was monitored.
        kept: positions of those in the soup, in the order in which they joined.
        score: of the soup.
        before: of the model as it was.
        monitor: what was monitored.
        mode: ``"max"`` or ``"min"``, which scores are better.
        recipe: ``"greedy"`` or ``"uniform"``.
        adopted: whether the model has the soup's weights; otherwise it is as it was.
    """

    names: tuple[str, ...]
    scores: tuple[float, ...]
    kept: tuple[int, ...]
    score: float
    before: float
    monitor: str
    mode: str
    recipe: str
    adopted: bool

    @property
    def best(self) -> float:
        """The score of the best ingredient."""
        known = [s for s in self.scores if s == s] or [float("nan")]
        return max(known) if self.mode == "max" else min(known)

    def __repr__(self) -> str:
        return (
            f"<Soup of {len(self.kept)} of {len(self.names)}, {self.recipe}: {self.monitor} "
            f"{self.score:.4f}, {'adopted' if self.adopted else 'not adopted'}; best ingredient "
            f"{self.best:.4f}, before {self.before:.4f}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain Python values, ready for JSON."""
        kept = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {**kept, "best": self.best}

    def _repr_html_(self) -> str:
        name = html.escape(self.monitor)
        rows = "".join(
            f"<tr><td>{html.escape(n)}</td><td>{s:.4f}</td><td>{'yes' if i in self.kept else ''}"
            "</td></tr>"
            for i, (n, s) in enumerate(zip(self.names, self.scores, strict=True))
        )
        return (
            f"<table><caption>{html.escape(repr(self))}</caption><thead><tr><th>ingredient</th>"
            f"<th>{name}</th><th>in the soup</th></tr></thead><tbody>{rows}</tbody></table>"
        )

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws the scores of the ingredients and of the soup.

        Args:
            path: of a PNG file to write; without it the figure is returned.

        Returns:
            The path of the file, or a ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        across = max(5.0, 0.5 * len(self.names))
        figure = _plots.figure(across, 3.2)
        axes = figure.add_subplot()
        for here, label in ((True, "in the soup"), (False, "left out")):
            at = [i for i in range(len(self.names)) if (i in self.kept) is here]
            if at:
                axes.plot(at, [self.scores[i] for i in at], "o", label=label)
        axes.axhline(self.score, linewidth=1, label=f"{self.recipe} soup")
        axes.set_xticks(range(len(self.names)), self.names, rotation=30, ha="right", fontsize=8)
        axes.set_ylabel(f"validation {self.monitor}")
        axes.legend()
        return _plots.given(figure, path)


def soup(
    model: keras.Model,
    ingredients: Iterable[Any],
    validation_data: Any,
    *,
    recipe: str = "greedy",
    monitor: str = "auto",
    mode: str = "auto",
    batch_size: int | None = None,
    steps: int | None = None,
    refresh: Any = None,
    verbose: int | str = "auto",
) -> Soup:
    """Gives a model the average of the weights of several fine-tuned ones.

    ``"greedy"`` goes through the ingredients from the best on validation data to the worst, and
    keeps each with which the average does not become worse, so that the soup is at least as good
    there as the best of them. ``"uniform"`` is the average of all. The model gets the soup if that
    is not worse than the best ingredient, nor than the model as it was; otherwise it stays as it
    was, and is in neither case an ingredient unless it is in the list.

    Ingredients have to come from the same start (the same pretrained weights, and better the same
    probe); averages of networks trained from different random weights are no better than chance.
    Files are read one at a time, twice each. The optimizer's state stays as it is. (Wortsman et
    al. 2022, "Model soups".)

    Args:
        model: a compiled model of the architecture.
        ingredients: a list, or a dict by name, of what `finetune_keras.snapshot` gave, models,
            paths of ``.npz``, ``.keras`` or ``.weights.h5`` files (of ``ModelCheckpoint``, for
            one), or what ``model.get_weights()`` gave.
        validation_data: as in ``model.fit``. It is read for each set of weights, the same each
            time.
        recipe: ``"greedy"`` or ``"uniform"``.
        monitor: as in `finetune_keras.wise_ft`, like all that follow up to ``refresh``.
        mode: ``"max"``, ``"min"`` or ``"auto"``.
        batch_size: of arrays.
        steps: batches to validate on.
        refresh: inputs for the statistics of averages.
        verbose: 1 or ``"auto"`` prints a line an ingredient, 0 nothing.

    Returns:
        A `Soup`.

    Raises:
        WeightsError: if an ingredient is missing, of another architecture, has NaN, or cannot be
            averaged (LoRA factors, quantised weights).
        ValueError: if there is no ingredient, the model is not compiled, or there is nothing of
            the name that is monitored. Whatever fails or is interrupted, the model keeps its
            weights.

    Examples:
        >>> import numpy as np
        >>> import finetune_keras as ftk
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> runs = []
        >>> for value in (2.0, 4.0, 9.0):                  # in place of three trainings
        ...     model.set_weights([np.full((2, 1), value)])
        ...     runs.append(ftk.snapshot(model))
        >>> x = np.eye(2)
        >>> made = ftk.soup(model, runs, (x, x @ [[3.0], [3.0]]), verbose=0)
        >>> made.kept, made.score, float(model.get_weights()[0][0, 0])
        ((0, 1), 0.0, 3.0)
    """
    units = opened(model)
    if recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}: {nearest(str(recipe), RECIPES)}")
    reader = Reader(model, units)
    given = _given(ingredients, reader)
    settings = {"batch_size": batch_size, "steps": steps, "refresh": refresh}
    scorer = Scorer(model, validation_data, monitor=monitor, mode=mode, **settings)

    def read(i: int) -> place.Weights:
        return reader.read(given[i].source, given[i].words)

    def scored(weights: place.Weights, what: str, *, fresh: bool = False) -> Score:
        place.put(units, weights)
        found = scorer(fresh=fresh)
        if verbose:
            print(f"{what}: {scorer.goal.name} {found.value:.4f}")
        return found

    with place.undone(units) as before:
        alone = [scored(read(i), x.name) for i, x in enumerate(given)]
        order = list(range(len(given)))
        if recipe == "greedy":
            order.sort(key=lambda i: scorer.goal.order(alone[i]), reverse=True)
        kept, score = order[:1], alone[order[0]]
        total, weights = place.averaged(None, read(order[0]), 1, units)
        for i in order[1:]:
            more, mean = place.averaged(total, read(i), len(kept) + 1, units)
            if recipe == "greedy":
                found = scored(mean, f"with {given[i].name}", fresh=True)
                if scorer.goal.rank(found) < scorer.goal.rank(score):
                    continue
                score, mean = found, place.read(units)
            kept, total, weights = [*kept, i], more, mean
        if recipe == "uniform":
            score = scored(weights, "all of them", fresh=len(kept) > 1)
            weights = place.read(units)
        was = scored(before, "the model as it was")
        rank = scorer.goal.rank
        adopted = rank(score) >= max(rank(s) for s in (*alone, was))
        if adopted:
            place.put(units, weights)
    return Soup(
        names=tuple(x.name for x in given),
        scores=tuple(s.value for s in alone),
        kept=tuple(kept),
        score=score.value,
        before=was.value,
        monitor=scorer.goal.name,
        mode=scorer.goal.mode,
        recipe=recipe,
        adopted=adopted,
    )


@dataclasses.dataclass(frozen=True)
class _Ingredient:
    """One of them, its name for records, and in words for messages."""

    name: str
    words: str
    source: Any


def _given(ingredients: Any, reader: Reader) -> list[_Ingredient]:
    """The ingredients with their names; models that the soup would change are copied."""
    single = str | os.PathLike | Snapshot | keras.Model
    if isinstance(ingredients, single) or not isinstance(ingredients, Iterable):
        raise TypeError(
            "ingredients is a list of snapshots, models or paths, or a dict of them by name; "
            f"given a {type(ingredients).__name__}"
        )
    named = isinstance(ingredients, Mapping)
    found = list(ingredients.items() if named else enumerate(ingredients))
    if not found:
        raise ValueError("a soup needs an ingredient, and the list of them is empty")
    result = []
    for key, x in found:
        name = str(key) if named else f"ingredient {key}"
        words = f"ingredient {key!r}" if named else name
        if isinstance(x, str | os.PathLike):
            words = f"{words} ({located(x).name})"  # now, and not after hours of the others
            name = name if named else Path(x).name
        result.append(_Ingredient(name, words, snapshot(x) if reader.shares(x) else x))
    return result
