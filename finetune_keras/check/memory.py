"""Does a training step fit into memory?

An estimate from static shapes: weights, gradients, the optimizer's slots, and the values that
the backward pass reads again. Compilers fuse some of them away, so that only what is far too large
is reported.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import keras

from finetune_keras import graph, optimizers
from finetune_keras.check.findings import Finding

__all__ = ["Need", "free", "memory", "need"]

# Slots of the size of a variable; what is not listed is taken to have one.
_SLOTS = {"Adam": 2, "AdamW": 2, "Nadam": 2, "Adamax": 2, "Adadelta": 2, "Lamb": 2, "Ftrl": 2}
# Fusion and reuse of buffers have been seen to save up to half of the values of a forward pass.
_AT_LEAST = 0.5
_VIEWS = (
    keras.layers.Identity,
    keras.layers.Reshape,
    keras.layers.Flatten,
    keras.layers.InputLayer,
)


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes of a training step.

    Attributes:
        fixed: weights, gradients and the optimizer's slots.
        example: values kept for the backward pass, for each example of a batch.
    """

    fixed: int
    example: int

    def step(self, batch: int) -> int:
        """Bytes for a batch of that size."""
        return self.fixed + batch * self.example


def need(model: keras.Model) -> Need:
    """Estimates what a training step of a model takes.

    Dimensions that are unknown until there is data count as 1, so that the estimate is low.

    Examples:
        >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(5)])
        >>> need(model)      # 55 weights and their gradients; 5 outputs an example
        Need(fixed=440, example=20)
    """
    seen = graph.opened(model)
    learning = {id(v) for v in model.trainable_variables}
    weights = sum(_bytes(u.variable.shape, u.variable.dtype) for u in seen.units)
    gradients = sum(_bytes(v.shape, v.dtype) for v in model.trainable_variables)
    fixed = weights + gradients + _slots(model, gradients)
    # What comes before the first layer that learns is not read again, and is freed as it goes.
    starts = [
        i for i, c in enumerate(seen.calls) if any(id(u.variable) in learning for u in c.units)
    ]
    kept = graph.descendants(seen, starts)
    example = sum(
        _bytes(seen.shapes[t][1:], getattr(seen.calls[i].op, "compute_dtype", None) or "float32")
        for i in kept
        if not isinstance(seen.calls[i].op, _VIEWS)
        for t in seen.calls[i].outputs
    )
    return Need(fixed, 0 if seen.closed else example)


def _slots(model: keras.Model, gradients: int) -> int:
    if not model.compiled or model.optimizer is None:
        return 0
    if model.optimizer.built:
        return sum(_bytes(v.shape, v.dtype) for v in model.optimizer.variables)
    own = optimizers.innermost(model.optimizer)
    if isinstance(own, keras.optimizers.SGD):
        return gradients if own.momentum else 0
    return gradients * _SLOTS.get(type(own).__name__, 1)


def _bytes(shape: tuple, dtype: str) -> int:
    dtype = keras.backend.standardize_dtype(dtype)
    bits = next((n for n in (64, 32, 16, 8) if str(n) in dtype), 8)
    return math.prod(int(n or 1) for n in shape) * bits // 8


def free() -> tuple[int, str] | None:
    """Free bytes of the device that trains, and its name; ``None`` if nothing public tells.

    TensorFlow tells how much of a GPU is used and not how large it is.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        device = jax.local_devices()[0]
        if device.platform != "cpu":
            stats = device.memory_stats() or {}
            if "bytes_limit" not in stats:
                return None
            return stats["bytes_limit"] - stats.get("bytes_in_use", 0), str(device)
    if backend == "torch":
        torch = sys.modules["torch"]
        if torch.cuda.is_available():
            return torch.cuda.mem_get_info()[0], "the GPU"
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
            return None
    return _host()


def _host() -> tuple[int, str] | None:
    """Free memory of the machine, or of the container that this runs in if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        try:
            available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        available = min(available, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no limit
    return max(available, 0), "this machine"


def memory(model: keras.Model, batch: int) -> Iterator[Finding]:
    """A training step that does not fit by far."""
    found = free()
    if found is None or not model.trainable_variables:
        return
    room, device = found
    wanted = need(model)
    # The weights are there already.
    there = sum(_bytes(v.shape, v.dtype) for v in model.weights)
    if wanted.fixed - there + _AT_LEAST * batch * wanted.example <= room:
        return
    fits = int((room - (wanted.fixed - there)) / max(wanted.example, 1))
    fix = "freeze more, or take a smaller network"
    if fits >= 1:
        fix = f"batches of {2 ** int(math.log2(fits))}, or freeze more"
    yield Finding(
        "memory",
        f"a training step with batches of {batch} takes about {_gib(wanted.step(batch))}, and "
        f"{device} has {_gib(room)} free",
        fix,
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
