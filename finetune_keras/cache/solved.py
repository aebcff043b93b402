"""Training by solving: one dense layer on cached features has an optimum, and is put there."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from finetune_keras import _private
from finetune_keras.cache import bridge
from finetune_keras.cache.featureset import FeatureSet
from finetune_keras.cache.probe import Probe, solvable
from finetune_keras.cache.solver import solve

__all__ = ["SOLVERS", "check", "run"]

SOLVERS = ("lbfgs",)


def check(model: keras.Model, suffix: keras.Model) -> Probe:
    """The layer that can be solved.

    Raises:
        ValueError: if more than one dense layer learns, or the loss is another.
    """
    return solvable(suffix, _private.compile_arguments(model)["loss"])


def run(
    model: keras.Model,
    suffix: keras.Model,
    probe: Probe,
    found: FeatureSet,
    held: FeatureSet | None,
    *,
    class_weight: dict | None,
    callbacks: Any,
    verbose: int,
    epoch: int = 0,
) -> keras.callbacks.History:
    """Solves, writes the layer, and reports it as one ``epoch``; ``suffix`` is compiled.

    All views of the examples count. ``history.solution`` is the `solver.Solution`.
    """
    validation = None
    if held is not None:
        validation = (held.features[0], held.labels, held.sample_weight)
    solution = solve(
        probe,
        found.features[0],
        found.labels,
        sample_weight=_weights(found, class_weight),
        validation=validation,
    )
    all_, history = bridge.callbacks(
        callbacks, model, bridge.Bridge(suffix), verbose=0, epochs=epoch + 1, steps=1
    )
    model.history = history
    history.solution = solution
    all_.on_train_begin()
    all_.on_epoch_begin(epoch)
    solution.put(probe)
    logs = _evaluated(suffix, found)
    if held is not None:
        logs |= {f"val_{name}": value for name, value in _evaluated(suffix, held).items()}
    if verbose:
        print(solution)
        print(" - ".join(f"{name}: {value:.4f}" for name, value in logs.items()))
    all_.on_epoch_end(epoch, logs)
    all_.on_train_end(logs)
    return history


def _evaluated(suffix: keras.Model, found: FeatureSet) -> dict[str, float]:
    x, y, weights = found.view()
    return suffix.evaluate(
        x, y, sample_weight=weights, batch_size=found.batch_size, verbose=0, return_dict=True
    )


def _weights(found: FeatureSet, class_weight: dict | None) -> Any:
    """Weights of examples, those of their classes included, as ``fit`` understands them."""
    if class_weight is None:
        return found.sample_weight
    y = np.asarray(found.labels)
    classes = y.argmax(axis=-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(-1)
    per_class = np.array([class_weight.get(int(c), 1.0) for c in classes])
    return per_class if found.sample_weight is None else per_class * found.sample_weight
