"""Weights of PyTorch: files of torchvision and timm onto the architectures of Keras and KerasHub,
and a user's own by a table of names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from finetune_keras._errors import WeightsError
from finetune_keras.backbones import applications, preprocessing
from finetune_keras.backbones.base import Backbone
from finetune_keras.backbones.loaded import Edits
from finetune_keras.backbones.torch_weights import (
    convnext,
    densenet,
    efficientnet,
    mobilenet,
    resnet,
    vgg,
    vit,
)
from finetune_keras.backbones.torch_weights.apply import load_torch, match
from finetune_keras.backbones.torch_weights.family import Family
from finetune_keras.backbones.torch_weights.reader import Checkpoint, is_torch, read

__all__ = ["family_of", "is_torch", "load", "load_torch", "looks", "names"]

_FAMILIES = tuple(m.FAMILY for m in (resnet, vgg, densenet, mobilenet, efficientnet, convnext, vit))


def names() -> tuple[str, ...]:
    """Short names of the architectures whose files can be read."""
    return tuple(n for family in _FAMILIES for n in family.names)


def family_of(name: str) -> Family | None:
    """The family of a name, with the resolution that timm adds to it or without.

    Examples:
        >>> family_of("vitbasepatch16224") is family_of("vitb16")
        True
    """
    plain = re.sub(r"(?<=patch\d\d)\d{3}$", "", name)
    return next((f for f in _FAMILIES if plain in f.names), None)


def looks(file: Checkpoint) -> str | None:
    """The architecture that tensors are of, if it is one of those that can be read."""
    for family in _FAMILIES:
        found = family.naming(file.tensors)
        name = family.looks(found[2]) if found else None
        if name:
            return name
    return None


def load(
    name: str,
    weights: str | os.PathLike | Mapping[str, Any],
    input_shape: tuple[int | None, ...] | None,
    **options: Any,
) -> Backbone:
    """One architecture with weights of torchvision or timm, computing what PyTorch computes.

    Args:
        name: one of `names`.
        weights: a file or a state dict.
        input_shape: of one image; ``None`` for any size.
        **options: what the function in ``keras.applications`` takes besides.

    Raises:
        WeightsError: if a weight has no tensor of its shape, or a tensor no place.
    """
    family = family_of(name)
    if family is None:
        raise WeightsError(
            f"files of PyTorch are not read for {name!r}, but for ResNet, VGG, DenseNet, "
            "MobileNetV2, EfficientNet, ConvNeXt and ViT: build it in Keras, and see load_torch"
        )
    if input_shape is not None:
        input_shape = applications.checked_shape(name, input_shape)
        axis = -1 if keras.config.image_data_format() == "channels_last" else 0
        if input_shape[axis] != 3:
            raise WeightsError(
                f"the weights of {name!r} are for 3 channels and input_shape={input_shape} has "
                f"{input_shape[axis]}: pass in_channels={input_shape[axis]} to adapt them"
            )
    file = read(weights)
    found = family.naming(file.tensors)
    if found is None:
        first = ", ".join(map(repr, list(file.tensors)[:3]))
        raise WeightsError(
            f"{file.name} is not for {name!r}{_hint(file, name)}: it begins with {first}"
        )
    library, before, inside = found
    plan = family.make(name, library, inside, input_shape, options)
    hint = _hint(file, name)
    matched = match(plan.network, file, plan.names, prefix=before, hint=hint)
    # A deeper network of the same kind has all that this one needs, and more.
    strange = _homeless(matched.unused, file.wrapper + before, family.trunk(library))
    if strange:
        raise WeightsError(
            f"{file.name} does not fit {name!r}{hint}: {len(strange)} of its tensors have no "
            f"place, the first of them {strange[0]!r}"
        )
    matched.assign()
    mean, deviation = plan.pixels
    steps = preprocessing.affine(
        [1 / (255 * d) for d in deviation], [-m / d for m, d in zip(mean, deviation, strict=True)]
    )
    return Backbone(
        plan.network,
        tuple(steps),
        f"{name}, weights={file.name!r}",
        edits=Edits(skipped=matched.unused),
    )


def _homeless(unused: Iterable[str], before: str, trunk: re.Pattern) -> list[str]:
    """Tensors of the network itself, neither of a classifier nor counters, that nothing takes."""
    return [
        n
        for n in unused
        if n.startswith(before)
        and trunk.match(n.removeprefix(before))
        and not n.endswith("num_batches_tracked")
    ]


def _hint(file: Checkpoint, name: str) -> str:
    other = looks(file)
    if other is None or family_of(name).usual(name) == other:
        return ""
    known = "" if other in names() else ", which Keras does not have"
    return f" (it looks like {other!r}{known})"
