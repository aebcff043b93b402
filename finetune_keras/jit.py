"""Augmentation that is compiled where it can be.

Keras marks the layers that warp images as not to be compiled, since XLA on TensorFlow cannot; on
JAX one such layer in a model has every step of its training run operation by operation, several
times slower. JAX compiles these very operations, to the same values.
"""

from __future__ import annotations

import keras

from finetune_keras import graph

__all__ = ["allow"]

# RandomCrop slices at random places, which JAX does not compile.
_WARPS = (
    keras.layers.RandomPerspective,
    keras.layers.RandomRotation,
    keras.layers.RandomShear,
    keras.layers.RandomTranslation,
    keras.layers.RandomZoom,
)


def allow(model: keras.Model) -> list[keras.layers.Layer]:
    """Lets the steps of ``model`` be compiled on JAX, if nothing but these layers is against it.

    A layer of a class that is derived from these is left as it is. ``RandAugment`` and ``AugMix``
    hold some of them, and are compiled then, which takes them longer than others.

    Returns:
        The layers that were changed.
    """
    if keras.backend.backend() != "jax" or not model.built:
        return []
    found = [x for _, x in graph.opened(model).layers if type(x) in _WARPS and not x.supports_jit]
    for layer in found:
        layer.supports_jit = True
    return found
