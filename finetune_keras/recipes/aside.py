"""What callbacks see of a refit, in which the examples that were held out are learned from."""

from __future__ import annotations

import math
from typing import Any

import keras

__all__ = ["aside"]


def aside(
    callbacks: list[keras.callbacks.Callback], names: list[str]
) -> list[keras.callbacks.Callback]:
    """Callbacks that get NaN for each score by validation, since none of a refit may be compared.

    A ``ModelCheckpoint(save_best_only=True)`` keeps what it has then, and what reads a score finds
    one. ``EarlyStopping`` is left out, as it would end the refit. Those that are called later get
    the scores.

    Args:
        callbacks: of the user, and what else keeps the scores.
        names: of the scores of the phases before.
    """
    hide = _Hide(names)
    seen = [c for c in callbacks if not isinstance(c, keras.callbacks.EarlyStopping)]
    return [hide, *seen, _Show(hide)]


class _Hide(keras.callbacks.Callback):
    """Callbacks get one dict, one after another."""

    def __init__(self, names: list[str]):
        super().__init__()
        self.names = [name for name in names if name.startswith("val_")]
        self.found: dict[str, Any] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keeps the scores, and puts NaN in their place."""
        self.found = {k: v for k, v in logs.items() if k.startswith("val_")}
        logs.update(dict.fromkeys([*self.names, *self.found], math.nan))


class _Show(keras.callbacks.Callback):
    """Puts the scores back."""

    def __init__(self, hidden: _Hide):
        super().__init__()
        self.hidden = hidden

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes the NaN away; what a callback has put there stays."""
        for name in (*self.hidden.names, *self.hidden.found):
            if isinstance(logs.get(name), float) and math.isnan(logs[name]):
                del logs[name]
        logs.update(self.hidden.found)
