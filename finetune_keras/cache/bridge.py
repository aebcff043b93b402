"""Training a part of a model, while callbacks see the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from finetune_keras import _private

__all__ = ["Bridge", "callbacks", "synced"]


class Bridge(keras.callbacks.Callback):
    """Hands on to the part that trains what callbacks tell the whole.

    Args:
        suffix: what trains.
        data: its data, if they turn with the epoch.
        first: the first epoch, unless another callback restores one.
    """

    def __init__(self, suffix: keras.Model, data: Any = None, first: int = 0):
        super().__init__()
        self.suffix, self.data, self.first = suffix, data, first

    def on_train_begin(self, logs: Any = None) -> None:
        """The first epoch, which a callback may have restored."""
        _private.share_start(self._model, self.suffix)
        restored = _private.start_of(self.suffix)
        self._turn(self.first if restored is None else restored)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """The epoch, if it is another than was expected."""
        self._turn(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """The wish to stop."""
        # Not ``self.model``: on JAX that would fetch all variables at each batch.
        self.suffix.stop_training = self._model.stop_training

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The wish to stop, and the next epoch, which ``fit`` reads ahead."""
        self.suffix.stop_training = self._model.stop_training
        self._turn(epoch + 1)

    def _turn(self, epoch: int) -> None:
        """The epoch, on which order and view of the data depend."""
        if self.data is not None:
            self.data.turn(epoch)


def callbacks(
    given: Any, model: keras.Model, bridge: Bridge, **params: Any
) -> tuple[keras.callbacks.CallbackList, keras.callbacks.History]:
    """The user's callbacks on the whole model, with the bridge behind them.

    Args:
        given: as ``fit`` takes them.
        model: the whole model.
        bridge: to the part that trains.
        **params: ``verbose``, ``epochs`` and ``steps``.
    """
    given = getattr(given, "callbacks", given)  # a CallbackList
    given = keras.tree.flatten(given) if given else []
    history = next((c for c in given if isinstance(c, keras.callbacks.History)), None)
    own = [keras.callbacks.History()] if history is None else []
    found = keras.callbacks.CallbackList(
        [*given, *own, bridge], add_progbar=params["verbose"] != 0, model=model, **params
    )
    return found, history or own[0]


@contextlib.contextmanager
def synced(model: keras.Model, suffix: keras.Model) -> Iterator[None]:
    """On JAX, where values live outside the variables in an epoch, a callback that looks at the
    whole model gets those of the part that trains.
    """
    model.stop_training = False
    if keras.backend.backend() != "jax":
        yield
        return

    def sync() -> None:
        suffix.jax_state_sync()
        type(model).jax_state_sync(model)  # after a ``predict`` of the whole in a callback

    model.jax_state_sync = sync
    try:
        yield
    finally:
        del model.jax_state_sync
