"""Configs of Keras 1.2 to 2.15, one layer at a time, as Keras 3 takes them.

What changed is listed here and nowhere else: classes with another name, classes that are gone,
arguments with another name, arguments that are gone, and defaults that were others.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras

from finetune_keras import _private
from finetune_keras._errors import WeightsError

__all__ = ["layer", "modern", "recurs"]

# Classes that have another name, or became an argument of another class.
_RENAMED = {
    "SyncBatchNormalization": ("BatchNormalization", {"synchronized": True}),
    "BatchNormalizationV1": ("BatchNormalization", {}),
    "BatchNormalizationV2": ("BatchNormalization", {}),
    "LSTMV2": ("LSTM", {}),
    "GRUV2": ("GRU", {}),
    "ThresholdedReLU": ("ReLU", {}),
    "Convolution1D": ("Conv1D", {}),
    "Convolution2D": ("Conv2D", {}),
    "Convolution3D": ("Conv3D", {}),
    "SeparableConvolution2D": ("SeparableConv2D", {}),
}

# Classes that Keras 3 has not, with what to do.
_GONE = {
    "Lambda": "it runs Python code that is in the file, and is refused: rebuild that model in code "
    "and load its weights, with a layer of yours in place of the Lambda",
    "TensorFlowOpLayer": "an operation of TensorFlow 2.0 to 2.3: load the file there, and save "
    "backbone and weights without it",
    "ModuleWrapper": "it wrapped a module that was not Keras': rebuild that model in code",
    "CuDNNLSTM": "load the file with Keras 2 and put the weights into an LSTM",
    "CuDNNGRU": "load the file with Keras 2 and put the weights into a GRU(reset_after=True)",
    "LocallyConnected1D": "Keras 3 has no locally connected layers",
    "LocallyConnected2D": "Keras 3 has no locally connected layers",
    "RandomCrop": "Keras 3's does not crop at inference: crop in the data pipeline",
    "Merge": "a file of Keras 1: load and save it with Keras 2.2 first",
    "Highway": "a file of Keras 1: load and save it with Keras 2.2 first",
    "MaxoutDense": "a file of Keras 1: load and save it with Keras 2.2 first",
}

# Arguments with another name, by class.
_ARGUMENTS = {
    "LeakyReLU": {"alpha": "negative_slope"},
    "ReLU": {"theta": "threshold"},  # of ThresholdedReLU
    "Dropout": {"p": "rate"},
}

# Arguments that said nothing about what the layer computes.
_MEANINGLESS = {
    "batch_input_shape",  # read before, for the input
    "fused",
    "implementation",
    "input_dim",
    "input_length",
    "key_shape",
    "query_shape",
    "rng_type",
    "softmax_robust_masking",
    "value_shape",
    "unroll",
}
# Arguments with which nothing was asked for at this value.
_NEUTRAL = {"groups": 1, "renorm_momentum": 0.99}

# Defaults that were others, for files that are older than the argument.
_OLD_DEFAULTS = {"GRU": {"reset_after": False}, "GRUCell": {"reset_after": False}}

# What every layer takes.
_COMMON = {"name", "trainable", "dtype", "activity_regularizer"}

# Arguments that are layers.
_INSIDE = ("layer", "cell", "cells", "backward_layer")

_PARTS = ("_initializer", "_regularizer", "_constraint")


def layer(spec: dict[str, Any], name: str) -> keras.layers.Layer:
    """The layer of one entry of ``layers``, with its own name.

    Raises:
        WeightsError: if Keras 3 has no such class or option; it says what to do.

    Examples:
        >>> spec = {"class_name": "DepthwiseConv2D", "config": {"kernel_size": 3, "groups": 1}}
        >>> layer(spec, "conv").kernel_size
        (3, 3)
    """
    made = modern({**spec, "config": {**spec["config"], "name": name}})
    try:
        return keras.saving.deserialize_keras_object(made)
    except WeightsError:
        raise
    except Exception as e:  # of many kinds, and long
        why = " ".join(str(e).split("Exception encountered:")[-1].split())[:200]
        raise WeightsError(
            f"the layer {name!r} of class {made['class_name']} cannot be made: {why}"
        ) from e


def recurs(kind: str) -> bool:
    """Whether a class of the file is a recurrent layer, whose activation is inside its steps.

    Examples:
        >>> recurs("LSTM"), recurs("Dense")
        (True, False)
    """
    cls = getattr(keras.layers, _RENAMED.get(kind, (kind, {}))[0], None)
    return inspect.isclass(cls) and issubclass(cls, keras.layers.RNN)


def modern(spec: dict[str, Any]) -> dict[str, Any]:
    """The entry as Keras 3 would have written it, with the layers inside it."""
    written = spec["class_name"]
    name = spec["config"].get("name", written)
    config = {k: _value(k, v) for k, v in spec["config"].items()}
    config.pop("batch_input_shape", None)
    keys = [k for k in (spec.get("registered_name"), written) if k]
    for key in keys:
        if keras.saving.get_registered_object(key) is not None:
            return {"module": None, "class_name": written, "registered_name": key, "config": config}
    if config.get("activation") == "hard_sigmoid":  # one that comes last was taken off before
        raise WeightsError(
            f"the layer {name!r} has activation='hard_sigmoid' inside it, which was another "
            "function in Keras 2, clip(x / 5 + 1/2, 0, 1): rebuild that model in code, with a "
            "function of yours in its place, and load the file's weights"
        )
    if written in _GONE:
        raise WeightsError(f"the layer {name!r} is a {written}: {_GONE[written]}")
    class_name, more = _RENAMED.get(written, (written, {}))
    config |= more
    cls = getattr(keras.layers, class_name, None)
    if class_name == "LayerScale":  # ConvNeXt's, which Keras writes so, too
        return {
            **_private.layer_scale(),
            "config": {k: v for k, v in config.items() if v is not None},
        }
    if cls is None or not inspect.isclass(cls):
        raise WeightsError(f"the layer {name!r} is of {_unknown(keys[0])}")
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "registered_name": None,
        "config": _arguments(cls, class_name, config, name),
    }


def _unknown(key: str) -> str:
    package, _, bare = key.rpartition(">")
    if package:
        how = f"decorate it with @keras.saving.register_keras_serializable({package!r})"
    else:
        how = f"load inside `with keras.saving.custom_object_scope({{{bare!r}: {bare}}}):`"
    return f"a class that Keras 3 has not, {bare!r}: if it is yours, write it for Keras 3 and {how}"


def _arguments(cls: type, class_name: str, config: dict, name: str) -> dict[str, Any]:
    """The arguments that the class takes; an option that it has no longer is an error."""
    names = _ARGUMENTS.get(class_name, {})
    config = {names.get(k, k): v for k, v in config.items()}
    config = {**_OLD_DEFAULTS.get(class_name, {}), **config}
    takes = set(inspect.signature(cls.__init__).parameters)
    if "kwargs" in takes:
        takes |= _COMMON
    elif "trainable" in config:  # of a layer without weights that does not take it
        config.pop("trainable")
    separable = "depthwise_initializer" in takes
    kept = {}
    for key, value in config.items():
        if key in takes:
            kept[key] = value
        elif separable and key.startswith("kernel_"):
            continue  # written by Keras 2 for a kernel that these layers have not
        elif not (key in _MEANINGLESS or value in (None, False) or _NEUTRAL.get(key) == value):
            raise WeightsError(
                f"the layer {name!r} of class {class_name} has {key}={value!r}, which Keras 3 "
                "cannot do"
            )
    if class_name.startswith("BatchNorm") and isinstance(kept.get("axis"), list):
        kept["axis"] = kept["axis"][0] if len(kept["axis"]) == 1 else kept["axis"]
    return kept


def _value(key: str, value: Any) -> Any:
    """One argument: policies by their names, layers inside, initializers without what is gone."""
    if isinstance(value, list):
        return [_value(key, v) for v in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "ndarray":
        return value["value"]
    if "class_name" not in value:
        return value
    inner = value.get("config")
    if key == "dtype":  # a policy
        return inner["name"]
    if key.endswith(_PARTS):
        return {**value, "config": _initializer(inner)}
    known = hasattr(keras.layers, value["class_name"])
    if isinstance(inner, dict) and (key in _INSIDE or (key == "activation" and known)):
        return modern(value)
    return value


def _initializer(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    config = {k: v for k, v in config.items() if k not in ("dtype", "partitioner")}
    if config.get("distribution") == "normal":  # of VarianceScaling, before it had two of them
        config["distribution"] = "truncated_normal"
    return config
