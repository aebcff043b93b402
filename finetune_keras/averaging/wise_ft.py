"""Between the weights before fine-tuning and those after."""

from __future__ import annotations

import dataclasses
import html
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune_keras import _plots
from finetune_keras._errors import shown
from finetune_keras.averaging import place
from finetune_keras.averaging.scoring import Score, Scorer
from finetune_keras.averaging.sources import Reader, opened

__all__ = ["Sweep", "wise_ft"]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What validation said of each mix of two sets of weights.

    Attributes:
        mixes: shares of the fine-tuned weights, from 0, the start, to 1, the model as it was.
        scores: of what was monitored, one a mix.
        losses: the validation loss, one a mix.
        monitor: what was monitored.
        mode: ``"max"`` or ``"min"``, which scores are better.
        chosen: the mix that the model has now; 1 if it was left as it was.
    """

    mixes: tuple[float, ...]
    scores: tuple[float, ...]
    losses: tuple[float, ...]
    monitor: str
    mode: str
    chosen: float

    @property
    def score(self) -> float:
        """The score of the mix that was chosen."""
        return self.scores[self.mixes.index(self.chosen)]

    @property
    def adopted(self) -> bool:
        """Whether the model has other weights now."""
        return self.chosen != 1

    def __repr__(self) -> str:
        tuned = f"{self.monitor} {self.scores[-1]:.4f}"
        if not self.adopted:
            return f"<Sweep of {len(self.mixes)} mixes: none better than fine-tuned, {tuned}>"
        return (
            f"<Sweep of {len(self.mixes)} mixes: {self.chosen:g} adopted, {self.monitor} "
            f"{self.score:.4f}; fine-tuned {self.scores[-1]:.4f}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain Python values, ready for JSON."""
        kept = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {**kept, "adopted": self.adopted}

    def _repr_html_(self) -> str:
        cells = zip(self.mixes, self.scores, self.losses, strict=True)
        rows = "".join(
            f"<tr><td>{mix:g}{' (chosen)' if mix == self.chosen else ''}</td><td>{score:.4f}</td>"
            f"<td>{loss:.4f}</td></tr>"
            for mix, score, loss in cells
        )
        name = html.escape(self.monitor)
        return (
            f"<table><thead><tr><th>mix</th><th>{name}</th><th>loss</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws the scores over the mixes, with the one that was chosen.

        Args:
            path: of a PNG file to write; without it the figure is returned.

        Returns:
            The path of the file, or a ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        figure = _plots.figure(5, 3.2)
        axes = figure.add_subplot()
        axes.plot(self.mixes, self.scores, "o-", markersize=4)
        axes.plot([self.chosen], [self.score], "o", markersize=9, label=f"mix {self.chosen:g}")
        axes.axhline(self.scores[-1], linewidth=0.8, linestyle="--", color="gray")
        axes.set_xlabel("mix: 0 is the start, 1 is fine-tuned")
        axes.set_ylabel(f"validation {self.monitor}")
        axes.legend()
        return _plots.given(figure, path)


def wise_ft(
    model: keras.Model,
    start: Any,
    validation_data: Any,
    *,
    mixes: int | Sequence[float] = 11,
    monitor: str = "auto",
    mode: str = "auto",
    batch_size: int | None = None,
    steps: int | None = None,
    refresh: Any = None,
    verbose: int | str = "auto",
) -> Sweep:
    """Gives a fine-tuned model the best weights on the line from its start.

    Each mix ``m`` sets all floating-point weights, statistics included, to
    ``(1 - m) * start + m * tuned``, and is evaluated on the validation data. The model gets the
    best of them. It keeps its own weights unless a mix is better by what is monitored, or equal in
    that and lower in loss; among equals the one nearest to the fine-tuned weights is taken.

    What is frozen and equal in both is computed once for all mixes. The optimizer's state stays,
    and belongs to weights that the model no longer has: training on from a mix, compile with a
    new optimizer. (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".)

    Args:
        model: the fine-tuned model, compiled.
        start: its weights before: of `finetune_keras.snapshot`, of the linear probe or the
            pretrained network with a head that fits; or a model of the same architecture, the path
            of a ``.npz``, ``.keras`` or ``.weights.h5`` file, or what ``model.get_weights()`` gave.
        validation_data: as in ``model.fit``. It is read for each mix, the same each time.
        mixes: how many equal steps from 0 to 1, both included; or the mixes themselves, to which 1
            is added.
        monitor: a metric of the model, or ``"loss"``. ``"auto"`` is the first accuracy that a
            model with one output is compiled with, or else the loss.
        mode: whether ``"max"`` or ``"min"`` of it is better; ``"auto"`` asks the metric, as Keras'
            callbacks do.
        batch_size: of arrays, 32 by default.
        steps: batches to validate on, for data without an end.
        refresh: a few batches of training inputs (the labels are not read) from which each
            average's batch normalisations take their statistics, if they learn. Without it
            statistics are averaged like weights.
        verbose: 1 or ``"auto"`` prints a line a mix, 0 nothing.

    Returns:
        A `Sweep`.

    Raises:
        WeightsError: if the start is of another architecture, has NaN, or cannot be averaged (LoRA
            factors, quantised weights).
        ValueError: if the model is not compiled, if it equals its start, or there is nothing of
            the name that is monitored. Whatever fails or is interrupted, the model keeps its
            weights.

    Examples:
        >>> import finetune_keras as ftk
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> model.set_weights([np.zeros((2, 1))])
        >>> start = ftk.snapshot(model)
        >>> model.set_weights([np.full((2, 1), 4.0)])    # it went too far
        >>> x = np.eye(2)
        >>> sweep = ftk.wise_ft(model, start, (x, x @ [[3.0], [3.0]]), mixes=5, verbose=0)
        >>> sweep
        <Sweep of 5 mixes: 0.75 adopted, loss 0.0000; fine-tuned 1.0000>
    """
    units = opened(model)
    shares = _shares(mixes)
    reader = Reader(model, units)
    began = reader.read(start, "the start")
    with place.undone(units) as tuned:
        place.check_finite(tuned, units, "the model")
        if all(map(np.array_equal, began, tuned)):
            raise ValueError(
                f"the start and {model.name!r} have the same weights: take "
                "finetune_keras.snapshot(model) before training"
            )
        settings = {"batch_size": batch_size, "steps": steps, "refresh": refresh}
        scorer = Scorer(model, validation_data, monitor=monitor, mode=mode, **settings)
        scores: dict[float, Score] = {}
        best, weights = 1.0, tuned
        for share in reversed(shares):
            place.put(units, place.mixed(began, tuned, share, units))
            scores[share] = scorer(fresh=0 < share < 1)
            if scorer.goal.order(scores[share]) > scorer.goal.order(scores[best]):
                best, weights = share, place.read(units)
            if verbose:
                print(f"mix {share:.3g}: {scorer.goal.name} {scores[share].value:.4f}")
        place.put(units, weights)
    return Sweep(
        mixes=shares,
        scores=tuple(scores[s].value for s in shares),
        losses=tuple(scores[s].loss for s in shares),
        monitor=scorer.goal.name,
        mode=scorer.goal.mode,
        chosen=best,
    )


def _shares(mixes: Any) -> tuple[float, ...]:
    """The mixes in order, 1 the last of them."""
    if isinstance(mixes, numbers.Integral) and not isinstance(mixes, bool) and mixes > 1:
        return tuple(float(m) for m in np.linspace(0, 1, int(mixes)))
    several = isinstance(mixes, Sequence | np.ndarray) and not isinstance(mixes, str)
    try:
        found = {float(m) for m in mixes} if several else set()
    except (TypeError, ValueError):
        found = set()
    if not found or not all(0 <= m <= 1 for m in found):
        raise ValueError(
            "mixes is a number of steps from 2 on, or a list of shares from 0 to 1, such as "
            f"[0.25, 0.5]; given {shown(mixes)}"
        )
    return tuple(sorted({*found, 1.0}))
