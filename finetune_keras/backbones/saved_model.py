"""TF Hub and Kaggle modules, and other SavedModels, as backbones that learn."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import keras

from finetune_keras import _optional
from finetune_keras._errors import WeightsError, sentence
from finetune_keras.backbones import applications
from finetune_keras.backbones.adopted import SavedModelLayer
from finetune_keras.backbones.base import Backbone
from finetune_keras.backbones.module import Module, require_tensorflow
from finetune_keras.backbones.preprocessing import affine
from finetune_keras.backbones.saved_files import holds

__all__ = ["load", "looks_like_saved_model"]


def looks_like_saved_model(source: object) -> bool:
    """Whether a source is a handle of TF Hub or Kaggle, or the folder of a SavedModel."""
    if isinstance(source, str) and re.match(r"https?://", source):
        return True
    if isinstance(source, str) and applications.tidy(source) in applications.names():
        return False  # a folder of that name is "./resnet50"
    return isinstance(source, str | os.PathLike) and holds(source)


def load(
    source: str | os.PathLike,
    *,
    input_shape: Any = None,
    output_key: str | None = None,
) -> Backbone:
    """A SavedModel as a backbone: a plain functional model around one layer.

    Args:
        source: ``https://tfhub.dev/...``, ``https://www.kaggle.com/models/...``, or a folder with
            a ``saved_model.pb``.
        input_shape: shape of one example, for what the SavedModel leaves open; a dict of them by
            the names of the inputs, if there are several.
        output_key: which output are the features, where the SavedModel gives a dict.

    Raises:
        WeightsError: if it cannot be fetched, loaded or called, or there is no such output.
        ValueError: on another backend than TensorFlow, or for a shape that does not fit.
    """
    _alone(source)
    require_tensorflow()
    folder, handle = _folder(source)
    module = Module(folder)
    specs = _shaped(module.inputs, input_shape)
    inputs = _inputs(specs)
    layer = SavedModelLayer.of(module, specs, output_key=output_key, name="saved_model")
    outputs = layer(inputs)
    name = _name(str(source))
    if module.fixed:
        warnings.warn(
            f"{name!r} cannot learn, only a head on it can: {module.fixed}",
            stacklevel=3,
        )
    steps = affine([1 / 255.0], [0.0]) if handle and _is_image(inputs) else []
    origin = str(source) if handle else folder.name
    return Backbone(keras.Model(inputs, outputs, name=name), tuple(steps), origin)


def _alone(source: str | os.PathLike) -> None:
    """Raises `WeightsError` if a folder is a preset of KerasHub or a checkpoint besides."""
    have = {p.name for p in Path(source).expanduser().glob("*")}
    other = sorted(have & {"model.safetensors", "model.weights.h5"})
    if other and "config.json" in have:
        raise WeightsError(
            f"the folder {str(source)!r} holds two models, saved_model.pb and {other[0]} with its "
            "config.json: put the one that is meant into a folder of its own"
        )


def _folder(source: str | os.PathLike) -> tuple[Path, bool]:
    """Where the SavedModel is, downloaded and cached by TF Hub if it is a handle."""
    if not re.match(r"https?://", str(source)):
        return Path(source).expanduser(), False
    try:
        hub = _optional.require("tensorflow_hub", "hub")
    except ModuleNotFoundError as e:
        if e.name != "pkg_resources":
            raise
        raise ImportError(
            "tensorflow_hub imports pkg_resources, which setuptools has no more since 82: "
            + _optional.hint("hub"),
            name=e.name,
        ) from e
    try:
        folder = Path(os.fsdecode(hub.resolve(str(source))))
    except Exception as e:  # of the network, of archives, of the file system
        raise WeightsError(
            f"{str(source)!r} cannot be fetched ({sentence(e)}): download it elsewhere and give "
            "its folder, or set TFHUB_CACHE_DIR to a cache that has it"
        ) from e
    if not holds(folder):
        raise WeightsError(f"{str(source)!r} is no SavedModel: {str(folder)!r} has none")
    return folder, True


def _shaped(specs: Any, input_shape: Any) -> Any:
    """The specs with what is asked for in place of what they leave open."""
    if input_shape is None:
        unknown = [s for s in keras.tree.flatten(specs) if s.shape.rank is None]
        if unknown:
            raise ValueError(
                "the SavedModel does not say which shape its input has: give input_shape=, such "
                "as (224, 224, 3) for images, () for texts"
            )
        return specs
    if isinstance(specs, dict):
        if not isinstance(input_shape, dict) or set(input_shape) - set(specs):
            raise ValueError(
                "input_shape= is a dict by the names of the inputs here, some of "
                f"{', '.join(map(repr, specs))}; given {input_shape!r}"
            )
        return {k: _fitted(s, input_shape[k]) if k in input_shape else s for k, s in specs.items()}
    if not hasattr(specs, "shape"):
        raise ValueError("input_shape= is for SavedModels with one input or named ones")
    return _fitted(specs, input_shape)


def _fitted(spec: Any, shape: Any) -> Any:
    import tensorflow as tf

    try:
        wanted = tf.TensorShape([None, *shape])
    except TypeError:
        raise ValueError(
            f"input_shape= is the shape of one example, such as (224, 224, 3); given {shape!r}"
        ) from None
    if not spec.shape.is_compatible_with(wanted):
        raise ValueError(
            f"input_shape={tuple(shape)} does not fit the SavedModel, which takes "
            f"{tuple(spec.shape[1:])} for each example"
        )
    return tf.TensorSpec(spec.shape.merge_with(wanted), spec.dtype, spec.name)


def _inputs(specs: Any) -> Any:
    def one(path: tuple, spec: Any) -> keras.KerasTensor:
        name = re.sub(r"\W+", "_", str(path[-1] if path else spec.name or "input")).strip("_")
        name = "input" if name in ("", "args_0") else name
        return keras.Input(batch_shape=tuple(spec.shape), dtype=spec.dtype.name, name=name)

    if isinstance(specs, dict):
        return {k: one((k,), s) for k, s in specs.items()}
    if isinstance(specs, list | tuple):
        return [one((f"input_{i}",), s) for i, s in enumerate(specs)]
    return one((), specs)


def _is_image(inputs: Any) -> bool:
    """TF Hub's convention for images: three channels of floats from 0 to 1."""
    tensor = isinstance(inputs, keras.KerasTensor)
    return tensor and len(inputs.shape) == 4 and inputs.shape[-1] == 3 and "float" in inputs.dtype


def _name(source: str) -> str:
    """The last parts of a handle or path that are words: ``resnet_v2_50_feature_vector``."""
    parts = [p for p in re.split(r"[/\\?]", source) if p and not p.isdigit()]
    last = parts[-2:] if "://" in source else parts[-1:]
    return re.sub(r"\W+", "_", "_".join(last)).strip("_") or "saved_model"
