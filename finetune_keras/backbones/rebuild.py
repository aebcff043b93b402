"""The same network made again, with variables of its own, in another precision perhaps."""

from __future__ import annotations

from typing import Any

import keras

from finetune_keras import _private, flags, graph, precision
from finetune_keras._errors import sentence

__all__ = ["computes_in", "rebuilt"]


def rebuilt(network: keras.Model, *, dtype: str | None = None) -> keras.Model:
    """Layers and variables of its own, made from the configs of ``network``'s; equal weights and
    flags.

    Args:
        network: a functional or sequential model.
        dtype: a Keras dtype policy such as ``"mixed_bfloat16"``; ``None`` keeps each layer's.
            Layers that rescale pixels stay in float32: bfloat16 has 8 bits, and would round them.

    Raises:
        ValueError: if a layer cannot be made again from its own config.
    """
    try:
        with _private.known_code():  # it runs here already
            made = _made_again(network, dtype)
    except Exception as e:
        raise ValueError(
            f"{network.name!r} cannot be made again from its config, for a copy or another "
            f"dtype: {type(e).__name__}: {sentence(e)}"
        ) from e
    made.set_weights(network.get_weights())
    seen = graph.opened(made)
    for _, layer in seen.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes from a copy of its weights
    theirs = graph.opened(network).units
    on = {u.path for u in flags.switches(theirs) if flags.is_on(u, network)}
    flags.put(made, seen.units, frozenset(id(u.variable) for u in seen.units if u.path in on))
    return made


# A symbolic tensor in the config of a nested model has a dtype and no policy.
_KEPT = ("Rescaling", "Normalization", "InputLayer", "__keras_tensor__")
_PIXELS = keras.layers.Rescaling | keras.layers.Normalization | keras.layers.InputLayer


def _made_again(network: keras.Model, dtype: str | None) -> keras.Model:
    if not isinstance(network, keras.Sequential) and "__init__" in vars(type(network)):
        # A class with a constructor of its own, as all backbones of KerasHub: its layers may not
        # be made from their configs one by one.
        config = network.get_config()
        made = type(network).from_config(config if dtype is None else _in_policy(config, dtype))
        if dtype is None or computes_in(made, dtype):
            return made
        # DenseNet and EfficientNet of KerasHub, among others, do not tell their layers.

    def remade(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if dtype is not None and not isinstance(layer, _PIXELS):
            config = _in_policy(config, dtype)
        return type(layer).from_config(config)

    return keras.models.clone_model(_bare(network), clone_function=remade)


def computes_in(network: keras.Model, dtype: str) -> bool:
    """Whether any layer that has weights follows the policy."""
    layers = {id(u.layer): u.layer for u in graph.opened(network).units}.values()
    return any(x.dtype_policy.name == dtype for x in layers if not isinstance(x, _PIXELS))


def _bare(network: keras.Model) -> keras.Model:
    """The network without what it was compiled with, which Keras would clone too."""
    if not isinstance(network, keras.Sequential):
        return keras.Model(*graph.ends(network), name=network.name)
    start = network.inputs[0]
    first = keras.Input(batch_shape=start.shape, dtype=start.dtype, name=start.name)
    return keras.Sequential([first, *network.layers], name=network.name)


def _in_policy(config: Any, dtype: str, inside: str = "") -> Any:
    """A layer's config with another dtype policy, those of the layers that it holds too."""
    if isinstance(config, dict):
        if config.get("class_name") in _KEPT:
            return config
        if config.get("class_name") == "DTypePolicy":
            return precision.serialized(dtype)
        return {k: _in_policy(v, dtype, k) for k, v in config.items()}
    if isinstance(config, list):
        return [_in_policy(v, dtype) for v in config]
    # A layer keeps its policy as a string where it was made from one.
    return dtype if inside == "dtype" and isinstance(config, str) else config
