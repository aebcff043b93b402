"""From the number of a file to its pixels in the size that a model takes, inside TensorFlow."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from finetune_keras._errors import nearest, plain
from finetune_keras.data.formats import Header, decode

__all__ = ["RESIZES", "fit", "loader"]

RESIZES = ("crop", "squash", "pad")
_INTERPOLATIONS = (
    "bilinear", "nearest", "bicubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic",
)  # fmt: skip
_RATIOS = (8, 4, 2, 1)  # of libjpeg
_PNG, _PILLOW = 100, 101


def loader(
    paths: Sequence[str],
    headers: Sequence[Header],
    *,
    size: tuple[int, int],
    resize: str = "squash",
    interpolation: str = "bilinear",
    channels: int = 3,
    draft: bool = True,
) -> Callable:
    """A function of TensorFlow from a scalar int64 to a float32 image from 0 to 255.

    Args:
        paths: of the files.
        headers: of the same files.
        size: height and width.
        resize: as of `fit`.
        interpolation: as of `fit`.
        channels: 3 for RGB, 1 for grey.
        draft: decode a JPEG that is at least twice too large at a half, a quarter or an eighth.
    """
    import tensorflow as tf

    how = [_decoder(h, size, resize, draft) for h in headers]
    used = sorted(set(how))
    with tf.device("CPU:0"):
        files = tf.constant([os.fsencode(p) for p in paths], tf.string)
        which = tf.constant([used.index(h) for h in how], tf.int32)
        turns = tf.constant([h.orientation for h in headers], tf.int32)
    turned = any(h.orientation != 1 for h in headers)

    def pillow(path: Any) -> Any:
        read = tf.numpy_function(lambda p: decode(os.fsdecode(p), channels), [path], tf.uint8)
        return tf.ensure_shape(read, [None, None, channels])

    def branch(code: int, path: Any) -> Callable:
        if code == _PILLOW:
            return lambda: pillow(path)
        if code == _PNG:
            return lambda: tf.io.decode_png(tf.io.read_file(path), channels)
        return lambda: tf.io.decode_jpeg(tf.io.read_file(path), channels, ratio=code)

    def load(i: Any) -> Any:
        path = tf.gather(files, i)
        branches = [branch(code, path) for code in used]
        image = tf.switch_case(tf.gather(which, i), branches) if branches[1:] else branches[0]()
        image = _upright(image, tf.gather(turns, i)) if turned else image
        return fit(image, size, resize=resize, interpolation=interpolation, channels=channels)

    return load


def fit(
    image: Any,
    size: tuple[int, int],
    *,
    resize: str = "squash",
    interpolation: str = "bilinear",
    channels: int = 3,
) -> Any:
    """Brings an image of TensorFlow to a size, in ``keras.config.image_data_format()``.

    Args:
        image: of shape (height, width, channels).
        size: height and width.
        resize: ``"crop"`` cuts the middle out in the right proportions, ``"squash"`` changes
            proportions, ``"pad"`` adds black borders: what ``image_dataset_from_directory`` does
            with ``crop_to_aspect_ratio``, without, and with ``pad_to_aspect_ratio``.
        interpolation: a name of Keras'.
        channels: how many the image has.

    Returns:
        A float32 tensor.
    """
    import tensorflow as tf

    height, width = size
    if resize == "pad":
        image = tf.image.resize_with_pad(image, height, width, method=interpolation)
    else:
        if resize == "crop":
            h, w = tf.shape(image)[0], tf.shape(image)[1]
            tall = tf.maximum(1, tf.minimum(h, w * height // width))
            wide = tf.maximum(1, tf.minimum(w, h * width // height))
            top, left = (h - tall) // 2, (w - wide) // 2
            image = image[top : top + tall, left : left + wide]
        image = tf.image.resize(image, size, method=interpolation)
    image = tf.ensure_shape(tf.cast(image, tf.float32), [height, width, channels])
    if keras.config.image_data_format() == "channels_first":
        image = tf.transpose(image, (2, 0, 1))
    return image


def checked(size: Any, resize: str, interpolation: str, channels: int) -> tuple[int, int]:
    """The size as height and width.

    Raises:
        ValueError: if a setting is none that there is.

    Examples:
        >>> checked(224, "crop", "bilinear", 3)
        (224, 224)
    """
    given = size.tolist() if isinstance(size, np.ndarray) else size
    pair = given if isinstance(given, tuple | list) else (given, given)
    if len(pair) != 2 or not all(
        isinstance(n, numbers.Integral) and not isinstance(n, bool) and n > 0 for n in pair
    ):
        raise ValueError(
            f"size is (height, width) in pixels, or one number; given {plain(given)!r}"
        )
    for what, value, known in (
        ("resize", resize, RESIZES),
        ("interpolation", interpolation, _INTERPOLATIONS),
    ):
        if value not in known:
            raise ValueError(f"there is no {what}={value!r}: {nearest(str(value), known)}")
    if channels not in (1, 3) or isinstance(channels, bool):
        raise ValueError(f"channels is 3 for RGB or 1 for grey; given {channels!r}")
    return int(pair[0]), int(pair[1])


def _decoder(head: Header, size: tuple[int, int], resize: str, draft: bool) -> int:
    """Which decoder reads a file: one of two numbers, or the ratio at which libjpeg does."""
    if not head.plain:
        return _PILLOW
    if head.format == "PNG":
        return _PNG
    height, width = size if head.orientation < 5 else size[::-1]
    scales = (head.height / height, head.width / width)
    scale = max(scales) if resize == "pad" else min(scales)
    return next((r for r in _RATIOS if r <= scale), 1) if draft else 1


def _upright(image: Any, orientation: Any) -> Any:
    """Turns an image as its EXIF orientation says: a transposition, then flips."""
    import tensorflow as tf

    def where(codes: tuple[int, ...], function: Callable, image: Any) -> Any:
        chosen = tf.reduce_any(tf.equal(orientation, codes))
        return tf.cond(chosen, lambda: function(image), lambda: image)

    image = where((5, 6, 7, 8), lambda x: tf.transpose(x, (1, 0, 2)), image)
    image = where((2, 3, 6, 7), lambda x: tf.reverse(x, [1]), image)
    return where((3, 4, 7, 8), lambda x: tf.reverse(x, [0]), image)
