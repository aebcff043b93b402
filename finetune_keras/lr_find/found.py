"""What a learning-rate range test found, and the rules that read a rate off its curve."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import os
import textwrap
from typing import Any

import numpy as np

from finetune_keras import _optional, _plots

__all__ = ["LRFind", "found", "smooth"]

_RULE = "minimum/10"


@dataclasses.dataclass(frozen=True, eq=False)
class LRFind:
    """The curve of a learning-rate range test, and the rate that it suggests.

    Attributes:
        learning_rates: the rate of each step, float64; of as many steps as were made.
        losses: the loss of each step's batch before the step, float64.
        smoothed: their moving average, corrected for its start at zero.
        suggestion: a rate to train at; ``None`` where the curve does not tell. Where the loss has
            not risen again before the last rate it is a lower bound, and ``note`` says so.
        reason: how the suggestion was found, or why there is none.
        note: what to know before using the suggestion, and how to go on; empty where the loss
            fell and rose again.
        suggestions: the rate by each rule, empty without a suggestion: ``"minimum/10"``, which is
            ``suggestion``: a tenth of the rate where the smoothed loss is lowest; ``"steepest"``,
            where it falls fastest; ``"valley"``, the middle of its longest valley.
        stopped: whether the loss diverged before the last rate.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None
    reason: str
    note: str
    suggestions: dict[str, float]
    stopped: bool

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """Draws the losses by rate, the suggestion, and the note as a title.

        Args:
            path: of a PNG file to write; without it the figure is returned.

        Returns:
            The path of the file, or a ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        made = _plots.figure()
        axes = made.add_subplot()
        axes.plot(self.learning_rates, self.losses, color="0.8", label="of the batch")
        axes.plot(self.learning_rates, self.smoothed, label="smoothed")
        for name, rate in self.suggestions.items():
            first = rate == self.suggestion
            label = f"{rate:.2g}, {name}"
            axes.axvline(rate, ls="-" if first else ":", color="C1", alpha=1 if first else 0.6)
            axes.annotate(label, (rate, 1), xycoords=("data", "axes fraction"), rotation=90,
                          ha="right", va="top", fontsize=7)  # fmt: skip
        before = self.losses[: _lowest(self.smoothed) + 1]  # a divergence would flatten the rest
        low, high = float(before.min()), float(before.max())
        room = 0.2 * (high - low or 1.0)
        axes.set(
            xlabel="learning rate", ylabel="loss", xscale="log", ylim=(low - room, high + 2 * room)
        )
        axes.set_title(textwrap.fill(self.note, 70), fontsize=8)
        axes.legend(loc="lower left")
        return _plots.given(made, path)

    def __repr__(self) -> str:
        stopped = ", where the loss diverged" if self.stopped else ""
        last = f"{len(self.losses)} steps to a rate of {self.learning_rates[-1]:.2g}{stopped}"
        if self.suggestion is None:
            return f"<LRFind: {self.note}; {last}>"
        others = ", ".join(
            f"{rate:.2g} by {name}" for name, rate in self.suggestions.items() if name != _RULE
        )
        least, note = ("at least ", f"; {self.note}") if self.note else ("", "")
        return f"<LRFind: {least}{self.suggestion:.2g} by {self.reason} ({others}); {last}{note}>"

    def _repr_html_(self) -> str:
        text = f"<p>{html.escape(repr(self)[1:-1])}</p>"
        if not _optional.installed("matplotlib"):
            return text
        file = io.BytesIO()
        self.plot().savefig(file, format="png", dpi=90)
        image = base64.b64encode(file.getvalue()).decode()
        return f'<img src="data:image/png;base64,{image}"/>{text}'


def smooth(losses: np.ndarray, smoothing: float) -> np.ndarray:
    """Exponential moving average, corrected for its start at zero as Adam's moments are.

    Examples:
        >>> smooth(np.array([2.0, 2.0, 1.0]), 0.5).round(3).tolist()
        [2.0, 2.0, 1.429]
    """
    made, average = np.empty(len(losses)), 0.0
    for i, loss in enumerate(losses):
        average = smoothing * average + (1 - smoothing) * loss
        made[i] = average / (1 - smoothing ** (i + 1))
    return made


def found(rates: np.ndarray, losses: np.ndarray, smoothing: float, *, stopped: bool) -> LRFind:
    """Reads the suggestion off a curve of finite losses."""
    rates, losses = np.asarray(rates, "float64"), np.asarray(losses, "float64")
    smoothed = smooth(losses, smoothing)
    for array in (rates, losses, smoothed):
        array.flags.writeable = False
    why, note = _told(losses, smoothed, smoothing, rates[-1], stopped)
    suggestions = {} if why else _suggestions(rates, smoothed)
    return LRFind(
        learning_rates=rates,
        losses=losses,
        smoothed=smoothed,
        suggestion=suggestions.get(_RULE),
        reason=why or _RULE,
        note=f"no suggestion, since {why}" if why else note,
        suggestions=suggestions,
        stopped=stopped,
    )


def _told(
    losses: np.ndarray, smoothed: np.ndarray, smoothing: float, last: float, stopped: bool
) -> tuple[str, str]:
    """Why a curve tells nothing, empty if it falls by more than its noise; and a note to what it
    tells, empty if it also rises again.
    """
    if len(losses) < 10:
        return f"the loss diverged after {len(losses)} steps: try a lower start=", ""
    low = _lowest(smoothed)
    level = float(losses[: max(low // 2, 5)].mean())
    # Of one loss, by differences, which a slow fall does not add to; an average is over this many.
    noise = float(np.diff(losses[: max(low, len(losses) // 3)]).std()) / np.sqrt(2)
    over = min(low + 1, (1 + smoothing) / (1 - smoothing))
    least = max(4 * noise / np.sqrt(over), 1e-3 * abs(level))
    rises = stopped or float(smoothed[low:].max() - smoothed[low]) > least
    if level - float(smoothed[low]) <= least:
        why = "the loss never falls by more than its noise from batch to batch"
        if rises:
            return f"{why}: a lower start=, more steps= or larger batches may", ""
        return f"{why} up to the last rate, {last:.2g}: a higher end= may tell more", ""
    if rises:
        return "", ""
    return "", (
        f"the loss has not risen again at the last rate, {last:.2g}, so that the suggestion is a "
        "lower bound: a higher end= tells more"
    )


def _lowest(smoothed: np.ndarray) -> int:
    """Where the average is lowest; its first tenth is of too few losses to tell."""
    skip = len(smoothed) // 10
    return skip + int(smoothed[skip:].argmin())


def _suggestions(rates: np.ndarray, smoothed: np.ndarray) -> dict[str, float]:
    low, skip = _lowest(smoothed), len(smoothed) // 10
    slope = np.gradient(smoothed, np.log(rates))[skip : low + 1]
    made = {
        "minimum/10": rates[low] / 10,
        "steepest": rates[skip + int(slope.argmin())],
        "valley": rates[skip + _valley(smoothed[skip:])],
    }
    return {name: float(rate) for name, rate in made.items()}


def _valley(smoothed: np.ndarray) -> int:
    """The middle of the longest run of falling values, others left out between, as fastai has it
    (``fastai.callback.schedule.valley``).
    """
    n = len(smoothed)
    length = np.ones(n, int)
    for i in range(1, n):
        longer = length[:i][smoothed[:i] > smoothed[i]]
        length[i] = 1 + longer.max(initial=0)
    end = int(length.argmax())
    third = (length[end]) / 3
    return min(end - length[end] + int(third) + int(third / 2), n - 1)
