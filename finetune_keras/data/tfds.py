"""TensorFlow Datasets, by name or builder, as a data set."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune_keras._errors import nearest, sentence
from finetune_keras.data import pixels
from finetune_keras.data.dataset import Examples, Plan, dataset
from finetune_keras.data.labels import encode, named
from finetune_keras.data.memory import arrays
from finetune_keras.data.text import from_texts

__all__ = ["tfds"]


def tfds(
    source: Any,
    split: str | None = None,
    *,
    keys: tuple[str, str] | None = None,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    size: int | tuple[int, int] = (224, 224),
    resize: str = "squash",
    interpolation: str = "bilinear",
    channels: int = 3,
    preprocessor: Callable | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 32,
    shuffle: bool | None = None,
    seed: int = 0,
) -> Any:
    """A data set of TensorFlow Datasets as a ``tf.data.Dataset`` of ``(x, y)`` in batches.

    Images come as from `images`, text as from `text`, other features as from `arrays`. Examples
    are held in memory as they are stored, images compressed.

    Args:
        source: a name, such as ``"beans"``, or a builder: one of your own, or
            ``tfds.folder_dataset.ImageFolder(folder)``.
        split: such as ``"train"`` or ``"train[:80%]"``; by default all, as a dict.
        keys: the features that are ``x`` and ``y``; by default the supervised keys of the builder.
        data_dir: where prepared data sets are, if not in ``~/tensorflow_datasets``.
        download: whether to download and prepare what is not there.
        size: height and width of images.
        resize: ``"crop"``, ``"squash"`` or ``"pad"``.
        interpolation: a name of Keras'.
        channels: 3 for RGB, 1 for grey.
        preprocessor: for text; see `text`.
        class_names: the classes in the order of their numbers; any other label is then an error.
            By default those of the builder, or else what all of its splits hold together, so that
            a class has one number in all.
        batch_size: examples in a batch.
        shuffle: whether each epoch has an order of its own; by default splits with ``train`` in
            their name do.
        seed: of the order.

    Returns:
        A ``tf.data.Dataset`` with the attributes of `dataset`, or a dict of these by split.

    Raises:
        ValueError: if there is no such data set, split or key, it is not prepared, or an example
            has no label.

    Examples:
        >>> tfds("beens", data_dir="nowhere")
        Traceback (most recent call last):
        ValueError: there is no folder data_dir='nowhere'
    """
    builder = _builder(source, data_dir, download)
    features = builder.info.features
    keys = _keys(builder, keys)
    settings = {
        "size": pixels.checked(size, resize, interpolation, channels),
        "resize": resize,
        "interpolation": interpolation,
        "channels": channels,
    }
    made: dict[str, Any] = {}
    names = _names(builder, keys[1], named(class_names))
    for name in [split] if split is not None else list(builder.info.splits):
        x, y = _rows(builder, name, keys)
        labels = _labels(features[keys[1]], y, keys[1], name, names)
        how = {
            "batch_size": batch_size,
            "shuffle": "train" in name.split("[")[0] if shuffle is None else shuffle,
            "seed": seed,
        }
        kind = type(features[keys[0]]).__name__
        if kind == "Image":
            made[name] = _images(features[keys[0]], x, labels, names, settings, how)
        elif kind == "Text":
            made[name] = from_texts(x, labels, names, preprocessor=preprocessor, **how)
        else:
            plan = arrays(np.stack(x), np.zeros(len(x)), **how).plan
            known = dataclasses.replace(plan.examples, labels=labels, class_names=tuple(names))
            made[name] = dataset(dataclasses.replace(plan, examples=known))
    return made if split is None else made[split]


def _builder(source: Any, data_dir: Any, download: bool) -> Any:
    import tensorflow_datasets as module

    if data_dir is not None and not os.path.isdir(os.path.expanduser(data_dir)) and not download:
        raise ValueError(f"there is no folder data_dir={str(data_dir)!r}")
    if not isinstance(source, str):
        if not isinstance(source, module.core.DatasetBuilder):
            raise TypeError(
                "expected the name of a data set or a builder of tensorflow_datasets; given a "
                f"{type(source).__name__}"
            )
        builder = source
    else:
        try:
            builder = module.builder(
                source, **({} if data_dir is None else {"data_dir": os.path.expanduser(data_dir)})
            )
        except module.core.DatasetNotFoundError:
            known = module.list_builders(with_community_datasets=False)
            raise ValueError(f"there is no data set {source!r}: {nearest(source, known)}") from None
        except Exception as e:  # of many kinds: a version, a config, a file
            raise ValueError(f"the data set {source!r}: {sentence(e)}") from e
    if download and not builder.info.splits:
        try:
            builder.download_and_prepare()
        except Exception as e:
            raise ValueError(f"{builder.info.name!r} cannot be downloaded: {sentence(e)}") from e
    if not builder.info.splits:
        raise ValueError(
            f"{builder.info.full_name!r} is not prepared in {str(builder.info.data_dir)!r}: give "
            "data_dir= where it is, or download=True"
        )
    return builder


def _keys(builder: Any, keys: Sequence[str] | None) -> tuple[str, str]:
    features = builder.info.features
    known = list(features) if hasattr(features, "keys") else []
    if keys is None:
        keys = builder.info.supervised_keys
        if not isinstance(keys, tuple) or not all(isinstance(k, str) for k in keys):
            raise ValueError(
                f"{builder.info.name!r} does not say which features are x and y: give "
                f"keys=(x, y); {nearest('', known)}"
            )
    if isinstance(keys, str) or len(keys) != 2:
        raise ValueError(f"keys are two names of features, (x, y); given {keys!r}")
    for key in keys:
        if key not in known:
            raise ValueError(f"{builder.info.name!r} has no feature {key!r}: {nearest(key, known)}")
    return tuple(keys)


def _rows(builder: Any, split: str, keys: tuple[str, str]) -> tuple[list, list]:
    """All examples of a split, in their order, images not decoded."""
    import tensorflow_datasets as module

    image = type(builder.info.features[keys[0]]).__name__ == "Image"
    decoders = {keys[0]: module.decode.SkipDecoding()} if image else None
    try:
        ds = builder.as_dataset(split=split, shuffle_files=False, decoders=decoders)
        found = [(row[keys[0]], row[keys[1]]) for row in ds.as_numpy_iterator()]
    except Exception as e:
        known = list(builder.info.splits)
        if split.split("[")[0] not in known:
            raise ValueError(
                f"{builder.info.name!r} has no split {split!r}: {nearest(split, known)}"
            ) from None
        raise ValueError(f"the split {split!r} of {builder.info.name!r}: {sentence(e)}") from e
    if not found:
        raise ValueError(f"the split {split!r} of {builder.info.name!r} is empty")
    return [x for x, _ in found], [y for _, y in found]


def _names(builder: Any, key: str, class_names: Sequence[str] | None) -> list[str]:
    """The names of the classes in all splits; empty if labels are no classes."""
    feature = builder.info.features[key]
    if class_names is not None:
        return class_names
    if type(feature).__name__ == "ClassLabel":
        return list(feature.names or map(str, range(feature.num_classes)))
    if feature.shape or np.dtype(feature.np_dtype).kind == "f":
        return []
    import tensorflow_datasets as module

    only = {"decoders": module.decode.PartialDecoding({key: feature}), "shuffle_files": False}
    every = [
        _plain(row[key])
        for split in builder.info.splits
        for row in builder.as_dataset(split=split, **only).as_numpy_iterator()
    ]
    return _classes(every, None)[1]


def _labels(feature: Any, y: list, key: str, split: str, names: list[str]) -> np.ndarray:
    """The labels of a split; classes by their place in ``names``."""
    if type(feature).__name__ != "ClassLabel":
        return _classes([_plain(v) for v in y], names)[0]
    labels = np.array(y, "int32")
    if (labels < 0).any():
        raise ValueError(
            f"{int((labels < 0).sum())} of {len(labels)} examples of {split!r} have no {key!r}"
        )
    own = list(feature.names or map(str, range(feature.num_classes)))
    if own == names:
        return labels
    return encode([own[i] for i in labels], names, where=f"example {{}} of {split!r}".format)[0]


def _classes(values: list, names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Through `arrays` text becomes classes, and whole numbers stay what they are."""
    how = {"labels": "numbers"} if names == [] else {"class_names": names}
    examples = arrays(np.zeros((len(values), 1), "float32"), np.array(values), **how).plan.examples
    return examples.labels, list(examples.class_names)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _images(feature: Any, x: list, labels: np.ndarray, names: list, settings, how) -> Any:
    import tensorflow as tf

    channels = settings["channels"]
    with tf.device("CPU:0"):
        stored = tf.constant(x, tf.string)

    def load(i: Any) -> Any:
        image = feature.decode_example(tf.gather(stored, i))
        if image.dtype == tf.uint16:
            image = tf.cast(image, tf.float32) / 257.0
        have = image.shape[-1]
        if have == 4:  # what is transparent is not seen
            image, have = image[..., :3], 3
        if have == 1 and channels == 3:
            image = tf.image.grayscale_to_rgb(image)
        elif have == 3 and channels == 1:
            image = tf.image.rgb_to_grayscale(image)
        return pixels.fit(image, **settings)

    examples = Examples(load, labels, tuple(names), fallible=True, what="images")
    return dataset(Plan(examples, **how))
