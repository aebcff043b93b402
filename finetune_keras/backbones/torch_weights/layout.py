"""The order of axes: PyTorch's arrays as Keras' layers hold them.

| layer | PyTorch | Keras |
|---|---|---|
| convolution | out, in / groups, size | size, in / groups, out |
| transposed convolution | in, out, size | size, out, in |
| depthwise convolution | in x multiplier, 1, size | size, in, multiplier |
| dense (also inside attention) | out, in | in, out |

A dense layer behind a ``Flatten`` reads channels first in PyTorch and last in Keras, so that its
rows change places too.
"""

from __future__ import annotations

import math

import keras
import numpy as np

from finetune_keras import graph

__all__ = ["KINDS", "flattened", "has_order", "keras_array"]

_layers = keras.layers
_CONV = (
    *(_layers.Conv1D, _layers.Conv2D, _layers.Conv3D),
    *(_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose),
)
_DEPTHWISE = (_layers.DepthwiseConv1D, _layers.DepthwiseConv2D)
_DENSE = (_layers.Dense, _layers.EinsumDense)

# What PyTorch's modules call what Keras' layers call so.
KINDS = {
    "kernel": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def has_order(unit: graph.Unit) -> bool:
    """Whether it is known in which order PyTorch has the axes of a variable.

    Of kernels of other layers than those above it is not, and a square one would fit either way
    round.
    """
    name = unit.path.rsplit("/", 1)[-1]
    if not name.endswith("kernel") or len(unit.variable.shape) < 2:
        return True
    if name in ("depthwise_kernel", "pointwise_kernel"):
        return True
    return name == "kernel" and isinstance(unit.layer, (*_CONV, *_DEPTHWISE, *_DENSE))


def keras_array(array: np.ndarray, unit: graph.Unit, maps: tuple | None = None) -> np.ndarray:
    """One of PyTorch's arrays in the order in which a Keras variable holds it.

    Args:
        array: as PyTorch has it.
        unit: the variable in its place.
        maps: the shape of the feature maps, ``(channels, ...)``, where the layer reads them
            flattened.

    Returns:
        The array, of the variable's shape if it fits; another shape if it does not.

    Examples:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 5)])
        >>> kernel = graph.opened(model).units[0]
        >>> keras_array(np.zeros((4, 3, 5, 5)), kernel).shape
        (5, 5, 3, 4)
    """
    layer, shape = unit.layer, tuple(unit.variable.shape)
    name = unit.path.rsplit("/", 1)[-1]
    size = math.prod(shape)
    if name == "depthwise_kernel" or (name == "kernel" and isinstance(layer, _DEPTHWISE)):
        if array.ndim == len(shape) and array.size == size and array.shape[1] == 1:
            array = array.reshape(shape[-2], -1, *array.shape[2:])
            array = np.moveaxis(array, (0, 1), (-2, -1))
    elif name == "pointwise_kernel" or (name == "kernel" and isinstance(layer, _CONV)):
        if array.ndim == len(shape):
            array = np.moveaxis(array, (0, 1), (-1, -2))
        elif array.ndim == 2 and set(shape[:-2]) == {1}:
            array = array.T.reshape(*shape[:-2], *array.T.shape)  # a dense layer in PyTorch
    elif name == "kernel" and isinstance(layer, _DENSE):
        array = array.reshape(array.shape[:2]) if set(array.shape[2:]) == {1} else array
        if array.ndim == 2:
            array = _channels_last(array.T, maps)
            array = array.reshape(shape) if array.size == size else array
    else:
        if len(shape) == 1:
            array = _channels_last(array, maps)
        # Axes of 1 do not count: a scale may be (n,) here and (n, 1, 1) there.
        if [n for n in array.shape if n != 1] == [n for n in shape if n != 1] or (
            isinstance(layer, _DENSE) and array.ndim == 1 and array.size == size
        ):
            array = array.reshape(shape)  # the bias of attention is by heads
    return array


def _channels_last(array: np.ndarray, maps: tuple | None) -> np.ndarray:
    """The first axis, flattened maps, with the channels last in place of first."""
    if maps is None or len(array) != math.prod(maps):
        return array
    apart = array.reshape(*maps, *array.shape[1:])
    return np.moveaxis(apart, 0, len(maps) - 1).reshape(array.shape)


def flattened(seen: graph.Opened) -> dict[int, tuple[int, ...]]:
    """Variables, by id, that read feature maps flattened, and the maps as ``(channels, ...)``."""
    maps: dict[int, tuple[int, ...]] = {}
    found: dict[int, tuple[int, ...]] = {}
    for call in seen.calls:
        if not call.inputs or not call.outputs:
            continue
        shape = seen.shapes[call.inputs[0]][1:]
        if isinstance(call.op, _layers.Flatten) and len(shape) > 1 and None not in shape:
            # Keras' Flatten puts the channels last whatever the data format.
            first = call.op.data_format == "channels_first"
            maps[call.outputs[0]] = shape if first else (shape[-1], *shape[:-1])
            continue
        given = maps.get(call.inputs[0])
        if given is None:
            continue
        if isinstance(call.op, _layers.Dense):
            found.update({id(u.variable): given for u in call.units if u.path.endswith("/kernel")})
        elif len(call.inputs) == 1 and seen.shapes[call.outputs[0]][1:] == (math.prod(given),):
            found.update({id(u.variable): given for u in call.units})
            maps[call.outputs[0]] = given  # a normalisation, a dropout, an activation
    return found
