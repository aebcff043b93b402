"""The architectures of ``keras.applications``, by short lower-case names."""

from __future__ import annotations

import inspect
import os
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune_keras._errors import WeightsError, nearest, sentence
from finetune_keras.backbones import files, preprocessing
from finetune_keras.backbones.base import Backbone

__all__ = ["checked_shape", "load", "names", "preprocess", "tidy"]


def tidy(name: str) -> str:
    """``"ResNet-50"`` and ``"resnet_50"`` are ``"resnet50"``."""
    return re.sub(r"[-_ ]", "", name).lower()


def names() -> dict[str, Callable[..., keras.Model]]:
    """Short names and the Keras functions behind them."""
    return {
        name.lower(): thing
        for name, thing in vars(keras.applications).items()
        if name[0].isupper() and callable(thing)
    }


def _module(name: str) -> types.ModuleType:
    """The public module of ``keras.applications`` that a family's functions are in."""
    modules = {
        n: m
        for n, m in vars(keras.applications).items()
        if isinstance(m, types.ModuleType) and hasattr(m, "preprocess_input")
    }
    function = names()[name].__name__
    for module in modules.values():
        if hasattr(module, function):
            return module
    # mobilenet_v3 has its preprocess_input in a module that does not list its architectures.
    return modules[max((n for n in modules if name.startswith(tidy(n))), key=len)]


def preprocess(name: str, channels: int = 3) -> tuple[Callable[[Any], Any], ...]:
    """What the family's own ``preprocess_input`` does, as layers."""
    return preprocessing.measured(_module(name).preprocess_input, channels)


def load(
    name: str,
    *,
    weights: str | os.PathLike | None,
    input_shape: tuple[int | None, ...] | None,
    **options: Any,
) -> Backbone:
    """One architecture of ``keras.applications`` without its classifier.

    Args:
        name: a key of `names`.
        weights: ``"imagenet"``, ``None`` for random ones, or a path to a file.
        input_shape: of one image; ``None`` for any size.
        **options: what the Keras function takes besides, such as ``alpha=0.35``.
    """
    function = names()[name]
    _check_options(name, function, options)
    if input_shape is not None:
        input_shape = checked_shape(name, input_shape)
    from_file = weights not in ("imagenet", None)
    if from_file and (isinstance(weights, bool) or not isinstance(weights, str | os.PathLike)):
        raise WeightsError(f"weights= takes 'imagenet', None or a path; given {weights!r}")
    if isinstance(weights, str) and from_file and not files.looks_like_file(weights):
        raise WeightsError(
            f"unknown weights={weights!r} for {name!r}: there are 'imagenet', None for random "
            "weights, or the path of a .weights.h5, .h5 or .keras file"
        )
    try:
        network = function(
            include_top=False,
            weights=None if from_file else weights,
            input_shape=input_shape,
            **options,
        )
    except ValueError as e:
        raise ValueError(_refused(name, input_shape, e)) from e
    except Exception as e:
        if weights == "imagenet":
            raise WeightsError(_offline(name, e)) from e
        raise
    axis = -1 if keras.config.image_data_format() == "channels_last" else 1
    before = list(preprocess(name, network.input_shape[axis]))
    if from_file:
        try:
            files.load_into(network, weights, name, _with_top(name, weights))
        except WeightsError as e:
            sizes = ", ".join(f"{o}=" for o in _options(function) if o != "name")
            raise WeightsError(f"{e} (check {sizes})" if sizes else str(e)) from e
        before += _missing_rescaling(name, network)
    shown = Path(weights).name if from_file else weights
    more = "".join(f", {k}={v!r}" for k, v in options.items())
    source = f"{name}, weights={shown!r}{more}"
    return Backbone(network, tuple(before), source, pretrained=weights is not None)


def _with_top(name: str, weights: str | os.PathLike) -> str:
    return (
        " (a classifier's kernel and bias more? then use the file without top, or "
        f"backbone(keras.applications.{names()[name].__name__}(weights={str(weights)!r}), "
        f"preprocessing={name!r}))"
    )


def _options(function: Callable) -> list[str]:
    """What a function of ``keras.applications`` takes besides what `load` decides."""
    fixed = {"include_top", "weights", "input_tensor", "input_shape", "pooling", "classes"}
    fixed |= {"classifier_activation", "weights_name", "include_preprocessing"}
    return [p for p in inspect.signature(function).parameters if p not in fixed]


def _check_options(name: str, function: Callable, options: dict[str, Any]) -> None:
    allowed = _options(function)
    for option in options:
        if option not in allowed:
            raise TypeError(f"{name!r} takes no {option}=; {nearest(option, allowed)}")


def checked_shape(name: str, shape: Any) -> tuple[int | None, ...]:
    """``(height, width, channels)`` as a tuple; height and width may be ``None``.

    Raises:
        ValueError: if it is anything else.
    """
    fits = isinstance(shape, list | tuple) and len(shape) == 3
    channels = -1 if keras.config.image_data_format() == "channels_last" else 0
    for i, n in enumerate(shape if fits else ()):
        open_ = n is None and i != channels % 3  # any height or width, but known channels
        fits = fits and (open_ or (isinstance(n, int) and not isinstance(n, bool) and n > 0))
    if not fits:
        raise ValueError(
            f"input_shape for {name!r} is (height, width, channels) such as (224, 224, 3); "
            f"given {shape!r}"
        )
    return tuple(shape)


def _missing_rescaling(name: str, network: keras.Model) -> list:
    """EfficientNet (the first version) divides by the square root of ImageNet's deviation in a
    layer that Keras adds only for ``weights="imagenet"``. With the same weights from a file the
    layer is missing and the features are wrong; here its effect is put before the network.

    The network computes ``(x / 255 - mean) / sqrt(variance)``, where ImageNet's files have the
    deviation in place of the variance; dividing once more by ``sqrt(deviation)`` is the same as
    handing it ``x / sqrt(deviation) + 255 * mean * (1 - 1 / sqrt(deviation))``.
    """
    if not re.fullmatch(r"efficientnetb\d", name):
        return []
    norm = next(x for x in network.layers if isinstance(x, keras.layers.Normalization))
    mean, variance = (
        np.ravel(keras.ops.convert_to_numpy(v)).astype("float64")
        for v in (norm.mean, norm.variance)
    )
    if not np.allclose(variance, [0.229, 0.224, 0.225], atol=1e-3):
        return []  # not ImageNet's statistics, or their true variance
    scale = 1 / np.sqrt(variance)
    return preprocessing.affine(scale, 255 * mean * (1 - scale))


def _refused(name: str, input_shape: tuple | None, error: ValueError) -> str:
    least = re.search(r"Input size must be at least (\d+)x(\d+)", str(error))
    if least is None:
        return f"{name!r} with input_shape={input_shape}: {sentence(error)}"
    height, width = least.groups()
    return (
        f"{name!r} takes images of at least {height}x{width}; given input_shape={input_shape}: "
        f"enlarge them, as by keras.layers.Resizing({height}, {width}); stem='small' then keeps "
        "their detail where the network has a strided stem"
    )


def _offline(name: str, error: BaseException) -> str:
    url = re.search(r"https?://\S+", str(error))
    file = url.group(0).rstrip(".:,").rsplit("/", 1)[-1] if url else f"{name}'s file"
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
    return (
        f"the ImageNet weights of {name!r} cannot be downloaded ({sentence(error)}): put {file} "
        f"into {home}, or pass weights=<path of that file>, or weights=None for random weights"
    )
