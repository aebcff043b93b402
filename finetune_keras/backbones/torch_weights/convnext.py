"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545) of torchvision, timm and its authors, on Keras'
graph.

Features are the maps of the last stage. PyTorch's classifier averages them and then normalises,
which is left over with it.
"""

from __future__ import annotations

from typing import Any

import keras

from finetune_keras.backbones import applications
from finetune_keras.backbones.torch_weights.family import Family, Plan, Tensors, count, numbered

__all__ = ["FAMILY"]

_SIZES = {  # blocks of the third stage, channels of the first
    (9, 96): "convnexttiny",
    (27, 96): "convnextsmall",
    (27, 128): "convnextbase",
    (27, 192): "convnextlarge",
    (27, 256): "convnextxlarge",
}

# By library: what stands before the parts of the stem, of the layers between the stages and of the
# blocks, and the parts of a block.
_PARTS = {
    "torchvision": (
        "features.0.{}",
        lambda i, part: f"features.{2 * i + 2}.{part}",
        lambda s, b: f"features.{2 * s + 1}.{b}.",
        ("block.0", "block.2", "block.3", "block.5", "layer_scale"),
    ),
    "timm": (
        "stem.{}",
        lambda i, part: f"stages.{i + 1}.downsample.{part}",
        lambda s, b: f"stages.{s}.blocks.{b}.",
        ("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma"),
    ),
    "authors": (
        "downsample_layers.0.{}",
        lambda i, part: f"downsample_layers.{i + 1}.{part}",
        lambda s, b: f"stages.{s}.{b}.",
        ("dwconv", "norm", "pwconv1", "pwconv2", "gamma"),
    ),
}


def _names(library: str) -> dict:
    stem, between, block, parts = _PARTS[library]
    depthwise, norm, first, second, scale = parts

    def row(part: str):
        return numbered(lambda s, b: block(s, b) + part)

    place = r".*_stage_(\d)_block_(\d+)_"
    return {
        r".*_stem_conv": stem.format(0),
        r".*_stem_layernorm": stem.format(1),
        r".*_downsampling_layernorm_(\d)": numbered(lambda i: between(i, 0)),
        r".*_downsampling_conv_(\d)": numbered(lambda i: between(i, 1)),
        place + "depthwise_conv": row(depthwise),
        place + "layernorm": row(norm),
        place + "pointwise_conv_1": row(first),
        place + "pointwise_conv_2": row(second),
        place + "layer_scale/.*": row(scale),  # a variable: Keras numbers it
    }


def make(
    name: str, library: str, tensors: Tensors, shape: tuple | None, options: dict[str, Any]
) -> Plan:
    """The network of a name, and the names of its weights."""
    whole = applications.load(name, weights=None, input_shape=shape, **options).network
    last = whole.layers[-1]  # a normalisation of maps that were not averaged
    start = next(x for x in whole.layers if x.name.endswith("prestem_normalization"))
    network = keras.models.clone_model(
        keras.Model(whole.inputs[0], last.input, name=whole.name),
        clone_function=lambda layer: layer,
        call_function=lambda layer, *args, **kwargs: (
            args[0] if layer is start else layer(*args, **kwargs)
        ),
    )
    return Plan(network, _names(library))


def looks(tensors: Tensors) -> str | None:
    """The ConvNeXt that tensors are of."""
    third = max(
        count(tensors, rf"{before}\.\d+\.")
        for before in (r"features\.5", r"stages\.2\.blocks", r"stages\.2(?!\.blocks|\.downsample)")
    )
    kernels = ("features.0.0.weight", "stem.0.weight", "downsample_layers.0.0.weight")
    stem = next((tensors[k] for k in kernels if k in tensors), None)
    return None if stem is None else _SIZES.get((third, len(stem)))


FAMILY = Family(
    names=tuple(_SIZES.values()),
    namings={
        "torchvision": ("features.1.0.layer_scale", r"features\."),
        "timm": ("stem.0.weight", r"stem\.|stages\."),
        "authors": ("downsample_layers.0.0.weight", r"downsample_layers\.|stages\."),
    },
    make=make,
    looks=looks,
)
