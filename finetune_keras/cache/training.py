"""Training the suffix of a model on features, as the whole model would be trained."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import numpy as np

from finetune_keras import _private
from finetune_keras.cache import bridge, store
from finetune_keras.cache.featureset import FeatureSet
from finetune_keras.cache.shuffled import shuffled
from finetune_keras.cache.split import Division

__all__ = ["compiled", "train"]

_COMPILED: weakref.WeakKeyDictionary[keras.Model, dict] = weakref.WeakKeyDictionary()


def compiled(model: keras.Model, suffix: keras.Model) -> None:
    """Compiles the suffix as the model is, unless it is so already: tracing takes seconds."""
    given = {**_private.compile_arguments(model), "optimizer": model.optimizer}
    given["auto_scale_loss"] = False  # it is scaled already if it has to be
    # By the call of ``compile``: after the next one even equal arguments are traced anew.
    state = {**given, "call": _private.compile_call(model)}
    last = _COMPILED.get(suffix)
    if last is not None and all(state[k] is last[k] for k in state):
        return
    if len(suffix.outputs) == 1 and isinstance(given["loss"], dict) and len(given["loss"]) == 1:
        # By the name of the model's only output, which is another one in the suffix.
        (given["loss"],) = given["loss"].values()
    suffix.compile(**given)
    _COMPILED[suffix] = state


def train(
    model: keras.Model,
    division: Division,
    found: FeatureSet,
    held: FeatureSet | None,
    settings: dict[str, Any],
    *,
    shuffle: bool,
    verbose: int,
    callbacks: Any,
    memory: int | None = None,
) -> keras.callbacks.History:
    """Trains the suffix of ``model``.

    Args:
        model: the whole; compiled.
        division: it in two.
        found: features to train on.
        held: features to validate on.
        settings: of ``fit``, such as ``epochs``.
        shuffle: whether each epoch has an order of its own.
        verbose: as in ``fit``.
        callbacks: they see ``model``.
        memory: bytes of features in memory; by default a quarter of what is free.
    """
    suffix = division.suffix
    compiled(model, suffix)
    data, turning = _fed(found, shuffle, memory)
    if shuffle and turning is None and settings["steps_per_epoch"] is None:
        made = shuffled(data[:3], data[3])
        if made is not None:
            data, turning = (made.batches, None, None, None), made
    if held is not None:
        (x, y, weights, size), _ = _fed(held, False, memory)
        if size is None:
            settings["validation_data"] = x
        else:
            settings["validation_data"] = (x, y) if weights is None else (x, y, weights)
            settings["validation_batch_size"] = size
    x, y, weights, size = data
    steps = settings["steps_per_epoch"] or -(-len(found) // found.batch_size)
    there = bridge.Bridge(suffix, turning, settings["initial_epoch"])
    all_, history = bridge.callbacks(
        callbacks, model, there, verbose=verbose, epochs=settings["epochs"], steps=steps
    )
    model.history = suffix.history = history
    try:
        with bridge.synced(model, suffix):
            suffix.fit(
                x,
                y,
                sample_weight=weights,
                batch_size=size,
                shuffle=shuffle and turning is None,
                callbacks=all_,
                verbose=verbose,
                **settings,
            )
    finally:
        suffix.history = None  # it holds the model, which is to go when nobody else does
    return history


def _fed(found: FeatureSet, shuffle: bool, memory: int | None) -> tuple[tuple, Any]:
    """What ``fit`` gets: arrays where that is possible, which is faster, or else batches."""
    kept = all(a.dtype == keras.config.floatx() for a in found.features if a.dtype.kind in "fV")
    budget = store.available() if memory is None else memory
    fits = found.in_memory or found.nbytes <= budget
    if found.views == 1 and kept and fits:
        x, y, weights = found.view()
        if not found.in_memory:
            x, y, weights = keras.tree.map_structure(
                lambda a: None if a is None else np.array(a), (x, y, weights)
            )
        return (x, y, weights, found.batch_size), None
    batches = found.dataset(shuffle=shuffle)
    return (batches, None, None, None), batches
