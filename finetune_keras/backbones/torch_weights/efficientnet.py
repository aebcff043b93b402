"""EfficientNet B0 to B7 (Tan and Le 2019, arXiv:1905.11946) of torchvision and timm, on Keras'
graph.

timm's ``tf_`` variants came from TensorFlow, and pad as it does: their names tell.
"""

from __future__ import annotations

from typing import Any

import keras

from finetune_keras.backbones import applications
from finetune_keras.backbones.torch_weights.adapt import adapted
from finetune_keras.backbones.torch_weights.family import Family, Plan, Tensors, count, numbered

__all__ = ["FAMILY"]

_layers = keras.layers

_SIZES = {  # blocks, and channels at the end
    (16, 1280): "efficientnetb0",
    (23, 1280): "efficientnetb1",
    (23, 1408): "efficientnetb2",
    (26, 1536): "efficientnetb3",
    (32, 1792): "efficientnetb4",
    (39, 2048): "efficientnetb5",
    (45, 2304): "efficientnetb6",
    (55, 2560): "efficientnetb7",
}


def _both(first: dict[str, str], other: dict[str, str], before: str, stage: int) -> dict:
    """Rows for the first stage, which does not widen first, and for the others."""

    def row(part: str):
        return numbered(lambda s, i: before.format(s - 1 + stage, i) + part)

    return {
        **{rf"block(1)([a-z])_{k}": row(v) for k, v in first.items()},
        **{rf"block(\d)([a-z])_{k}": row(v) for k, v in other.items()},
    }


_TORCHVISION = {
    "stem_conv": "features.0.0",
    "stem_bn": "features.0.1",
    **_both(
        {
            "dwconv": "0.0",
            "bn": "0.1",
            "se_reduce": "1.fc1",
            "se_expand": "1.fc2",
            "project_conv": "2.0",
            "project_bn": "2.1",
        },
        {
            "expand_conv": "0.0",
            "expand_bn": "0.1",
            "dwconv": "1.0",
            "bn": "1.1",
            "se_reduce": "2.fc1",
            "se_expand": "2.fc2",
            "project_conv": "3.0",
            "project_bn": "3.1",
        },
        "features.{}.{}.block.",
        1,
    ),
    "top_conv": "features.8.0",
    "top_bn": "features.8.1",
}

_TIMM = {
    "stem_conv": "conv_stem",
    "stem_bn": "bn1",
    **_both(
        {
            "dwconv": "conv_dw",
            "bn": "bn1",
            "se_reduce": "se.conv_reduce",
            "se_expand": "se.conv_expand",
            "project_conv": "conv_pw",
            "project_bn": "bn2",
        },
        {
            "expand_conv": "conv_pw",
            "expand_bn": "bn1",
            "dwconv": "conv_dw",
            "bn": "bn2",
            "se_reduce": "se.conv_reduce",
            "se_expand": "se.conv_expand",
            "project_conv": "conv_pwl",
            "project_bn": "bn3",
        },
        "blocks.{}.{}.",
        0,
    ),
    "top_conv": "conv_head",
    "top_bn": "bn2",
}


def make(
    name: str, library: str, tensors: Tensors, shape: tuple | None, options: dict[str, Any]
) -> Plan:
    """The network of a name, and the names of its weights."""
    plain = name.removeprefix("tf")
    from_tf = name != plain
    network = applications.load(plain, weights=None, input_shape=shape, **options).network
    # torchvision's largest came from TensorFlow too, but for the padding.
    original = from_tf or (library == "torchvision" and plain[-1] in "567")
    pixels = (_layers.Rescaling, _layers.Normalization)
    network = adapted(
        network,
        epsilon=1e-3 if original else 1e-5,
        without=(*pixels, _layers.ZeroPadding2D) if from_tf else pixels,
        pad=not from_tf,
        everywhere=_padded_by_size if from_tf else lambda layer: {},
    )
    return Plan(network, _TIMM if library == "timm" else _TORCHVISION)


def _padded_by_size(layer: keras.layers.Layer) -> dict[str, Any]:
    """TensorFlow's "same", of which Keras' layers before a convolution are the half for even
    sizes.
    """
    convolution = isinstance(layer, _layers.Conv2D | _layers.DepthwiseConv2D)
    return {"padding": "same"} if convolution else {}


def looks(tensors: Tensors) -> str | None:
    """The EfficientNet that tensors are of."""
    blocks = count(tensors, r"blocks\.\d+\.\d+\.") or count(tensors, r"features\.\d\.\d+\.block\.0")
    top = tensors.get("conv_head.weight", tensors.get("features.8.0.weight"))
    return None if top is None else _SIZES.get((blocks, len(top)))


FAMILY = Family(
    names=(*_SIZES.values(), *(f"tf{n}" for n in _SIZES.values())),
    namings={
        "torchvision": ("features.1.0.block.1.fc1.weight", r"features\."),
        "timm": ("conv_stem.weight", r"conv_stem\.|bn1\.|blocks\.|conv_head\.|bn2\."),
    },
    make=make,
    looks=looks,
    usual=lambda name: name.removeprefix("tf"),
)
