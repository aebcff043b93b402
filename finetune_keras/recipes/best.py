"""The best weights of a run, by validation, and the end of a phase that gets no better."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from finetune_keras import graph
from finetune_keras.averaging.scoring import Goal, Score, goal
from finetune_keras.recipes.phase import Phase, Refit

__all__ = ["Best", "Values", "Watch", "margin"]

_EVERY = 16  # batches; to look at each loss would wait for each step


@dataclasses.dataclass(frozen=True)
class Best:
    """Where a run was best.

    Attributes:
        phase: name of the phase.
        epoch: number of the epoch, from 0, over all phases.
        monitor: what validation was compared by, such as ``"val_accuracy"``.
        value: what it was.
    """

    phase: str
    epoch: int
    monitor: str
    value: float

    def __str__(self) -> str:
        return f"{self.monitor} {self.value:.4g} after epoch {self.epoch + 1}, phase {self.phase!r}"


def margin(share: float, count: int) -> float:
    """The standard error of a share of so many examples, which is not 0 where it is 0 or 1; 0 for
    what is no share.

    Examples:
        >>> round(margin(0.8, 20), 3), round(margin(1.0, 20), 3), margin(7.0, 20)
        (0.094, 0.047, 0.0)
    """
    if not (count and 0 <= share <= 1):
        return 0.0
    share = (share * count + 1) / (count + 2)
    return (share * (1 - share) / count) ** 0.5


class Values:
    """Copies of all variables of a model, random states included, to go back to.

    Args:
        model: the model.
        before: an earlier copy, which is kept of what does not learn.
        arrays: the copies, in the order of ``model.variables``; by default they are made.

    Attributes:
        arrays: the copies.
    """

    def __init__(
        self,
        model: keras.Model,
        before: Values | None = None,
        *,
        arrays: list[np.ndarray] | None = None,
    ):
        self._variables = list(model.variables)
        if arrays is None:
            still = set() if before is None else _still(model)
            same = self._variables if before is None else before.arrays
            # Through NumPy: on JAX the next step would delete what shares its memory.
            arrays = [
                a if id(v) in still else np.array(keras.ops.convert_to_numpy(v))
                for v, a in zip(self._variables, same, strict=True)
            ]
        self.arrays = arrays

    def restore(self) -> None:
        """Writes them back."""
        for variable, array in zip(self._variables, self.arrays, strict=True):
            variable.assign(np.array(array))


def _still(model: keras.Model) -> set[int]:
    """Variables that no step changes: what is frozen, with its statistics."""
    return {
        id(u.variable)
        for u in graph.opened(model).units
        if not (u.variable.trainable if u.learnable else u.layer.trainable)
    }


class Watch(keras.callbacks.Callback):
    """Keeps the best weights, ends a phase that stays worse, and stops where the loss is no number.

    Attributes:
        values: the best weights; at first those that the model came with. In a refit those that
            its next phase begins with.
        start: those that the model came with.
        kept: in a refit, the best weights before.
        path: the phases that led to the best weights, by number, and how many epochs of each.
        refitted: whether the weights of a refit are the model's; ``None`` if there was none.
        best: where they are from; ``None`` before the first epoch has ended.
        goal: what is compared; known after the first epoch.
        lost: where the loss stopped being a number, in words.
        score: what ``best`` is compared by.
        probe: the best score of the first phase.
        held: number of the examples that were held out, from all.
        own: the best score of the phase.
        since: epochs of the phase since then.
        improved: whether the last epoch was the best.
    """

    def __init__(self, model: keras.Model, monitor: str, held: int = 0):
        super().__init__()
        self.held = held
        self.values = self.start = Values(model)
        self.kept: Values | None = None
        self.path: tuple[tuple[int, int], ...] = ()
        self.refitted: bool | None = None
        self.best: Best | None = None
        self.goal: Goal | None = None
        self.lost = ""
        self.score: Score | None = None
        self.own: Score | None = None
        self.probe: Score | None = None
        self.since, self.improved = 0, False
        self._monitor = monitor
        self._phase: Phase | None = None
        self._number = self._first = 0

    def begin(self, phase: Phase, number: int, first: int) -> None:
        """A phase begins, with the number of its first epoch; or it goes on after some."""
        self._phase, self.own, self.since = phase, None, 0
        self._number, self._first = number, first
        if isinstance(phase, Refit) and phase.first and self.kept is None:
            self.kept, self.values = self.values, self.start
            self.values.restore()

    def give_up(self) -> None:
        """A refit came to no end: the best weights are those before."""
        if self.kept is not None:
            self.values, self.kept, self.refitted = self.kept, None, False
            self.values.restore()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the loss, now and then."""
        if batch % _EVERY == _EVERY - 1:
            self._look(logs or {}, f"batch {batch + 1}", None)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares, and keeps the weights if they are better than all before."""
        logs, self.improved = logs or {}, False
        if self._look(logs, f"epoch {epoch + 1}", epoch):
            return
        held = {k.removeprefix("val_"): v for k, v in logs.items() if k.startswith("val_")}
        if isinstance(self._phase, Refit):
            self._refit(epoch, held)
            return
        self._aim(held)
        score = self.goal.score(held)
        if self._beats(score):
            self.score, self.values = score, Values(self.model, self.values)
            self.probe = score if self._number == 0 else self.probe
            self.improved = True
            before = (p for p in self.path if p[0] != self._number)
            self.path = (*before, (self._number, epoch - self._first + 1))
            self.best = Best(self._phase.name, epoch, f"val_{self.goal.name}", score.value)
        if self.own is None or self.goal.order(score) > self.goal.order(self.own):
            self.own, self.since = score, 0
            return
        self.since += 1
        if self._phase.patience is not None and self.since >= self._phase.patience:
            self.model.stop_training = True

    def _beats(self, score: Score) -> bool:
        """Whether it is better than the best; equal is enough for a later phase. Of few examples
        all may be right after the probe, and then the loss tells how sure it is, not how good.
        """
        if self.score is None:
            return True
        if self.path[-1][0] != self._number and not math.isnan(score.value):
            return self.goal.rank(score) >= self.goal.rank(self.score)
        return self.goal.order(score) > self.goal.order(self.score)

    def _aim(self, held: dict[str, Any]) -> None:
        if self.goal is None:
            self.goal = goal(self.model, held, self._monitor, "auto")

    def _refit(self, epoch: int, held: dict[str, Any]) -> None:
        """At its end, the weights are those that the next phase begins with, or the model's: but
        if even the examples held out, from which it has learned, are worse by them than by the
        probe, or than by the best beyond chance; or if a callback ended it early.
        """
        done = epoch - self._first + 1 >= self._phase.epochs
        if not done and not self.model.stop_training:
            return
        self.values, self.improved = Values(self.model, self.values), True
        if not self._phase.last:
            return
        self.refitted = done
        if done and held and self.score is not None:
            self._aim(held)
        if done and self.score is not None and self.goal.name in held:
            score = self.goal.score(held)
            rank, best = self.goal.rank(score), self.goal.rank(self.score)
            near = self.goal.mode == "max" and rank >= best - margin(best, self.held)
            near = near or self.goal.order(score) >= self.goal.order(self.score)
            better = self.probe is None or rank >= self.goal.rank(self.probe)
            self.refitted = bool(near and better)
        if not self.refitted:
            self.values, self.improved = self.kept, False
        self.kept = None

    def _look(self, logs: dict[str, Any], where: str, epoch: int | None) -> bool:
        bad = [k for k in ("loss", "val_loss") if k in logs and not math.isfinite(logs[k])]
        if bad:
            self.lost = self.lost or f"{bad[0]} is {float(logs[bad[0]])} in {where}"
            self.model.stop_training = True
        return bool(bad)
