"""ResNet (He et al. 2015, arXiv:1512.03385) of torchvision and timm, with stride in the 3 x 3
convolution ("v1.5"): 50, 101 and 152 on Keras' graph, 18 and 34 on KerasHub's.
"""

from __future__ import annotations

from typing import Any

import keras

from finetune_keras.backbones import applications
from finetune_keras.backbones.torch_weights.adapt import adapted
from finetune_keras.backbones.torch_weights.family import (
    Family,
    Plan,
    Tensors,
    count,
    no_options,
    numbered,
)

__all__ = ["FAMILY"]

_BLOCKS = {  # blocks of each stage, and whether they narrow and widen
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
    (3, 8, 36, 3, True): "resnet152",
}

_KERAS = {
    "conv1_conv": "conv1",
    "conv1_bn": "bn1",
    r"conv(\d)_block(\d+)_0_conv": numbered(lambda s, b: f"layer{s - 1}.{b - 1}.downsample.0"),
    r"conv(\d)_block(\d+)_0_bn": numbered(lambda s, b: f"layer{s - 1}.{b - 1}.downsample.1"),
    r"conv(\d)_block(\d+)_(\d)_conv": numbered(lambda s, b, i: f"layer{s - 1}.{b - 1}.conv{i}"),
    r"conv(\d)_block(\d+)_(\d)_bn": numbered(lambda s, b, i: f"layer{s - 1}.{b - 1}.bn{i}"),
}

_HUB = {
    "conv1_conv": "conv1",
    "conv1_bn": "bn1",
    r"stack(\d)_block(\d+)_0_conv": numbered(lambda s, b: f"layer{s + 1}.{b}.downsample.0"),
    r"stack(\d)_block(\d+)_0_bn": numbered(lambda s, b: f"layer{s + 1}.{b}.downsample.1"),
    r"stack(\d)_block(\d+)_(\d)_conv": numbered(lambda s, b, i: f"layer{s + 1}.{b}.conv{i}"),
    r"stack(\d)_block(\d+)_(\d)_bn": numbered(lambda s, b, i: f"layer{s + 1}.{b}.bn{i}"),
}


def make(
    name: str, library: str, tensors: Tensors, shape: tuple | None, options: dict[str, Any]
) -> Plan:
    """The network of a name, and the names of its weights."""
    if name in ("resnet18", "resnet34"):
        return Plan(_small(name, shape, options), _HUB)
    network = applications.load(name, weights=None, input_shape=shape, **options).network
    settings: dict[str, dict[str, Any]] = {}
    for layer in network.layers:
        # Keras has the stride in the first convolution of a block.
        if layer.name.endswith("_block1_1_conv"):
            settings[layer.name] = {"strides": (1, 1)}
            settings[layer.name.replace("_1_conv", "_2_conv")] = {"strides": layer.strides}
    return Plan(adapted(network, settings=settings, everywhere=_no_bias), _KERAS)


def _no_bias(layer: keras.layers.Layer) -> dict[str, Any]:
    return {"use_bias": False} if isinstance(layer, keras.layers.Conv2D) else {}


def _small(name: str, shape: tuple | None, options: dict[str, Any]) -> keras.Model:
    import keras_hub

    no_options(name, options)
    blocks = next(b for b, n in _BLOCKS.items() if n == name)[:4]
    made = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(blocks),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=shape or (None, None, 3),
    )
    # All its layers are Keras' own: as a plain model it needs no KerasHub to be loaded.
    return keras.Model(made.inputs[0], made.outputs[0], name=name)


def looks(tensors: Tensors) -> str | None:
    """The ResNet that tensors are of."""
    blocks = [count(tensors, rf"layer{stage}\.\d+\.") for stage in range(1, 5)]
    return _BLOCKS.get((*blocks, "layer1.0.conv3.weight" in tensors))


FAMILY = Family(
    names=tuple(_BLOCKS.values()),
    namings={"torchvision": ("conv1.weight", r"conv1\.|bn1\.|layer\d\.")},
    make=make,
    looks=looks,
)
