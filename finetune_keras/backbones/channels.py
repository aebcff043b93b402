"""Pretrained weights on images of another number of channels: grey, with depth, multispectral.

A kernel for RGB is summed for one channel, so that a grey image gives what it gives as RGB, and
repeated and scaled by ``3 / n`` for ``n``, so that the sums keep their size. This is what ``timm``
does (https://github.com/huggingface/pytorch-image-models, ``in_chans=``).
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import keras
import numpy as np

from finetune_keras import graph
from finetune_keras._errors import WeightsError
from finetune_keras.backbones import preprocessing
from finetune_keras.backbones.base import Backbone
from finetune_keras.backbones.loaded import Edits
from finetune_keras.backbones.stem import image_input

__all__ = ["adapt_channels", "adapt_kernel", "pretrained_shape"]


def adapt_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A convolution's kernel for another number of input channels.

    Args:
        kernel: of shape ``(..., n, filters)``.
        channels: the number wanted.

    Returns:
        Of shape ``(..., channels, filters)``: the sum over the ``n`` for one channel, else the
        ``n`` repeated in turn, times ``n / channels``.

    Examples:
        >>> kernel = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
        >>> adapt_kernel(kernel, 1).ravel().tolist(), adapt_kernel(kernel, 4).ravel().tolist()
        ([6.0], [0.75, 1.5, 2.25, 0.75])
    """
    have = kernel.shape[-2]
    if channels == 1:
        return kernel.sum(axis=-2, keepdims=True)
    return np.take(kernel, np.arange(channels) % have, axis=-2) * (have / channels)


def pretrained_shape(
    name: str, weights: Any, input_shape: tuple | None, in_channels: int | None
) -> tuple | None:
    """The ``input_shape`` to build a named network with, before its channels are adapted.

    Raises:
        ValueError: if ``input_shape`` and ``in_channels`` do not agree.
        WeightsError: for pretrained weights on another number of channels without
            ``in_channels``.
    """
    if not isinstance(input_shape, list | tuple) or len(input_shape) != 3:
        return input_shape  # none, or one to be refused for what it is
    axis = _axis(keras.config.image_data_format()) % 4 - 1
    given = input_shape[axis]
    if in_channels is None:
        shipped = isinstance(weights, str) and weights in ("auto", "imagenet", "letters")
        if shipped and isinstance(given, int) and given > 0 and given != 3:
            raise WeightsError(
                f"the pretrained weights of {name!r} are for 3 channels and "
                f"input_shape={tuple(input_shape)} has {given}: pass in_channels={given} to adapt "
                "them, or weights=None for random ones"
            )
        return input_shape
    if given != _checked(in_channels):
        raise ValueError(
            f"in_channels={in_channels!r} and input_shape={tuple(input_shape)} do not agree: "
            "give one of the two, or the same number in both"
        )
    shape = list(input_shape)
    shape[axis] = 3
    return tuple(shape)


def adapt_channels(made: Backbone, in_channels: int | None) -> Backbone:
    """The backbone for images of ``in_channels`` channels, all but its input shared.

    Every convolution that reads the image gets a new kernel (`adapt_kernel`); what scales
    each channel before it, in the network or in the preprocessing, is averaged over the channels,
    and a reversal of the channels moves into the kernel.

    Raises:
        ValueError: if ``in_channels`` is no number of channels, or something other than a
            convolution reads the channels.
    """
    if in_channels is None:
        return made
    channels = _checked(in_channels)
    image_input(made.network, f"in_channels={channels}")
    zone = _Zone(made.network, channels)
    if zone.have == channels:
        return made
    steps, reversed_ = _steps(made.preprocessing, zone.have, channels)
    zone.walk(reversed_)
    start = list(made.network.inputs[0].shape)
    start[zone.axis] = channels
    first = made.network.inputs[0]
    inputs = keras.Input(batch_shape=start, dtype=first.dtype, name=first.name)
    inputs = keras.tree.pack_sequence_as(graph.ends(made.network)[0], [inputs])
    network = graph.rebuild(made.network, zone.changes, inputs)
    zone.fill(fresh=not made.pretrained)
    edits = Edits(adapted=tuple(zone.adapted)) if made.pretrained else Edits()
    return dataclasses.replace(
        made,
        network=network,
        preprocessing=steps,
        edits=made.edits.then(edits),
        source=f"{made.source}, in_channels={channels}",
    )


