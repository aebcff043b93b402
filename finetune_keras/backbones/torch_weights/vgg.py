"""VGG (Simonyan and Zisserman 2014, arXiv:1409.1556) of torchvision and timm, without batch
normalisation: 16 and 19 on Keras' graph, 11 and 13 on KerasHub's.
"""

from __future__ import annotations

from typing import Any

import keras

from finetune_keras.backbones import applications
from finetune_keras.backbones.torch_weights.family import (
    Family,
    Plan,
    Tensors,
    no_options,
    numbered,
)

__all__ = ["FAMILY"]

_CONVOLUTIONS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def make(
    name: str, library: str, tensors: Tensors, shape: tuple | None, options: dict[str, Any]
) -> Plan:
    """The network of a name, and the names of its weights."""
    convolutions = _CONVOLUTIONS[name]

    def place(block: int, index: int) -> str:
        # Each convolution is followed by a ReLU, each block by a pooling.
        before = sum(2 * n + 1 for n in convolutions[: block - 1])
        return f"features.{before + 2 * (index - 1)}"

    if name in ("vgg11", "vgg13"):
        network = _hub(name, shape, options)
    else:
        network = applications.load(name, weights=None, input_shape=shape, **options).network
    return Plan(network, {r"block(\d)_conv(\d)": numbered(place)})


def _hub(name: str, shape: tuple | None, options: dict[str, Any]) -> keras.Model:
    import keras_hub

    no_options(name, options)
    made = keras_hub.models.VGGBackbone(
        stackwise_num_repeats=list(_CONVOLUTIONS[name]),
        stackwise_num_filters=[64, 128, 256, 512, 512],
        image_shape=shape or (None, None, 3),
    )
    return keras.Model(made.inputs[0], made.outputs[0], name=name)


def looks(tensors: Tensors) -> str | None:
    """The VGG that tensors are of."""
    kernels = [n for n, t in tensors.items() if n.startswith("features.") and t.ndim == 4]
    name = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}.get(len(kernels))
    return name and (f"{name}_bn" if "features.1.weight" in tensors else name)


FAMILY = Family(
    names=tuple(_CONVOLUTIONS),
    namings={"torchvision": ("features.0.weight", r"features\.")},
    make=make,
    looks=looks,
)
