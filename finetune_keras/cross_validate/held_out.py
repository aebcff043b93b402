"""The score of a trained model on examples that it has not seen, and its predictions of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from finetune_keras.averaging.scoring import divided
from finetune_keras.cache import source
from finetune_keras.cache.features import compute, unpacked
from finetune_keras.cache.fit import preprocess
from finetune_keras.cache.training import compiled

__all__ = ["scored"]


def scored(
    model: keras.Model, data: Any, batch_size: int | None
) -> tuple[dict[str, float], Any | None]:
    """Loss and metrics as plain numbers, and what the model predicts, an example a row.

    What is frozen is computed as features, which `cache.sharing` may know already.

    Args:
        model: compiled.
        data: arrays or a data set in order.
        batch_size: of arrays.

    Returns:
        The numbers, those of a metric with one for each class as ``name_0``, ``name_1``...; and
        the predictions in the structure of the model's outputs, ``None`` unless each output is
        one row of numbers an example.
    """
    x, y, weights = unpacked(data)
    size = None if y is None else batch_size
    given = {"x": x, "y": y, "sample_weight": weights, "batch_size": size}
    network = model
    division = divided(model)
    if division is not None:
        read = source.source(x, y, weights, batch_size=size, preprocess=preprocess(model))
        found = compute(division.prefix, read, verbose=0)
        network = division.suffix
        compiled(model, network)
        if found.in_memory:
            x, y, weights = found.view()
            given = {"x": x, "y": y, "sample_weight": weights, "batch_size": found.batch_size}
        else:
            given = {"x": found.dataset()}
    logs = network.evaluate(**given, verbose=0, return_dict=True)
    rank = {len(t.shape) for t in getattr(model, "outputs", None) or []}
    if rank != {2}:
        return _plain(logs), None
    predicted = network.predict(given["x"], batch_size=given.get("batch_size"), verbose=0)
    return _plain(logs), keras.tree.map_structure(np.asarray, predicted)


def _plain(logs: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in logs.items():
        flat = np.asarray(keras.ops.convert_to_numpy(value), "float64").ravel()
        names = [name] if len(flat) == 1 else [f"{name}_{i}" for i in range(len(flat))]
        found.update(zip(names, map(float, flat), strict=True))
    return found
