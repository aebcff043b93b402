"""A network of ``keras.applications`` as PyTorch computes it.

The graphs are the same, and the details are not: PyTorch pads a strided convolution alike on both
sides where TensorFlow's "same" pads more at the end, and its batch normalisation adds 1e-5 to the
variance. A network that is made again from its configs, by public means, can have these otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

__all__ = ["adapted"]

_layers = keras.layers


def adapted(
    network: keras.Model,
    *,
    epsilon: float | None = 1e-5,
    pad: bool = True,
    without: tuple[type, ...] = (),
    settings: Mapping[str, dict[str, Any]] | None = None,
    everywhere: Callable[[keras.layers.Layer], dict[str, Any]] = lambda layer: {},
) -> keras.Model:
    """The network made again with PyTorch's details and the old names; its weights are new.

    Args:
        network: functional.
        epsilon: of batch normalisations; ``None`` leaves it.
        pad: whether strided convolutions pad alike on both sides.
        without: types of layers to leave out.
        settings: other entries of a layer's config, by its name.
        everywhere: other entries of any layer's config.

    Examples:
        >>> inputs = keras.Input((8, 8, 3))
        >>> conv = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="conv")
        >>> [x.name for x in adapted(keras.Model(inputs, conv(inputs))).layers[1:]]
        ['conv_torch_pad', 'conv']
    """
    settings = settings or {}
    half: dict[str, int] = {}  # what to pad before a convolution, by its name

    def made(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        config.update(everywhere(layer))
        config.update(settings.get(layer.name, {}))
        if isinstance(layer, _layers.BatchNormalization) and epsilon is not None:
            config.update(epsilon=epsilon, momentum=0.9)
        if pad and isinstance(layer, _layers.ZeroPadding2D):
            config["padding"] = int(np.max(config["padding"]))
        if pad and isinstance(layer, _layers.Conv2D | _layers.DepthwiseConv2D):
            size, stride = max(config["kernel_size"]), max(config["strides"])
            if stride > 1 and size > 1 and config["padding"] == "same":
                half[layer.name] = size // 2
                config["padding"] = "valid"
        return type(layer).from_config(config)

    def called(layer: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, without):
            return args[0]
        if layer.name in half:
            before = _layers.ZeroPadding2D(half[layer.name], name=f"{layer.name}_torch_pad")
            return layer(before(args[0]), *args[1:], **kwargs)
        return layer(*args, **kwargs)

    return keras.models.clone_model(network, clone_function=made, call_function=called)
