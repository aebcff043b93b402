"""Evaluating and saving the moving average of the weights while the weights go on."""

from __future__ import annotations

from typing import Any

import keras

from finetune_keras import optimizers

__all__ = ["EMA"]


class EMA(keras.callbacks.Callback):
    """Lets validation and other callbacks see the averages that `finetune_keras.ema` keeps.

    Validation runs on the averages, and from there to the end of the epoch the model has them:
    put this callback first, and ``ModelCheckpoint`` and ``EarlyStopping`` after it save and
    restore averages. The next epoch goes on from the weights. When ``fit`` ends, the model has
    the averages.

    What is saved in between says which of the two the model has, so that
    ``BackupAndRestore`` goes on from the right ones. A run that starts at its first epoch takes
    the weights as it finds them, and begins a new average.

    Raises:
        ValueError: when training starts, if the model's optimizer keeps no averages.

    Examples:
        >>> import numpy as np
        >>> import finetune_keras as ftk
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model = ftk.compile(model, loss="mse", ema_momentum=0.9)
        >>> x, y = np.ones((8, 4)), np.ones((8, 2))
        >>> history = model.fit(
        ...     x, y, validation_data=(x, y), callbacks=[ftk.callbacks.EMA()], verbose=0
        ... )
    """

    def __init__(self):
        super().__init__()
        self._training = False
        self._lent = False  # by this callback, for an evaluation outside of training

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Looks for the averages."""
        self._average()
        self._training = True

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Goes on from the weights."""
        average = self._average()
        if average.exchanged and epoch > 0:
            average.exchange()
        elif epoch == 0:
            average.restart()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the averages into the model."""
        average = self._average()
        self._lent = not average.exchanged and not self._training
        if not average.exchanged:
            average.exchange()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts them back, unless ``fit`` has more to do with them."""
        if self._lent:
            self._average().exchange()
            self._lent = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Puts the averages into the model for the callbacks that follow."""
        self.on_test_begin()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """``fit`` has left the averages in the model."""
        self._training = False

    def _average(self) -> optimizers.AveragingOptimizer:
        found = optimizers.averaging_of(self.model.optimizer)
        if found is None:
            raise ValueError(
                "the EMA callback needs an optimizer that averages the weights: compile with "
                "finetune_keras.compile(model, ema_momentum=0.99)"
            )
        return found
