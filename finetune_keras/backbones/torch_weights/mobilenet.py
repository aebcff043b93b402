"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) of torchvision and timm, on Keras' graph."""

from __future__ import annotations

from typing import Any

from finetune_keras.backbones import applications
from finetune_keras.backbones.torch_weights.adapt import adapted
from finetune_keras.backbones.torch_weights.family import Family, Plan, Tensors, count, numbered

__all__ = ["FAMILY"]

_TORCHVISION = {
    "Conv1": "features.0.0",
    "bn_Conv1": "features.0.1",
    "expanded_conv_depthwise": "features.1.conv.0.0",
    "expanded_conv_depthwise_BN": "features.1.conv.0.1",
    "expanded_conv_project": "features.1.conv.1",
    "expanded_conv_project_BN": "features.1.conv.2",
    r"block_(\d+)_expand": numbered(lambda b: f"features.{b + 1}.conv.0.0"),
    r"block_(\d+)_expand_BN": numbered(lambda b: f"features.{b + 1}.conv.0.1"),
    r"block_(\d+)_depthwise": numbered(lambda b: f"features.{b + 1}.conv.1.0"),
    r"block_(\d+)_depthwise_BN": numbered(lambda b: f"features.{b + 1}.conv.1.1"),
    r"block_(\d+)_project": numbered(lambda b: f"features.{b + 1}.conv.2"),
    r"block_(\d+)_project_BN": numbered(lambda b: f"features.{b + 1}.conv.3"),
    "Conv_1": "features.18.0",
    "Conv_1_bn": "features.18.1",
}

_REPEATS = (1, 2, 3, 4, 3, 3, 1)  # blocks of each stage, as timm counts them
_PLACES = [(s, i) for s, n in enumerate(_REPEATS) for i in range(n)]


def _timm(part: str):
    return numbered(lambda b: "blocks.{}.{}.".format(*_PLACES[b]) + part)


_TIMM = {
    "Conv1": "conv_stem",
    "bn_Conv1": "bn1",
    "expanded_conv_depthwise": "blocks.0.0.conv_dw",
    "expanded_conv_depthwise_BN": "blocks.0.0.bn1",
    "expanded_conv_project": "blocks.0.0.conv_pw",
    "expanded_conv_project_BN": "blocks.0.0.bn2",
    r"block_(\d+)_expand": _timm("conv_pw"),
    r"block_(\d+)_expand_BN": _timm("bn1"),
    r"block_(\d+)_depthwise": _timm("conv_dw"),
    r"block_(\d+)_depthwise_BN": _timm("bn2"),
    r"block_(\d+)_project": _timm("conv_pwl"),
    r"block_(\d+)_project_BN": _timm("bn3"),
    "Conv_1": "conv_head",
    "Conv_1_bn": "bn2",
}


def make(
    name: str, library: str, tensors: Tensors, shape: tuple | None, options: dict[str, Any]
) -> Plan:
    """The network of a name, and the names of its weights."""
    network = applications.load(name, weights=None, input_shape=shape, **options).network
    return Plan(adapted(network), _TIMM if library == "timm" else _TORCHVISION)


def looks(tensors: Tensors) -> str | None:
    """Whether tensors are of a MobileNetV2."""
    timm = count(tensors, r"blocks\.\d+\.\d+\.") == 17 and "blocks.0.0.conv_pw.weight" in tensors
    squeezes = "blocks.0.0.se.conv_reduce.weight" in tensors
    return (
        "mobilenetv2" if (timm and not squeezes) or "features.17.conv.3.weight" in tensors else None
    )


FAMILY = Family(
    names=("mobilenetv2",),
    namings={
        "torchvision": ("features.1.conv.0.0.weight", r"features\."),
        "timm": ("conv_stem.weight", r"conv_stem\.|bn1\.|blocks\.|conv_head\.|bn2\."),
    },
    make=make,
    looks=looks,
)
