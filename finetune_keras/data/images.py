"""Images in folders as a data set."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_keras._errors import nearest
from finetune_keras.data import folders, formats, pixels
from finetune_keras.data.dataset import Examples, Plan, dataset, shown
from finetune_keras.data.labels import named

__all__ = ["from_files", "images"]


def images(
    folder: str | os.PathLike,
    *,
    size: int | tuple[int, int] = (224, 224),
    batch_size: int = 32,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    shuffle: bool | None = None,
    seed: int = 0,
    resize: str = "squash",
    interpolation: str = "bilinear",
    channels: int = 3,
    draft: bool = True,
    strict: bool = False,
) -> Any:
    """Images in a folder for each class, ``class/file.jpg``, as a ``tf.data.Dataset``.

    It gives ``(x, y)`` in batches: ``x`` float32 from 0 to 255 of shape (batch, height, width,
    channels), which is what the backbones here take; ``y`` int32, the place of the class among the
    sorted names of the folders, as with ``keras.utils.image_dataset_from_directory``. JPEG, PNG,
    BMP, GIF (the first frame), WebP and TIFF are read, of 8 or 16 bits, in grey, colour, CMYK and
    palettes; they are turned as their EXIF says, and what is transparent is put on white. Links
    are followed; folders and files whose name begins with a dot are left out.

    Files that cannot be read are left out, and named in a warning: when the data set is made, as
    far as their header tells, and when an epoch ends. What is not shuffled is read once in full
    when it is made, so that its rows, ``labels`` and ``file_paths`` go together. ``scan`` says what
    is wrong with files.

    Args:
        folder: of the classes; or one with ``train``, ``val`` and ``test`` in it, each with the
            same classes.
        size: height and width, or one number for both.
        batch_size: images in a batch.
        split: ``"train"``, ``"val"`` or ``"test"`` if the folder has these; by default all of
            them, as a dict. Of a folder without, ``images(...).split(0.2)`` gives two data sets.
        class_names: the classes to take, in that order; all in alphabetical order by default.
        shuffle: whether each epoch has an order of its own; by default all but ``val`` and
            ``test`` do.
        seed: the order of an epoch depends on this and the number of the epoch, nothing else.
        resize: ``"squash"`` changes proportions, as Keras' function does by default; ``"crop"``
            cuts the middle out in the right proportions, ``"pad"`` adds black borders. Hand
            `finetune_keras.predict` the same.
        interpolation: a name of Keras'.
        channels: 3 for RGB, 1 for grey.
        draft: decode a JPEG of at least twice the size that is wanted at a half, a quarter or an
            eighth, which takes a fraction of the time; ``False`` decodes all pixels, as Keras does.
        strict: whether a file that cannot be read is an error; all are read once to find out.

    Returns:
        A ``tf.data.Dataset`` with the attributes of `dataset`, or a dict of these by split.

    Raises:
        ValueError: if there is no such folder, split or class, a class has no image or no image
            can be read, or ``strict`` and one cannot.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (folder / name).mkdir()
        ...     for i in range(4):
        ...         Image.new("RGB", (40, 30)).save(folder / name / f"{i}.png")
        >>> train, val = images(folder, size=32, batch_size=3).split(0.25)
        >>> train.class_names, train.counts.tolist(), val.counts.tolist()
        (['cat', 'dog'], [3, 3], [1, 1])
        >>> x, y = next(iter(train))
        >>> x.shape, x.dtype, y.dtype
        (TensorShape([3, 32, 32, 3]), tf.float32, tf.int32)
    """
    settings = {
        "size": pixels.checked(size, resize, interpolation, channels),
        "resize": resize,
        "interpolation": interpolation,
        "channels": channels,
        "draft": draft,
    }
    base = folders.root(folder)
    parts = folders.splits(base)
    if split is not None and split not in parts:
        found = nearest(split, parts) if parts else "there are none: use .split(0.2)"
        raise ValueError(f"{str(base)!r} has no split {split!r}; {found}")
    class_names = named(class_names)
    names = folders.chosen(
        folders.classes(parts.get("train", base)), class_names, str(parts.get("train", base))
    )
    made = {}
    for part, path in ({split: parts[split]} if split else parts or {"": base}).items():
        paths, labels = _indexed(path, names, every=part in ("", "train"), all_=not class_names)
        made[part] = from_files(
            paths,
            labels,
            names,
            settings,
            batch_size=batch_size,
            shuffle=part in ("", "train") if shuffle is None else shuffle,
            seed=seed,
            strict=strict,
        )
    return made if parts and split is None else made[split or ""]


def from_files(
    paths: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    settings: dict[str, Any],
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    strict: bool,
) -> Any:
    """The data set of files of images with labels; see `images`.

    Args:
        paths: of the files.
        labels: one a file.
        class_names: by label.
        settings: of `pixels.loader`.
        batch_size: images in a batch.
        shuffle: whether each epoch has an order of its own.
        seed: of the order.
        strict: whether a file that cannot be read is an error.
    """
    found = formats.headers(paths)
    broken = [i for i, head in enumerate(found) if head.problem]
    if broken and (strict or len(broken) == len(paths)):
        first = f"{paths[broken[0]]!r} cannot be read: {found[broken[0]].problem}"
        if strict:
            raise ValueError(f"{first}; strict=True stops at the first")
        raise ValueError(f"none of {len(paths)} images can be read, the first: {first}")
    if broken:
        warnings.warn(
            f"{len(broken)} of {len(paths)} images cannot be read and are left out, the first "
            f"because {found[broken[0]].problem}: {shown([paths[i] for i in broken])}",
            stacklevel=3,
        )
    _one_can_be_decoded(paths, found)
    sound = [i for i, head in enumerate(found) if not head.problem]
    kept, heads = [paths[i] for i in sound], [found[i] for i in sound]
    labels = labels[sound]

    def fingerprint() -> str:
        about = repr((sorted(settings.items()), list(class_names), labels.dtype.str))
        digest = hashlib.blake2b(about.encode("utf-8", "surrogateescape"), digest_size=16)
        digest.update(formats.fingerprint(kept).encode() + labels.tobytes())
        return digest.hexdigest()

    examples = Examples(
        load=pixels.loader(kept, heads, **settings),
        labels=labels,
        class_names=tuple(class_names),
        names=kept,
        fallible=True,
        fingerprint=fingerprint,
        what="images",
        skipped=[paths[i] for i in broken],
    )
    return dataset(Plan(examples, batch_size=batch_size, shuffle=shuffle, seed=seed, strict=strict))


def _one_can_be_decoded(paths: Sequence[str], found: Sequence[formats.Header]) -> None:
    """A data set without a single example would be an odd error of Keras' much later."""
    why = ""
    for path, head in zip(paths, found, strict=True):
        if head.problem:
            continue
        again = formats.unreadable(path, Path(path).read_bytes(), head)
        if not again:
            return
        why = why or f"{path!r} cannot be read: {again}"
    raise ValueError(f"none of {len(paths)} images can be read, the first: {why}")


