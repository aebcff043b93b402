"""What a cross-validation found: plain numbers, and what they say together."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from typing import Any

import numpy as np

from finetune_keras import _plots
from finetune_keras._errors import plain

__all__ = ["CrossValidation", "Run"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its score.

    Attributes:
        fold: the number of the fold that was scored, from 0; ``None`` on test data.
        seed: of the run, and of the division into folds.
        scores: loss and metrics on what was scored; empty if the run failed.
        best: the epoch that was kept and how it was chosen, in words; empty if not known.
        learned: number of examples that it learned from; ``None``, as for the next two, if only
            reading the data would tell.
        chosen: of those that the best epoch was chosen by.
        scored: of those that it was scored on.
        seconds: that it took.
        failed: why there is no score; empty otherwise.
    """

    fold: int | None
    seed: int
    scores: dict[str, float]
    best: str
    learned: int | None
    chosen: int | None
    scored: int | None
    seconds: float
    failed: str = ""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CrossValidation:
    """The scores of several trainings, each on examples that it has not seen.

    Printed it is a table. Runs that failed are in it, and in none of the figures.

    Attributes:
        runs: all that were done, seed after seed, in each fold after fold.
        folds: how many folds; 0 where test data were scored.
        seeds: of the runs.
        predictions: what the models predict, in the structure of their outputs: of each example in
            the order of the data by the model that has not seen it, the mean over seeds. NaN where
            no run has come to it; ``None`` for outputs that are not one row of numbers an example,
            and for test data of an order that is not known.
        interrupted: whether Ctrl-C ended it before all runs were done.

    Examples:
        >>> runs = [
        ...     Run(i, 0, {"accuracy": a}, "", 60, 15, 25, 1.0)
        ...     for i, a in enumerate([0.8, 0.9, 0.85, 0.95])
        ... ]
        >>> found = CrossValidation(tuple(runs), 4, (0,), None)
        >>> {k: round(v, 4) for k, v in found.mean.items()}
        {'accuracy': 0.875}
        >>> low, high = found.interval(0.95)["accuracy"]
        >>> round(low, 3), round(high, 3)
        (0.718, 1.032)
    """

    runs: tuple[Run, ...]
    folds: int
    seeds: tuple[int, ...]
    predictions: Any
    interrupted: bool = False

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Of loss and each metric a float64 array ``(folds, seeds)``, with one row for test data;
        NaN where a run failed or was not done.
        """
        found: dict[str, np.ndarray] = {}
        for run in self.runs:
            for name, value in run.scores.items():
                shape = max(self.folds, 1), len(self.seeds)
                table = found.setdefault(name, np.full(shape, np.nan))
                table[run.fold or 0, self.seeds.index(run.seed)] = value
        return found

    @property
    def failed(self) -> tuple[Run, ...]:
        """The runs that have no score."""
        return tuple(run for run in self.runs if run.failed)

    @property
    def mean(self) -> dict[str, float]:
        """Of loss and each metric, over the runs."""
        return {n: float(v.mean()) if len(v) else math.nan for n, v in self._values().items()}

    @property
    def std(self) -> dict[str, float]:
        """The sample standard deviation over the runs (of n - 1); NaN for a single one.

        It tells how much one run may differ from another, not how sure the mean is.
        """
        return {
            n: float(v.std(ddof=1)) if len(v) > 1 else math.nan for n, v in self._values().items()
        }

    def interval(self, confidence: float = 0.95) -> dict[str, tuple[float, float]]:
        """An interval for the score to expect on new examples, from Student's t.

        Runs of a cross-validation are not independent: any two training sets overlap, and the
        deviation over folds divided by ``sqrt(n)`` is too small an error of their mean, without
        any unbiased estimate to put in its place (Bengio and Grandvalet 2004, JMLR 5). So the
        variance of the mean of ``n`` runs is taken to be ``(1 / n + scored / trained) * std**2``
        with ``n - 1`` degrees of freedom, the correction of Nadeau and Bengio 2003 (Machine
        Learning 52), in the form for repeated folds of Bouckaert and Frank 2004 (PAKDD). With five
        folds it is 1.5 times as wide as the uncorrected one, and stays wide however many
        seeds there are, which is right: they add no examples. It is an approximation, with an
        overlap that is assumed and not estimated, and may reach beyond what a metric can be.

        On test data the runs differ by their seed alone and are independent given the data:
        the variance is ``std**2 / n``. The interval is then for the mean over seeds on these very
        examples, and says nothing of others.

        Args:
            confidence: between 0 and 1.

        Returns:
            Of loss and each metric the two ends; NaN with fewer than two runs.

        Raises:
            ValueError: if the confidence is not between 0 and 1.
        """
        number = isinstance(confidence, numbers.Real) and not isinstance(confidence, bool)
        if not number or not 0 < confidence < 1:
            raise ValueError(f"confidence is between 0 and 1; given {plain(confidence)!r}")
        from scipy.stats import t

        good = [run for run in self.runs if not run.failed]
        overlap = 0.0
        if self.folds and good:
            trained = sum(run.learned + run.chosen for run in good)
            overlap = sum(run.scored for run in good) / trained
        mean, std, found = self.mean, self.std, {}
        for name, values in self._values().items():
            n = len(values)
            half = math.nan
            if n > 1:
                factor = float(t.ppf((1 + confidence) / 2, n - 1))
                half = factor * std[name] * math.sqrt(1 / n + overlap)
            found[name] = mean[name] - half, mean[name] + half
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything but the predictions as plain Python values, ready for JSON."""
        return {
            "folds": self.folds,
            "seeds": list(self.seeds),
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "mean": self.mean,
            "std": self.std,
            "interval": {name: list(ends) for name, ends in self.interval().items()},
            "interrupted": self.interrupted,
        }

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """Draws the score of each run, with the mean and its interval.

        Args:
            path: of a PNG file to write; without it the figure is returned.

        Returns:
            The path of the file, or a ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        mean, ends = self.mean, self.interval()
        made = _plots.figure(2.2 * max(len(mean), 1) + 0.5)
        for i, (name, values) in enumerate(self._values().items()):
            axes = made.add_subplot(1, len(mean), i + 1)
            axes.axhspan(*ends[name], color="C0", alpha=0.15, lw=0)
            axes.axhline(mean[name], color="C0")
            axes.plot(np.linspace(-0.5, 0.5, len(values)), values, "o", color="C1")
            axes.set(title=name, xticks=[], xlim=(-1, 1))
        return _plots.given(made, path)

    def _values(self) -> dict[str, np.ndarray]:
        """Of loss and each metric the scores of the runs that have one."""
        good = [run.scores for run in self.runs if not run.failed]
        names = dict.fromkeys(name for scores in good for name in scores)
        return {name: np.array([s[name] for s in good if name in s]) for name in names}

    def __str__(self) -> str:
        names = list(self._values())
        where = [] if not self.folds else ["fold"]
        table = [[*where, "seed", *names]]
        for run in self.runs:
            at = [str(run.seed)] if run.fold is None else [str(run.fold + 1), str(run.seed)]
            told = [f"failed: {run.failed}"] if run.failed else [""] * len(names)
            table.append([*at, *told])
            if not run.failed:
                table[-1][len(at) :] = [_shown(run.scores.get(n, math.nan)) for n in names]
        blank = [""] * len(where)
        ends = self.interval()
        for label, values in (
            ("mean", [_shown(self.mean[n]) for n in names]),
            ("std", [_shown(self.std[n]) for n in names]),
            ("95 %", [f"{_shown(ends[n][0])} to {_shown(ends[n][1])}" for n in names]),
        ):
            table.append([label, *blank, *values])
        rows = [r for r in table if len(r) == len(table[0])]  # what failed has a text instead
        widths = [max(len(r[i]) for r in rows) for i in range(len(table[0]))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=False)).rstrip() for r in table
        ]
        if self.failed:
            lines.append(
                f"{len(self.failed)} of {len(self.runs)} runs failed, and are in no figure"
            )
        if self.interrupted:
            total = max(self.folds, 1) * len(self.seeds)
            lines.append(f"interrupted after {len(self.runs)} of {total} runs")
        return "\n".join(lines)

    __repr__ = __str__


def _shown(value: float) -> str:
    return f"{value:.4g}"
