"""Dtype policies: which one a network computes in, and which the machine is good at."""

from __future__ import annotations

from typing import Any

import keras

from finetune_keras._errors import nearest

__all__ = ["checked", "serialized"]

_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float16", "float64")


def checked(dtype: Any) -> str | None:
    """The name of a policy, ``None`` for ``"auto"`` on a machine without fast bfloat16.

    Raises:
        ValueError: for a policy that Keras does not have.
    """
    if isinstance(dtype, keras.DTypePolicy):
        dtype = dtype.name
    if dtype == "auto":
        return "mixed_bfloat16" if _has_bfloat16() else None
    if not isinstance(dtype, str) or dtype not in _POLICIES:
        raise ValueError(f"unknown dtype={dtype!r}; {nearest(str(dtype), ('auto', *_POLICIES))}")
    return dtype


def serialized(dtype: str) -> dict:
    """A policy as Keras writes it into configs."""
    return keras.saving.serialize_keras_object(keras.DTypePolicy(dtype))


def _has_bfloat16() -> bool:
    """Whether there is an accelerator whose matrix units compute in bfloat16."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            major, _ = tf.config.experimental.get_device_details(gpu).get(
                "compute_capability", (0, 0)
            )
            return major >= 8  # from Ampere on
        return bool(tf.config.list_physical_devices("TPU"))
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        capability = str(getattr(device, "compute_capability", "0")).split(".")[0]
        return device.platform == "tpu" or (capability.isdigit() and int(capability) >= 8)
    if backend == "torch":
        import torch

        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return False