def _indexed(
    folder: Path, names: list[str], *, every: bool, all_: bool
) -> tuple[list[str], np.ndarray]:
    """Paths and labels below the folders of classes.

    Args:
        folder: that holds them.
        names: of the classes.
        every: whether each class needs an image.
        all_: whether another class is an error.
    """
    here = folders.classes(folder)
    others = [name for name in here if name not in names]
    if others and all_:
        raise ValueError(
            f"{str(folder)!r} has a class {others[0]!r} that the training data have not: "
            f"{nearest(others[0], names)}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        inside = folders.files(here[name], formats.ENDINGS) if name in here else []
        if not inside and every:
            raise ValueError(
                f"the folder of the class {name!r} in {str(folder)!r} has no image "
                f"({', '.join(formats.ENDINGS)}): remove it, or give class_names= without it"
            )
        paths += inside
        labels += [label] * len(inside)
    if not paths:
        loose = [p for p in folder.iterdir() if p.suffix.lower() in formats.ENDINGS]
        hint = ", and images that are in no class" if loose else ""
        raise ValueError(
            f"{str(folder)!r} has no folder of a class with images{hint}: "
            "expected class/file.jpg, or train/class/file.jpg"
        )
    if len(names) == 1:
        warnings.warn(
            f"there is only one class, {names[0]!r}: expected class/file.jpg", stacklevel=3
        )
    return paths, np.array(labels, "int32")