def _checked(channels: Any) -> int:
    try:
        number = operator.index(channels)
    except TypeError:
        number = 0
    if number < 1 or isinstance(channels, bool):
        raise ValueError(f"in_channels is a number of channels, 1 or more; given {channels!r}")
    return number


def _axis(data_format: str) -> int:
    return -1 if data_format == "channels_last" else 1


def _steps(steps: tuple, have: int, channels: int) -> tuple[tuple, bool]:
    """The preprocessing for the new channels, and whether it reversed the old ones."""
    result, reversed_ = [], False
    for step in steps:
        if step is preprocessing.reverse_channels:
            reversed_ = not reversed_
            continue
        if isinstance(step, keras.layers.Layer):
            new, values = _averaged(step, have, channels)
            if values is not None:
                axis = _axis(keras.config.image_data_format())
                shape: list[int | None] = [None] * 4
                shape[axis] = channels
                new.build(tuple(shape))
                _assign(new, values)
            step = new
        result.append(step)
    return tuple(result), reversed_


def _averaged(
    layer: keras.layers.Layer, have: int, channels: int
) -> tuple[keras.layers.Layer, list[np.ndarray] | None]:
    """A layer that treats all channels as ``layer`` does on the average, and the values for its
    weights once it is built; the layer itself where it treats all alike.
    """

    def value(v) -> np.ndarray:
        return np.asarray(keras.ops.convert_to_numpy(v))

    def mean(v, axis=-1) -> np.ndarray:
        return np.repeat(value(v).mean(axis=axis, keepdims=True), channels, axis=axis)

    if isinstance(layer, keras.layers.Rescaling):
        if not (np.ndim(layer.scale) or np.ndim(layer.offset)):
            return layer, None
        config = layer.get_config()
        config |= {k: float(np.mean(getattr(layer, k))) for k in ("scale", "offset")}
        return type(layer).from_config(config), None
    if isinstance(layer, keras.layers.Normalization):
        config = layer.get_config()
        if config["mean"] is not None:
            if np.ndim(config["mean"]):
                config |= {k: mean(config[k]).tolist() for k in ("mean", "variance")}
            return type(layer).from_config(config), None
        values = [mean(w) if len(w.shape) else value(w) for w in layer.weights]
        return type(layer).from_config(config), values
    if isinstance(layer, keras.layers.BatchNormalization):
        return type(layer).from_config(layer.get_config()), [mean(w) for w in layer.weights]
    if isinstance(layer, keras.layers.DepthwiseConv2D) and layer.depth_multiplier == 1:
        axes = [-2 if len(w.shape) > 1 else -1 for w in layer.weights]
        values = [mean(w, axis) for w, axis in zip(layer.weights, axes, strict=True)]
        return type(layer).from_config(layer.get_config()), values
    return layer, None


def _assign(layer: keras.layers.Layer, values: list[np.ndarray]) -> None:
    for variable, value in zip(layer.weights, values, strict=True):
        variable.assign(value)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()  # it computes from a copy of its weights


