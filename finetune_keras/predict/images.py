"""Files of images as what a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune_keras._errors import nearest
from finetune_keras.data import folders, formats, pixels

__all__ = ["are_paths", "batches", "files"]

_CHANNELS = (1, 3, 4)
_AT_ONCE = 16  # batches of images in memory


def are_paths(data: Any) -> bool:
    """Whether ``data`` is a path, or a list of them."""
    if isinstance(data, str | Path):
        return True
    return (
        isinstance(data, list | tuple)
        and bool(data)
        and all(isinstance(p, str | Path) for p in data)
    )


def files(data: Any) -> tuple[tuple[str, ...], list[Path]]:
    """The images that a path or a list of paths means, and what to call them.

    A folder means all images below it, by folder, then by name.

    Raises:
        ValueError: if there is no such file, or no image in a folder.
    """
    names: list[str] = []
    found: list[Path] = []
    for given in data if isinstance(data, list | tuple) else [data]:
        path = Path(given).expanduser()
        if path.is_dir():
            inside = list(map(Path, folders.files(path, formats.ENDINGS)))
            if not inside:
                raise ValueError(
                    f"no image in the folder {str(path)!r}; there should be files that end in "
                    f"{', '.join(formats.ENDINGS)}"
                )
            found += inside
            names += [str(p.relative_to(path)) for p in inside]
        elif path.is_file():
            found.append(path)
            names.append(path.name)
        else:
            there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = f"; {nearest(path.name, there)}" if there else ""
            raise ValueError(f"no file {str(path)!r}{hint}")
    return tuple(names), found


def batches(
    paths: list[Path], shape: tuple, batch_size: int, *, resize: str, interpolation: str
) -> Iterator[np.ndarray]:
    """Loads images to the size and channels that a model takes, some batches at a time.

    Args:
        paths: of the images.
        shape: of the model's input, the batch axis first.
        batch_size: the model's; the arrays are a multiple of it.
        resize: as of `finetune_keras.data.images`.
        interpolation: a name of Keras'.

    Yields:
        float32 arrays from 0 to 255, read as for training.
    """
    last = keras.config.image_data_format() == "channels_last"
    *size, channels = shape[1:] if last else (*shape[2:], shape[1])
    if None in size or channels not in _CHANNELS:
        raise ValueError(
            f"the model takes images of shape {shape}, so that files have no one size to be "
            "loaded to: load them by keras.utils.load_img, or build the model with input_shape="
        )
    step = _AT_ONCE * batch_size
    for start in range(0, len(paths), step):
        yield np.stack(
            [_load(p, size, channels, resize, interpolation) for p in paths[start : start + step]]
        )


def _load(
    path: Path, size: list[int], channels: int, resize: str, interpolation: str
) -> np.ndarray:
    size = pixels.checked(size, resize, interpolation, min(channels, 3))
    settings = {"resize": resize, "interpolation": interpolation, "channels": channels}
    head = formats.header(str(path))
    problem = head.problem
    try:
        if head.plain and channels != 4:
            return pixels.loader([str(path)], [head], size=size, **settings)(0).numpy()
        if not problem:
            image = _rgba(path) if channels == 4 else formats.decode(path, channels)
            return pixels.fit(image, size, **settings).numpy()
    except Exception as e:  # decoders raise whatever they meet in a broken file
        problem = formats.reason(e)
    raise ValueError(f"cannot read {str(path)!r} as an image: {problem}")


def _rgba(path: Path) -> np.ndarray:
    """With its transparency, which images to train on have not."""
    return keras.utils.img_to_array(keras.utils.load_img(path, color_mode="rgba"), "channels_last")
