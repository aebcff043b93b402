"""Training whose frozen part gets shorter on the way: each part of it is a training of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

from finetune_keras import _private, optimizers
from finetune_keras.callbacks import GradualThaw

__all__ = ["run", "thawing"]


class _Pause(keras.callbacks.Callback):
    """Ends a part after the epoch before a thaw; the last of the callbacks, so that the others
    see no wish to stop.
    """

    def __init__(self, thaws: list[GradualThaw], epochs: int) -> None:
        super().__init__()
        self.thaws, self.epochs = thaws, epochs
        self.next: int | None = None
        self.logs: Any = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.logs = logs
        stops = self.model.stop_training or epoch + 1 >= self.epochs
        if not stops and any(t.due(epoch + 1) for t in self.thaws):
            self.next = epoch + 1
            self.model.stop_training = True
            average = optimizers.averaging_of(self.model.optimizer)
            if average is not None:
                average.goes_on()


def thawing(callbacks: Any) -> list[GradualThaw]:
    """The callbacks that thaw, unless they are seen to already."""
    given = _flat(callbacks)
    if any(isinstance(c, _Pause) for c in given):
        return []
    return [c for c in given if isinstance(c, GradualThaw)]


def run(
    fit: Callable[..., Any],
    model: keras.Model,
    given: dict[str, Any],
    *,
    cache: bool | str | Path,
) -> keras.callbacks.History:
    """Trains from thaw to thaw, each part on features of what is frozen in it.

    Args:
        fit: `finetune_keras.fit`, which trains a part.
        model: the model.
        given: what ``fit`` was called with, ``cache`` aside.
        cache: ``True``, or the folder: what is frozen after ``n`` thaws is kept in
            ``thawed_n`` there.
    """
    listed = _flat(given["callbacks"])
    thaws = thawing(listed)
    history = next((c for c in listed if isinstance(c, keras.callbacks.History)), None)
    own = [keras.callbacks.History()] if history is None else []
    pause = _Pause(thaws, given["epochs"])
    listed = [*listed, *own, pause]
    params = {"verbose": given["verbose"], "epochs": given["epochs"], "steps": None}
    with _told_once(listed, model, params, pause):
        start = _private.take_start(model)
        pause.next = given["initial_epoch"] if start is None else start
        while pause.next is not None:
            epoch, pause.next = pause.next, None
            for thaw in thaws:
                thaw.advance(epoch)
            stage = sum(thaw.stage for thaw in thaws)
            where = Path(cache) / f"thawed_{stage}" if stage and cache is not True else cache
            fit(model, **{**given, "initial_epoch": epoch, "callbacks": listed, "cache": where})
        model.history = history or own[0]
    return model.history


def _flat(callbacks: Any) -> list[keras.callbacks.Callback]:
    callbacks = getattr(callbacks, "callbacks", callbacks)  # a CallbackList
    return keras.tree.flatten(callbacks) if callbacks else []


@contextlib.contextmanager
def _told_once(listed: list, model: keras.Model, params: dict, pause: _Pause) -> Iterator[None]:
    """Callbacks hear of the beginning and the end of the whole, and of none of its parts: an early
    stopping, for one, would forget what was best so far.
    """
    for callback in listed:
        callback.set_params(params)
        callback.set_model(model)
    for callback in listed:
        callback.on_train_begin()
    try:
        for callback in listed:
            for name in ("set_model", "on_train_begin", "on_train_end"):
                setattr(callback, name, lambda *args, **kwargs: None)
        yield
    finally:
        for callback in listed:
            for name in ("set_model", "on_train_begin", "on_train_end"):
                vars(callback).pop(name, None)
    for callback in listed:
        callback.on_train_end(pause.logs)
