"""What images pass through before a network, as layers that Keras alone can load.

Each family of ``keras.applications`` has its own ``preprocess_input``: a number of scale and
offset for each channel, and for some the channels in reverse. It is not listed here but measured,
by calling the function on four pixels, and rebuilt from ``Rescaling`` and slicing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from finetune_keras import parts

__all__ = ["affine", "checked", "measured", "reverse_channels"]


def measured(
    function: Callable[[np.ndarray], np.ndarray], channels: int = 3
) -> tuple[Callable[[Any], Any], ...]:
    """Layers that do what an affine ``preprocess_input`` does.

    Args:
        function: takes float images of shape ``(batch, height, width, 3)`` in the channel order
            of ``keras.config.image_data_format()``, 0 to 255, and scales each channel.
        channels: of the images to come. Other than 3 are possible if the function treats all
            channels alike.

    Returns:
        Callables on symbolic tensors; none where the function changes nothing.

    Raises:
        ValueError: if ``channels`` is not 3 and the function treats channels differently.
    """
    last = keras.config.image_data_format() == "channels_last"

    def on_pixel(values) -> np.ndarray:
        pixel = np.reshape(np.asarray(values, "float64"), (1, 1, 1, 3) if last else (1, 3, 1, 1))
        return np.asarray(function(pixel.copy()), "float64").reshape(3)

    offset = on_pixel([0, 0, 0])
    # Rows: what a full red, green or blue input adds to the three outputs.
    gain = np.stack([on_pixel(255.0 * np.eye(3)[c]) - offset for c in range(3)]) / 255.0
    flipped = abs(gain[0, 2]) > abs(gain[0, 0])
    scale = (gain[::-1] if flipped else gain).diagonal()
    if channels != 3:
        if flipped or np.ptp(scale) > 1e-6 or np.ptp(offset) > 1e-6:
            raise ValueError(
                f"this network's preprocessing is defined for 3 channels and its input has "
                f"{channels}: pass preprocessing=None and scale the input yourself, or a layer"
            )
        scale, offset = scale[:1], offset[:1]
    steps: list[Callable[[Any], Any]] = []
    if flipped:
        steps.append(reverse_channels)
    steps += affine(scale, offset)
    return tuple(steps)


def affine(scale: Iterable[float], offset: Iterable[float]) -> list[keras.layers.Layer]:
    """``x * scale + offset`` by channel, or no layer where that is ``x``."""
    scale, offset = [float(s) for s in scale], [float(o) for o in offset]
    if np.allclose(scale, 1, atol=1e-6) and np.allclose(offset, 0, atol=1e-6):
        return []
    if len(set(scale)) == 1 and len(set(offset)) == 1:
        scale, offset = scale[0], offset[0]
    # In float32 whatever the policy: bfloat16 has 8 bits, and would round the pixels.
    name = f"{parts.PREPROCESSING}rescaling"
    return [keras.layers.Rescaling(scale, offset, name=name, dtype="float32")]


def reverse_channels(x):
    """RGB to BGR, for the weights that came from Caffe."""
    # Not x[..., ::-1]: PyTorch has no negative steps.
    return keras.ops.flip(x, -1 if keras.config.image_data_format() == "channels_last" else 1)


def checked(step: Any) -> Callable[[Any], Any]:
    """The user's own preprocessing: a layer."""
    if not isinstance(step, keras.layers.Layer):
        raise TypeError(
            "preprocessing= takes 'auto', None, the name of an architecture whose preprocessing "
            f"to use, a Keras layer, or a list of these; given {step!r}"
        )
    return step
