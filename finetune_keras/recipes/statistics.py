"""Moving statistics that follow the new data within a phase."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from finetune_keras import graph

__all__ = ["following"]

_BATCHES = 10  # that the statistics average over, at the least


@contextlib.contextmanager
def following(model: keras.Model, steps: int) -> Iterator[None]:
    """Within this, moving statistics that learn average over half an epoch.

    Pretrained networks come with a momentum of 0.99 or 0.999: the statistics follow in hundreds or
    thousands of steps, and until then a network that trains by those of its batches answers by
    those of the old images. PyTorch's default, 0.9 as Keras has it, averages over ten batches.

    Args:
        model: those of its ``BatchNormalization`` layers that learn are changed; afterwards they
            are as before.
        steps: batches in an epoch.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
        >>> with following(model, 8):
        ...     model.layers[0].momentum
        0.9
        >>> model.layers[0].momentum
        0.99
    """
    layers = _learning(model)
    before = [layer.momentum for layer in layers]
    share = 1 - 1 / max(_BATCHES, steps / 2)
    try:
        for layer in layers:
            layer.momentum = min(layer.momentum, share)
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum


def _learning(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [
        layer
        for _, layer in graph.opened(model).layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
