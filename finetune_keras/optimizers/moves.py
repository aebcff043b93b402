"""Moving weights part of the way, without copies where the backend can write in place.

TensorFlow and JAX compile a training step and fuse what is done to a variable. PyTorch runs one
operation after the other, and each of Keras' makes a new tensor of the size of the weights; for an
embedding that takes longer than the optimizer itself.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["kept", "part_way", "towards"]


def kept(variable: keras.Variable, buffers: dict[int, Any]) -> Any:
    """A copy of a variable's value, as long as a step lasts.

    Args:
        variable: the variable.
        buffers: where the memory for it stays between steps, by ``id`` of the variable.
    """
    if keras.backend.backend() != "torch":
        return ops.copy(variable)
    value = variable.value.data
    buffer = buffers.get(id(variable))
    if buffer is None or buffer.shape != value.shape or buffer.device != value.device:
        buffer = buffers[id(variable)] = value.clone()
        return buffer
    return buffer.copy_(value)


def part_way(variable: keras.Variable, old: Any, share: float) -> None:
    """Sets ``variable`` to ``old + share * (variable - old)``; to ``old`` if ``share`` is 0."""
    if keras.backend.backend() == "torch":
        value = variable.value.data
        # A step to infinity has no part, not even none of it.
        value.copy_(old) if share == 0.0 else value.lerp_(old, 1.0 - share)
    else:
        new = ops.convert_to_tensor(variable)
        variable.assign(old if share == 0.0 else old + ops.cast(share, new.dtype) * (new - old))
    if variable.constraint is not None and share:
        variable.assign(variable.constraint(variable))


def towards(average: keras.Variable, variable: keras.Variable, share: Any) -> None:
    """Moves ``average`` by a ``share`` of the way to ``variable``; ``share`` is a scalar tensor."""
    if keras.backend.backend() == "torch":
        value = average.value.data
        value.lerp_(variable.value.data.to(value.dtype), share.to(value.dtype))
    else:
        new, old = ops.convert_to_tensor(variable), ops.convert_to_tensor(average)
        new = ops.cast(new, old.dtype)
        average.assign(old + ops.cast(share, old.dtype) * (new - old))
