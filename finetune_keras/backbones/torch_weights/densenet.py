"""DenseNet (Huang et al. 2016, arXiv:1608.06993) of torchvision and timm, on Keras' graph."""

from __future__ import annotations

from typing import Any

from finetune_keras.backbones import applications
from finetune_keras.backbones.torch_weights.adapt import adapted
from finetune_keras.backbones.torch_weights.family import Family, Plan, Tensors, count, numbered

__all__ = ["FAMILY"]

_BLOCKS = {
    (6, 12, 24, 16): "densenet121",
    (6, 12, 32, 32): "densenet169",
    (6, 12, 48, 32): "densenet201",
    (6, 12, 36, 24): "densenet161",  # wider, and not in Keras
}


def make(
    name: str, library: str, tensors: Tensors, shape: tuple | None, options: dict[str, Any]
) -> Plan:
    """The network of a name, and the names of its weights."""
    # Files from before torch 0.4 have ``norm.1`` where later ones have ``norm1``.
    dot = "." if library == "old" else ""

    def layer(kind: str):
        # In each layer Keras counts its first normalisation 0, then convolution and normalisation.
        shift = 0 if kind == "conv" else 1
        return numbered(
            lambda s, b, i: f"features.denseblock{s - 1}.denselayer{b}.{kind}{dot}{i + shift}"
        )

    names = {
        "conv1_conv": "features.conv0",
        "conv1_bn": "features.norm0",
        r"conv(\d)_block(\d+)_(\d)_bn": layer("norm"),
        r"conv(\d)_block(\d+)_(\d)_conv": layer("conv"),
        r"pool(\d)_bn": numbered(lambda s: f"features.transition{s - 1}.norm"),
        r"pool(\d)_conv": numbered(lambda s: f"features.transition{s - 1}.conv"),
        "bn": "features.norm5",
    }
    network = applications.load(name, weights=None, input_shape=shape, **options).network
    return Plan(adapted(network), names)


def looks(tensors: Tensors) -> str | None:
    """The DenseNet that tensors are of."""
    return _BLOCKS.get(
        tuple(
            count(tensors, rf"features\.denseblock{stage}\.denselayer\d+\.")
            for stage in range(1, 5)
        )
    )


FAMILY = Family(
    names=("densenet121", "densenet169", "densenet201"),
    namings={
        "torchvision": ("features.denseblock1.denselayer1.norm1.weight", r"features\."),
        "old": ("features.denseblock1.denselayer1.norm.1.weight", r"features\."),
    },
    make=make,
    looks=looks,
)
