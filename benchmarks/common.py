"""What the benchmarks share: photographs, a few of each class, means with their errors.

Keras is imported where it is used, since some of the programs only start others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def images(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All images of a folder of classes, from 0 to 255, and their labels, in memory."""
    import keras

    data = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=64, shuffle=False, verbose=False
    )
    x, y = zip(*((a.numpy(), b.numpy()) for a, b in data), strict=True)
    return np.concatenate(x), np.concatenate(y)


def few(y: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """So many rows of each class, drawn by a seed."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.choice(np.flatnonzero(y == c), shots, False) for c in np.unique(y)])


def mobilenet(data: Path, size: int) -> Any:
    """MobileNetV2 of width 0.35, pretrained on ImageNet, with its preprocessing."""
    import keras

    import finetune_keras as ftk

    network = keras.applications.MobileNetV2(
        (size, size, 3), alpha=0.35, include_top=False, weights=None
    )
    network.load_weights(next((data / "weights" / "mobilenet_v2_0.35").glob("*.h5")))
    return ftk.backbone(network, preprocessing="mobilenetv2")


def mean(values: Any) -> list[float | None]:
    """Mean and standard error; there is no error of a single value."""
    values = np.asarray(values, "float64")
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return [round(float(values.mean()), 4), error and round(float(error), 4)]


def timed(call: Callable, *given: Any) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call(*given)
    return time.perf_counter() - wall, time.process_time() - cpu


def ratio(of: list[float], to: list[float]) -> dict[str, Any]:
    """How many times longer, pair by pair: the median, and all of them. Beside it ``least`` is the
    shortest time over the shortest, which other work on the machine lengthens the least.
    """
    found = sorted(round(a / b, 3) for a, b in zip(of, to, strict=True))
    least = round(min(of) / min(to), 3)
    return {"median": round(statistics.median(found), 3), "least": least, "all": found}


def resident(key: str = "VmRSS") -> float:
    """MiB of resident memory of this process, or with ``VmHWM`` the peak of it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024
