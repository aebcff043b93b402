"""A picture of what a model will be trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune_keras import _plots
from finetune_keras import arrays as _arrays
from finetune_keras._errors import whole
from finetune_keras.data import folders

__all__ = ["preview"]


def preview(
    ds: Any,
    path: str | os.PathLike | None = None,
    *,
    rows: int = 3,
    columns: int = 6,
    class_names: Sequence[str] | None = None,
) -> Any:
    """Draws the first images of a data set in a grid, with their labels.

    They are what the next epoch will begin with: shuffled, cropped, augmented, mixed. Pixels from 0
    to 255 or from 0 to 1 are shown as they are; others are stretched, and the title says so.

    Args:
        ds: a data set of ``(x, y)`` or ``x`` in batches, ``x`` of shape (batch, height, width,
            channels) with 1, 3 or 4 channels.
        path: of a PNG file to write; without it the figure is returned.
        rows: of the grid, at most.
        columns: of the grid, at most.
        class_names: by label; by default ``ds.class_names``.

    Returns:
        The path of the file, or a ``matplotlib.figure.Figure``, which a notebook shows.

    Raises:
        ValueError: if there are no images.
        ImportError: if matplotlib is not installed.

    Examples:
        >>> from finetune_keras.data.memory import arrays
        >>> ds = arrays(np.zeros((4, 8, 8, 3)), ["cat", "dog", "cat", "dog"], shuffle=False)
        >>> [axes.get_title() for axes in preview(ds).axes]
        ['cat', 'dog', 'cat', 'dog']
    """
    rows, columns = whole("rows", rows, 1), whole("columns", columns, 1)
    if not hasattr(ds, "__iter__"):
        raise TypeError(f"a data set of images is wanted; given {ds!r:.80}")
    path = None if path is None else folders.located(path)
    images, labels = _first(ds, rows * columns)
    names = list(class_names if class_names is not None else getattr(ds, "class_names", None) or ())
    low, high = float(images.min()), float(images.max())
    stretched = low < -0.5 or high > 255.5  # rounding is no other range
    lower, upper = (low, high) if stretched else (0.0, 1.0 if high <= 1 else 255.0)
    shown = np.clip((images - lower) / max(upper - lower, 1e-6), 0, 1)
    across = min(columns, len(shown))
    down = -(-len(shown) // across)
    figure = _plots.figure(1.7 * across, 1.95 * down)
    for i, image in enumerate(shown):
        axes = figure.add_subplot(down, across, i + 1)
        axes.set_axis_off()
        axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        if labels is not None:
            axes.set_title(_words(labels[i], names), fontsize=8)
    if stretched:
        figure.suptitle(f"pixels from {low:.3g} to {high:.3g}, stretched", fontsize=8)
    return _plots.given(figure, path)


def _first(ds: Any, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The first images and labels; which epoch comes next is as before."""
    order = getattr(ds, "order", None)
    epoch = order.epoch if order is not None else None
    images: list[np.ndarray] = []
    labels: list[Any] = []
    try:
        for batch in ds:
            x, *y = batch if isinstance(batch, tuple | list) else (batch,)
            x = x if isinstance(x, dict) else _arrays.to_numpy(x)
            if isinstance(x, dict) or x.ndim != 4 or x.dtype.kind not in "uif":
                what = "a dict" if isinstance(x, dict) else f"{x.dtype} of shape {x.shape}"
                raise ValueError(
                    f"a preview shows images (batch, height, width, channels); given {what}"
                )
            if x.shape[-1] not in (1, 3, 4):
                raise ValueError(
                    f"a preview shows images of 1, 3 or 4 channels; given {x.shape[-1]}"
                )
            images.append(np.asarray(x, "float32"))
            if y and not isinstance(y[0], dict):
                labels.append(_arrays.to_numpy(y[0]))
            if sum(map(len, images)) >= most:
                break
    finally:
        if order is not None:
            order.epoch = epoch
    if not images:
        raise ValueError("the data set is empty")
    found = np.concatenate(labels)[:most] if labels else None
    return np.concatenate(images)[:most], found


def _words(label: np.ndarray, names: Sequence[str]) -> str:
    """A label in words: a class, a mixture of two, several, or a number."""
    label = np.asarray(label)

    def name(i: int) -> str:
        text = names[i] if 0 <= i < len(names) else str(i)
        return text if len(text) <= 22 else f"{text[:20]}..."

    if label.ndim == 0:
        whole = label.dtype.kind in "iub"
        return name(int(label)) if whole else f"{float(label):.4g}"
    if label.ndim == 1 and len(label) > 1 and abs(float(label.sum()) - 1) < 1e-3:
        order = np.argsort(-label)[:2]
        if label[order[0]] > 0.995:
            return name(int(order[0]))
        return "\n".join(f"{label[i]:.2f} {name(int(i))}" for i in order)
    if label.ndim == 1 and set(np.unique(label)) <= {0, 1}:
        return ", ".join(name(int(i)) for i in np.flatnonzero(label)) or "none"
    return " ".join(f"{v:.3g}" for v in label.ravel()[:4])
