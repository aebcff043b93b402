"""The statistics of batch normalisations, estimated anew for averaged weights.

They are averages over activations, and averaged weights give other activations: the average of two
networks' statistics is not that of their average. (Izmailov et al. 2018, section 3.2.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from finetune_keras import graph

__all__ = ["moving", "refresh"]


def moving(model: keras.Model) -> tuple[keras.layers.BatchNormalization, ...]:
    """The batch normalisations whose statistics training moves."""
    return tuple(
        layer
        for _, layer in graph.opened(model).layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    )


def refresh(
    model: keras.Model,
    layers: tuple[keras.layers.BatchNormalization, ...],
    batches: Iterable[Any],
) -> None:
    """Sets the statistics of ``layers`` to the averages over batches of inputs.

    The model runs as in training, random layers included, and nothing else of it changes: other
    statistics and the state of random seeds are put back.

    Args:
        model: a built model, or the part of one that has the layers.
        layers: of it.
        batches: what it is called on.
    """
    mine = {id(v) for x in layers for v in (x.moving_mean, x.moving_variance)}
    others = [v for v in model.non_trainable_variables if id(v) not in mine]
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in others]
    momenta = [x.momentum for x in layers]
    seen = 0
    try:
        for batch in batches:
            size = len(keras.tree.flatten(batch)[0])
            for x in layers:  # so that each example counts the same, the first batch's too
                x.momentum = seen / (seen + size)
            seen += size
            model(batch, training=True)
    finally:
        for x, momentum in zip(layers, momenta, strict=True):
            x.momentum = momentum
        for v, array in zip(others, before, strict=True):
            v.assign(array)
