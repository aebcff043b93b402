"""The last tensor of each stride of a network that takes an image."""

from __future__ import annotations

import math

import keras

from finetune_keras import blocks, graph

__all__ = ["taps"]

_LARGE = 512  # on small images unpadded convolutions blur the ratios of sizes


def taps(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """``{"S4": tensor, ...}``, finest first; empty unless ``model`` takes one image.

    Layers that hold layers stay closed here, since the names inside two of them may be the same,
    and a ``keras.Model`` on the taps would refuse that. Only the ends of blocks are taken, and
    tensors through which all passes that the rest reads.
    """
    if not graph.is_functional(model) or len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        return {}
    sizes = _sizes(model)
    tensors = graph.replay(model, model.inputs[0], chains=False)
    seen = graph.opened(model, chains=False)
    ends = {block.output for block in blocks.blocks_of(seen, frozenset())}
    waists = {call.outputs[0] for call in blocks.waists(seen)}
    found: dict[int, keras.KerasTensor] = {}
    # The ends of blocks come first; a stem may have a stride of its own inside.
    for numbers in (waists - ends, ends):
        for number in sorted(numbers):
            stride = _stride(sizes, number, tuple(tensors[number].shape), model.inputs[0].shape)
            if stride is not None:
                found[stride] = tensors[number]
    return {f"S{stride}": found[stride] for stride in sorted(found)}


def _stride(sizes: dict[int, float], number: int, shape: tuple, image: tuple) -> int | None:
    """How many pixels one position of a map, or one token, stands for along an edge."""
    if len(shape) == 4 and number in sizes:
        # Unpadded convolutions give 149 or 147 for 299 / 2: the nearest power of two is meant.
        return 2 ** round(math.log2(sizes[number]))
    height, width = image[_axes()]
    if len(shape) == 3 and height and width and shape[1] and shape[1] > 1:
        # A class token and registers are a few more than the patches.
        return round(math.sqrt(height * width / shape[1]))
    return None


def _axes() -> slice:
    first = keras.config.image_data_format() == "channels_first"
    return slice(2, 4) if first else slice(1, 3)


def _sizes(model: keras.Model) -> dict[int, float]:
    """How much smaller than the image each map is, by the number of its tensor."""
    own = model.inputs[0]
    large = list(own.shape)
    large[_axes()] = [_LARGE, _LARGE]
    try:
        tensors = graph.replay(model, keras.Input(batch_shape=large, dtype=own.dtype), chains=False)
    except Exception:  # each backend has its own
        large = list(own.shape)  # a layer in it wants the one size
        tensors = graph.replay(model, own, chains=False)
    padded = {
        t
        for call in graph.opened(model, chains=False).calls
        for t in call.outputs
        if isinstance(call.op, keras.layers.ZeroPadding2D) or type(call.op).__name__ == "Pad"
    }  # on its way to the next stride
    sizes = {}
    for number, tensor in enumerate(tensors):
        size = tuple(tensor.shape)[_axes()] if len(tensor.shape) == 4 else ()
        if size and all(size) and all(large[_axes()]) and number not in padded:
            sizes[number] = max(a / b for a, b in zip(large[_axes()], size, strict=True))
    return sizes
