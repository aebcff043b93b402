"""Networks by name: the one that ships with this package, those of ``keras.applications``, and with
weights of PyTorch those of torchvision and timm.
"""

from __future__ import annotations

import os
import re
from typing import Any

from finetune_keras._errors import WeightsError, nearest
from finetune_keras.backbones import (
    applications,
    files,
    letters,
    preprocessing,
    presets,
    torch_weights,
)
from finetune_keras.backbones.base import Backbone

__all__ = ["checked", "is_known", "load", "without_network"]

_LETTERS = "letters_resnet"

# An example of each handle.
_HANDLES = {
    "hf": "hf://google-bert/bert-base-uncased",
    "kaggle": "kaggle://keras/bert/keras/bert_tiny_en_uncased",
    "modelscope": "modelscope://org/name",
    "https": "https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5",
}


def checked(source: object) -> None:
    """Raises `ValueError` for a string that is empty, or begins like a handle and is none.

    Examples:
        >>> checked("hf://")
        Traceback (most recent call last):
        ValueError: 'hf://' names no model; expected one such as 'hf://google-bert/bert-base-uncased'
    """
    if not isinstance(source, str):
        return
    if not source.strip():
        raise ValueError(f"backbone takes a name, a path or a handle; given {source!r}")
    scheme, found, rest = re.fullmatch(r"(?:(\w+)(:/+))?(.*)", source, re.DOTALL).groups()
    if found is None or (scheme in ("http", "https") and rest):
        return
    example = _HANDLES.get(scheme)
    if example is None:
        raise ValueError(
            f"unknown handle {source!r}: there are {', '.join(f'{s}://' for s in _HANDLES)}"
        )
    if not rest or found != "://":
        raise ValueError(f"{source!r} names no model; expected one such as {example!r}")


def is_known(source: object) -> bool:
    """Whether it is the name of a network of Keras or of this package.

    Examples:
        >>> is_known("ResNet-50"), is_known("bert_tiny_en_uncased")
        (True, False)
    """
    known = [*applications.names(), applications.tidy(_LETTERS)]
    return isinstance(source, str) and applications.tidy(source) in known


def load(source: str, weights: Any, input_shape: Any, options: dict[str, Any]) -> Backbone:
    """The network of that name.

    Args:
        source: as the user wrote it.
        weights: ``"auto"``, ``"imagenet"``, ``"letters"``, ``None``, a file, or a state dict of
            PyTorch.
        input_shape: of one image; ``None`` for any size.
        options: what the function in ``keras.applications`` takes besides.

    Raises:
        ValueError: if nothing has that name; with the nearest.
        WeightsError: if there are no such weights for it.
    """
    known = applications.names()
    name = applications.tidy(source)
    if torch_weights.is_torch(weights):
        if name not in known and torch_weights.family_of(name) is None:
            near = nearest(name, torch_weights.names())
            raise ValueError(f"unknown backbone {source!r} for weights of PyTorch; {near}")
        return torch_weights.load(name, weights, input_shape, **options)
    if name == applications.tidy(_LETTERS):
        return _letters(weights, input_shape, options)
    if name not in known and torch_weights.family_of(name) is not None:
        raise WeightsError(
            f"{source!r} is read from files of PyTorch, and Keras has no weights for it: pass "
            "weights=<path of a .pth or .safetensors file>"
        )
    if name not in known:
        # What begins like the name comes first: "bert" is in "albert" too.
        tidy = applications.tidy
        every = [*known, _LETTERS, *presets.names()]
        every.sort(key=lambda n: not tidy(n).startswith(name))
        raise ValueError(
            f"unknown backbone {source!r}; {nearest(source, every, key=tidy)} "
            "(or the path of a .keras or .h5 file or of a preset's folder, or a keras.Model)"
        )
    weights = "imagenet" if weights == "auto" else weights
    return applications.load(name, weights=weights, input_shape=input_shape, **options)


def without_network(source: str | os.PathLike) -> str:
    """What to say where a file of PyTorch is given without the network that it is for."""
    file = torch_weights.read(source)
    name = torch_weights.looks(file)
    named = (
        "name its architecture, as in backbone('resnet50', weights=...), or load it into a "
        "model of your own with load_torch"
    )
    if name is not None:
        named = f"it looks like {name!r}, so backbone({name!r}, weights={str(source)!r})"
    return f"{file.name} holds weights and not the network: {named}"


def _letters(weights, input_shape, options) -> Backbone:
    if options:
        raise TypeError(f"{_LETTERS!r} takes no {', '.join(f'{k}=' for k in options)}")
    shape = (None, None, 3)
    if input_shape is not None:
        shape = applications.checked_shape(_LETTERS, input_shape)
    network = letters.architecture(shape, name=_LETTERS)
    if weights in ("auto", "letters"):
        letters.load_weights(network)
        weights = "letters"
    elif weights is not None:
        if not files.looks_like_file(weights):
            raise WeightsError(
                f"unknown weights={weights!r} for {_LETTERS!r}: there are 'letters', None for "
                "random weights, or the path of a weights file"
            )
        files.load_into(network, weights, _LETTERS)
    shown = weights if weights is None else str(weights)
    steps = preprocessing.affine([1 / 127.5], [-1.0])
    source = f"{_LETTERS}, weights={shown!r}"
    return Backbone(network, tuple(steps), source, pretrained=weights is not None)
