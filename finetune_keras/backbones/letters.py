"""A small residual network pretrained on letters drawn by computer."""

from __future__ import annotations

import pathlib

import keras
import numpy as np

WEIGHTS = pathlib.Path(__file__).with_name("letters_resnet.npz")
WIDTHS = (24, 48, 96)


def _conv(x, filters: int, size: int, strides: int, name: str):
    return keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def _norm(x, name: str):
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=name)(x)


def _block(x, filters: int, strides: int, name: str):
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = _norm(_conv(x, filters, 1, strides, f"{name}_conv0"), f"{name}_bn0")
    x = _norm(_conv(x, filters, 3, strides, f"{name}_conv1"), f"{name}_bn1")
    x = keras.layers.ReLU(name=f"{name}_relu1")(x)
    x = _norm(_conv(x, filters, 3, 1, f"{name}_conv2"), f"{name}_bn2")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_out")(x)


def architecture(
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    name: str = "letters_resnet",
) -> keras.Model:
    inputs = keras.Input(input_shape, name="image")
    x = _norm(_conv(inputs, WIDTHS[0], 3, 1, "stem_conv"), "stem_bn")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for i, width in enumerate(WIDTHS, start=1):
        x = _block(x, width, 1 if i == 1 else 2, f"stage{i}_block1")
    return keras.Model(inputs, x, name=name)