class _Zone:
    """The part of a network in which tensors still have the image's channels."""

    def __init__(self, network: keras.Model, channels: int) -> None:
        self.network = network
        self.channels = channels
        self.seen = graph.opened(network)
        formats = [
            c.op.data_format for c in self.seen.calls if isinstance(c.op, keras.layers.Conv2D)
        ]
        self.axis = _axis(formats[0] if formats else keras.config.image_data_format())
        self.have = self.seen.shapes[self.seen.inputs[0]][self.axis]
        self.changes: dict[tuple[str, ...], keras.layers.Layer | None] = {}
        self.values: list[tuple[keras.layers.Layer, Any]] = []
        self.adapted: list[str] = []

    def walk(self, reversed_: bool) -> None:
        """Finds what has to change; ``reversed_``: the preprocessing reversed the channels."""
        order = dict.fromkeys(self.seen.inputs, reversed_)
        convolutions = 0
        for call in self.seen.calls:
            if not order.keys() & set(call.inputs):
                continue
            turned = order.get(call.inputs[0], False)
            if isinstance(call.op, keras.layers.Conv2D) and call.op.groups == 1:
                self._convolution(call, turned)
                convolutions += 1
                continue
            if type(call.op).__name__ == "Flip" and self._along_channels(call.op):
                turned = not turned
                self._change(call, None)
            else:
                self._scaled(call)
            order.update(dict.fromkeys(call.outputs, turned))
        if not convolutions or order.keys() & set(self.seen.outputs):
            raise ValueError(
                f"in_channels={self.channels}: no convolution of {self.network.name!r} takes up "
                "all that reads the image, so there is no kernel to adapt"
            )

    def _convolution(self, call: graph.Call, turned: bool) -> None:
        old = call.op
        if _path(call) in self.changes:
            return  # a nested model that is called twice
        kernel, *bias = (keras.ops.convert_to_numpy(w) for w in old.weights)
        kernel = kernel[..., ::-1, :] if turned else kernel
        self._change(call, type(old).from_config(old.get_config()))
        self.values.append(
            (self.changes[_path(call)], [adapt_kernel(kernel, self.channels), *bias])
        )
        self.adapted += [u.path for u in call.units[:1]]

    def _scaled(self, call: graph.Call) -> None:
        """A call before the convolutions: it has to keep channels apart."""
        shapes = [self.seen.shapes[t] for t in call.outputs]
        apart = all(len(s) == 4 and s[self.axis] == self.have for s in shapes)
        picks = type(call.op).__name__ in ("GetItem", "Take") and self.channels > 1
        new, values = call.op, None
        if isinstance(call.op, keras.layers.Layer):
            new, values = _averaged(call.op, self.have, self.channels)
        if not apart or picks or (call.units and new is call.op):
            raise ValueError(
                f"in_channels={self.channels}: {call.path!r} ({type(call.op).__name__}) reads the "
                f"{self.have} channels of the image before any convolution and cannot be adapted; "
                "cut it off, or put a convolution before it"
            )
        if new is not call.op and _path(call) not in self.changes:
            self._change(call, new)
            if values is not None:
                self.values.append((new, values))
                # A normalisation's count of examples is no value of a channel.
                self.adapted += [u.path for u in call.units if len(u.variable.shape)]

    def _change(self, call: graph.Call, new: keras.layers.Layer | None) -> None:
        self.changes[_path(call)] = new

    def _along_channels(self, op: keras.Operation) -> bool:
        axes = op.axis if isinstance(op.axis, list | tuple) else [op.axis]
        return [a % 4 if a is not None else a for a in axes] == [self.axis % 4]

    def fill(self, *, fresh: bool) -> None:
        """Gives the new layers their values, once they are built; ``fresh`` leaves kernels as
        they were made.
        """
        for layer, values in self.values:
            if [v.shape for v in values] != [tuple(w.shape) for w in layer.weights]:
                raise ValueError(
                    f"in_channels={self.channels}: what comes before {layer.name!r} turns them "
                    f"into {self.have} by constants for each channel: cut it off"
                )
            if not (fresh and isinstance(layer, keras.layers.Conv2D)):
                _assign(layer, values)


def _path(call: graph.Call) -> tuple[str, ...]:
    return tuple(call.path.split("/"))
