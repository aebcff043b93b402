"""A small residual network pretrained on letters, shipped with the package.

`architecture` builds the network and `load_weights` fills it from
`letters_resnet.npz`, the file beside this module. The weights come from
`scripts/pretrain_letters.py`: 372 classes of letters from eight alphabets, in
the fonts that Matplotlib ships, bent, inked, blurred and coloured at random. No
digit was drawn, in any script. On fresh drawings a linear head on the averaged
features told the 372 classes apart with an accuracy of 0.814 in the fonts it was
trained on and of 0.746 in three fonts held out.

The network expects images of one symbol that fills the frame. It was trained at
16 x 16, most of the images blown up from 8 x 8, most of them light on dark.
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np

WEIGHTS_PATH = pathlib.Path(__file__).with_name("letters_resnet.npz")
IMAGE_SIZE = (16, 16)

_WIDTHS = (24, 48, 96)


def _conv(x, filters: int, kernel_size: int, strides: int, name: str):
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def _norm(x, name: str):
    return keras.layers.BatchNormalization(momentum=0.9, name=name)(x)


def _block(x, filters: int, strides: int, name: str):
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = _conv(x, filters, 1, strides, f"{name}_conv0")
        shortcut = _norm(shortcut, f"{name}_bn0")
    x = _conv(x, filters, 3, strides, f"{name}_conv1")
    x = _norm(x, f"{name}_bn1")
    x = keras.layers.ReLU(name=f"{name}_relu1")(x)
    x = _conv(x, filters, 3, 1, f"{name}_conv2")
    x = _norm(x, f"{name}_bn2")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_out")(x)


def architecture(
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    name: str = "letters_resnet",
) -> keras.Model:
    """Build the network with fresh weights.

    A stem and three residual blocks of 24, 48 and 96 filters; the second and
    third block halve the resolution. It is fully convolutional and has no
    pooling and no head.

    Args:
        input_shape: Height, width and channels of the images. Height and
            width may be `None`; the pretrained weights need 3 channels.
        name: Name of the model.

    Returns:
        A functional model from images `(batch, height, width, 3)` to features
        `(batch, ceil(height / 4), ceil(width / 4), 96)`, float32 under the
        default dtype policy. Its inputs are already scaled to `x / 127.5 - 1`,
        for pixels `x` in 0..255.
    """
    inputs = keras.Input(input_shape, name="image")
    x = _conv(inputs, _WIDTHS[0], 3, 1, "stem_conv")
    x = _norm(x, "stem_bn")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage, filters in enumerate(_WIDTHS, start=1):
        x = _block(x, filters, 1 if stage == 1 else 2, f"stage{stage}_block1")
    return keras.Model(inputs, x, name=name)


def load_weights(model: keras.Model) -> None:
    """Assign the pretrained weights to a model made by `architecture`.

    The file holds float16 arrays under `"layer_name/variable_name"`. They are
    cast to float32 and assigned by name.

    Args:
        model: A model from `architecture`, with 3 input channels.

    Raises:
        ValueError: If a variable of the model is not in the file, the file has
            an array the model does not, or a shape differs. Nothing is
            assigned then.
    """
    variables = {
        f"{layer.name}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.variables
    }
    with np.load(WEIGHTS_PATH, allow_pickle=False) as archive:
        arrays = {key: archive[key].astype("float32") for key in archive.files}
    missing = sorted(variables.keys() - arrays.keys())
    extra = sorted(arrays.keys() - variables.keys())
    if missing or extra:
        raise ValueError(
            f"{WEIGHTS_PATH.name} does not match the model {model.name!r}: "
            f"not in the file: {missing}; not in the model: {extra}."
        )
    for key, variable in variables.items():
        if arrays[key].shape != tuple(variable.shape):
            raise ValueError(
                f"{WEIGHTS_PATH.name} does not match the model {model.name!r}: "
                f"{key} has shape {arrays[key].shape} in the file and "
                f"{tuple(variable.shape)} in the model."
            )
    for key, variable in variables.items():
        variable.assign(arrays[key])
