"""A line for each epoch, and where an epoch is long how far it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import keras

from finetune_keras.recipes.best import Watch
from finetune_keras.recipes.phase import Phase, Refit

__all__ = ["Progress", "lasting"]

_LONG = 10.0  # seconds, from one word to the next in an epoch


class Progress(keras.callbacks.Callback):
    """Says what a phase does: the epoch, the numbers, the rate, the time that is left.

    Args:
        watch: knows the best epoch; it comes first in the list of callbacks.
        say: prints.
    """

    def __init__(self, watch: Watch, say: Callable[[str], Any] = print):
        super().__init__()
        self._watch, self._say = watch, say
        self._phase: Phase | None = None
        self._over = 0
        self._begun = self._last = 0.0
        self._took: list[float] = []

    def begin(self, phase: Phase, over: int) -> None:
        """A phase begins, or goes on after some epochs."""
        self._phase, self._over, self._took = phase, over, []

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the clock."""
        self._begun = self._last = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Says how far an epoch is, now and then."""
        now = time.perf_counter()
        if now - self._last < _LONG:
            return
        self._last = now
        line = f"  epoch {self._over + 1}: batch {batch + 1}"
        steps = (self.params or {}).get("steps")
        if steps:
            left = (now - self._begun) / (batch + 1) * (steps - batch - 1)
            line += f" of {steps}, {lasting(left)} to its end"
        self._say(f"{line}; {_numbers(logs or {})}")

    def features(self, done: int, total: int | None, seconds: float) -> None:
        """Says how far a pass of what is frozen is, now and then; see `cache.forward.telling`."""
        now = time.perf_counter()
        if seconds < _LONG or now - self._last < _LONG:
            return
        self._last = now
        line = f"  features of what is frozen: batch {done}"
        if total:
            line += f" of {total}, {lasting(seconds / done * (total - done))} to the end"
        self._say(line)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Says how it was."""
        self._over += 1
        self._took.append(time.perf_counter() - self._begun)
        logs = dict(logs or {})
        if isinstance(self._phase, Refit):  # it has learned from these examples
            logs = {k: v for k, v in logs.items() if not k.startswith("val_")}
        rate = logs.pop("learning_rate", None)  # of a callback
        words = [_numbers(logs)]
        if self._phase.solver is None:
            rate = self.model.optimizer.learning_rate if rate is None else rate
            words.append(f"rate {float(keras.ops.convert_to_numpy(rate)):.2g}")
        if self._watch.improved and not isinstance(self._phase, Refit):
            words.append("best so far")
        left = self._phase.epochs - self._over
        if left > 0 and not self.model.stop_training:
            # The first epoch compiles.
            each = sum(self._took[1:]) / len(self._took[1:]) if self._took[1:] else self._took[0]
            words.append(f"{lasting(each * left)} left at most")
        elif left > 0:
            words.append("the phase ends here")
        self._say(f"  epoch {self._over}/{self._phase.epochs}: {'; '.join(words)}")


def _numbers(logs: dict[str, Any]) -> str:
    shown = {k: v for k, v in logs.items() if getattr(v, "ndim", 0) == 0}
    return ", ".join(f"{k} {float(v):.4g}" for k, v in shown.items())


def lasting(seconds: float) -> str:
    """A time as one says it.

    Examples:
        >>> lasting(0.1234), lasting(100), lasting(7200)
        ('0.12 s', '1.7 min', '2 h')
    """
    if seconds < 90:
        return f"{seconds:.{0 if seconds >= 10 else 2 if seconds < 1 else 1}f} s"
    if seconds < 5400:
        return f"{seconds / 60:.2g} min"
    hours = seconds / 3600
    return f"{hours:.2g} h" if hours < 100 else f"{math.ceil(hours)} h"
