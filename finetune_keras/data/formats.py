"""What a file of an image holds, read off its header; and its pixels where TensorFlow errs.

TensorFlow decodes plain JPEG and PNG fast and rightly. It does not turn images as their EXIF says,
drops what is transparent, and knows neither WebP nor 16 bits in all formats: there Pillow decodes.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ENDINGS", "Header", "decode", "fingerprint", "header", "headers", "unreadable"]

ENDINGS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
# No others: some of Pillow's formats start programs. What phones and cameras write, a JPEG with
# more pictures behind it, comes as "MPO".
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")
_PLUGINS = ("Jpeg", "Mpo", "Png", "Bmp", "Gif", "WebP", "Tiff")
_ORIENTATION = 0x0112
_THREADS = 16


class Header(NamedTuple):
    """What is known of an image before its pixels.

    Attributes:
        format: ``"JPEG"``, ``"PNG"``, ``"BMP"``, ``"GIF"``, ``"WEBP"`` or ``"TIFF"``; empty if it
            cannot be read.
        width: in pixels, as stored.
        height: in pixels, as stored.
        orientation: as in EXIF, 1 for upright; only of a JPEG that TensorFlow can decode.
        plain: whether TensorFlow decodes it rightly, but for the orientation.
        problem: why it cannot be read; empty if it can.
    """

    format: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    plain: bool = False
    problem: str = ""


def header(path: str) -> Header:
    """Reads the header of one file. What is wrong with it is told in ``problem``, not raised.

    Examples:
        >>> header("no/such.jpg").problem
        'there is no such file'
    """
    pil = _pillow()
    try:
        if not os.stat(path).st_size:
            return Header(problem="it is empty")
        with pil.open(path, formats=_FORMATS) as image:
            kind = "JPEG" if image.format == "MPO" else image.format
            eight = image.mode in ("L", "RGB") and "transparency" not in image.info
            plain = eight and (kind == "JPEG" or (kind == "PNG" and "exif" not in image.info))
            orientation = _orientation(image) if plain and kind == "JPEG" else 1
            if image.mode == "F":
                return Header(problem="its pixels are floats")
            return Header(kind, *image.size, orientation, plain)
    except FileNotFoundError:
        why = "it is a broken link" if os.path.islink(path) else "there is no such file"
    except pil.UnidentifiedImageError:
        why = "it is no image"
    except Exception as e:  # Pillow raises whatever its parsers meet in a broken file
        why = reason(e)
    return Header(problem=why)


def headers(paths: Sequence[str]) -> list[Header]:
    """`header` of many files, in several threads."""
    with ThreadPoolExecutor(_THREADS, "finetune_keras_headers") as threads:
        return list(threads.map(header, paths))


def decode(path: str | os.PathLike, channels: int = 3) -> np.ndarray:
    """The pixels of an image, upright, as uint8 of shape (height, width, channels).

    What is transparent is put on white; of an animation this is the first frame; 16 bits are
    scaled to 8.

    Raises:
        Exception: of any kind, if the file cannot be read.
    """
    from PIL import ImageOps

    pil = _pillow()
    with pil.open(path, formats=_FORMATS) as image:
        return flat(ImageOps.exif_transpose(image), channels)


def unreadable(path: str | os.PathLike, data: bytes, head: Header) -> str:
    """Why training could not decode this image; empty if it can.

    Args:
        path: of the file.
        data: all that is in it.
        head: its header.
    """
    import tensorflow as tf

    try:
        if not head.plain:
            decode(path)
        elif head.format == "PNG":
            tf.io.decode_png(data, 3)
        else:
            tf.io.decode_jpeg(data, 3)
    except Exception as e:  # of any kind, as decoders meet anything in a broken file
        return reason(e)
    return ""


def flat(image: Any, channels: int) -> np.ndarray:
    """The pixels of a Pillow image in 1 or 3 channels of 8 bits."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floats")
    if image.mode.startswith("I"):  # 16 bits, which ``convert`` would cut off at 255
        values = np.clip(np.asarray(image).astype("int64"), 0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype("uint8"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def reason(error: Exception) -> str:
    """An exception of a decoder in one line."""
    text = " ".join(str(error).split())
    text = text.split("}} ")[-1].split(" [Op:")[0]  # what TensorFlow puts around it
    return text or type(error).__name__


def fingerprint(paths: Iterable[str]) -> str:
    """A hash of names, sizes and times of change as they are now: another one if a file is another
    one, or gone.
    """
    import hashlib

    hashed = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            stat = os.stat(path)
            now = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            now = "gone"
        hashed.update(os.fsencode(path) + f"\0{now}\n".encode())
    return hashed.hexdigest()


def _pillow() -> Any:
    """``PIL.Image``, with the formats that are read: Pillow itself loads them when it meets the
    first one, which several threads cannot do at once.
    """
    for name in _PLUGINS:
        importlib.import_module(f"PIL.{name}ImagePlugin")
    return importlib.import_module("PIL.Image")


def _orientation(image: Any) -> int:
    try:
        turned = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF in a sound image
        return 1
    return turned if 1 <= turned <= 8 else 1
