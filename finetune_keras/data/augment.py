"""Augmentation from Keras' own layers, inside the model or in the pipeline.

In the pipeline what Keras' layers for images draw is a function of the seed, the epoch and the
number of the batch, on every backend and after a restart. Those are the layers that have a
``get_random_transformation`` of their own. Layers that hold others (``RandAugment``, ``AugMix``,
``Pipeline``) or that are not for images (``GaussianNoise``, ``Dropout``), and layers in a model,
draw from a state of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras

from finetune_keras._errors import nearest, plain
from finetune_keras.data.dataset import Plan, dataset

__all__ = ["STRENGTHS", "augment", "augmented", "one_hot"]

STRENGTHS = ("light", "medium", "strong")
_FLIPS = ("horizontal", "vertical", "horizontal_and_vertical")


def augment(
    strength: str = "medium",
    *,
    flip: str | None = "horizontal",
    value_range: tuple[float, float] = (0, 255),
) -> list[keras.layers.Layer]:
    """Keras layers that vary photographs, for ``build(augment=)`` or `augmented`.

    | strength   | layers                                                                    |
    | ---------- | ------------------------------------------------------------------------- |
    | ``light``  | flip, shift by up to 5 %                                                  |
    | ``medium`` | flip, shift by 10 %, turn by 10°, zoom by 15 %, brightness, contrast      |
    | ``strong`` | the same, about twice as much, and a rectangle erased (Zhong et al. 2017, |
    |            | arXiv:1708.04896)                                                         |

    Args:
        strength: one of these names.
        flip: ``"horizontal"``, ``"vertical"``, ``"horizontal_and_vertical"`` (from above, or
            under a microscope), or ``None`` where left and right mean something, as in text.
        value_range: of the pixels.

    Returns:
        New layers, in float32.

    Raises:
        ValueError: for an unknown name.

    Examples:
        >>> [type(layer).__name__ for layer in augment("light")]
        ['RandomFlip', 'RandomTranslation']
    """
    if strength not in STRENGTHS:
        raise ValueError(f"there is no strength {strength!r}: {nearest(str(strength), STRENGTHS)}")
    if flip is not None and flip not in _FLIPS:
        raise ValueError(f"there is no flip={flip!r}: {nearest(str(flip), _FLIPS)}")
    pair = value_range if isinstance(value_range, tuple | list) else ()
    if len(pair) != 2 or not all(map(_number, pair)) or not pair[0] < pair[1]:
        raise ValueError(f"value_range is (low, high) of the pixels; given {value_range!r}")
    layers, float32 = keras.layers, {"dtype": "float32"}
    much = {"light": 0.5, "medium": 1.0, "strong": 2.0}[strength]
    made: list[keras.layers.Layer] = [layers.RandomFlip(flip, **float32)] if flip else []
    made.append(layers.RandomTranslation(0.1 * much, 0.1 * much, fill_mode="reflect", **float32))
    if strength == "light":
        return made
    made += [
        layers.RandomRotation(10 / 360 * much, **float32),
        layers.RandomZoom(0.15 * much, **float32),
        layers.RandomBrightness(0.1 * much, value_range=value_range, **float32),
        layers.RandomContrast(0.15 * much, value_range=value_range, **float32),
    ]
    if strength == "strong":
        made.append(
            layers.RandomErasing(0.5, scale=(0.02, 0.2), value_range=value_range, **float32)
        )
    return made


def augmented(
    ds: Any,
    layers: str | keras.layers.Layer | Sequence[keras.layers.Layer] = "medium",
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Any:
    """A data set whose images are varied in the pipeline.

    Split first: the second part of ``ds.split`` is never augmented. With ``mixup`` or ``cutmix``
    the labels become one-hot, as two classes have a share in an image: compile with
    ``loss="categorical_crossentropy", metrics=["accuracy"]``, and validate on ``one_hot(val)``.

    Args:
        ds: a data set of this module, of images (batch, height, width, channels).
        layers: a strength of `augment`, or Keras layers of your own; ``[]`` for none. The draws of
            ``RandAugment``, ``AugMix``, ``Pipeline``, ``GaussianNoise``, ``Dropout`` and your own
            layers do not follow from the seed and the epoch: another run has others.
        mixup: alpha of the Beta distribution, such as 0.2: images are blended in pairs (Zhang et
            al. 2018, arXiv:1710.09412). 0 for no mixing.
        cutmix: up to 1: a rectangle comes from another image (Yun et al. 2019, arXiv:1905.04899).
            With both, each batch is mixed one way or the other, by chance.

    Returns:
        A ``tf.data.Dataset`` with the attributes of ``ds``; ``y`` of shape (batch, classes) in
        float32 if images are mixed.

    Raises:
        ValueError: if ``ds`` has no images or is not of this module, or if images are mixed whose
            labels are no classes.

    Examples:
        >>> import numpy as np
        >>> from finetune_keras.data.memory import arrays
        >>> ds = arrays(np.zeros((4, 8, 8, 3)), ["a", "b", "a", "b"], batch_size=2)
        >>> augmented(ds, "light", mixup=0.2).element_spec[1].shape
        TensorShape([None, 2])
    """
    plan = _plan(ds)
    shape = getattr(ds.element_spec[0], "shape", "a dict")
    if len(shape) != 4:
        raise ValueError(
            f"augmentation is for images (batch, height, width, channels); given {shape}"
        )
    chosen = augment(layers) if isinstance(layers, str) else layers
    chosen = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
    for layer in chosen:
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(f"expected Keras layers or a strength; given {layer!r}")
        if isinstance(layer, keras.layers.MixUp | keras.layers.CutMix):
            raise ValueError(
                f"{layer.name!r} mixes images, and labels only with "
                f"{type(layer).__name__.lower()}={layer.get_config().get('alpha', 1.0)}"
            )
    mixers = _mixers(mixup, cutmix)
    transforms = [functools.partial(_vary, _drawing(layer)) for layer in chosen]
    if mixers:
        plan = _to_one_hot(ds)
        transforms.append(functools.partial(_mix, mixers))
    return dataset(dataclasses.replace(plan, transforms=(*plan.transforms, *transforms)))


def one_hot(ds: Any) -> Any:
    """The same data set with one-hot labels, to validate what was trained on mixed images.

    Args:
        ds: a data set of this module with classes.

    Returns:
        A ``tf.data.Dataset``; ``y`` is float32 of shape (batch, classes), in both parts of its
        ``split`` too.

    Raises:
        ValueError: if its labels are no classes.

    Examples:
        >>> import numpy as np
        >>> from finetune_keras.data.memory import arrays
        >>> ds = one_hot(arrays(np.zeros((2, 3)), ["a", "b"], shuffle=False))
        >>> next(iter(ds))[1].numpy().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return dataset(_to_one_hot(ds))


def _plan(ds: Any) -> Plan:
    plan = getattr(ds, "plan", None)
    if plan is None:
        raise ValueError(
            f"expected a data set of ftk.data, before any map() of yours; given a "
            f"{type(ds).__name__}"
        )
    return plan


def _to_one_hot(ds: Any) -> Plan:
    plan = _plan(ds)
    if not ds.num_classes:
        raise ValueError("images are mixed between classes, and the labels are no classes")
    return dataclasses.replace(plan, one_hot=True)


def _mixers(mixup: float, cutmix: float) -> list[keras.layers.Layer]:
    for name, value, most in (("mixup", mixup, float("inf")), ("cutmix", cutmix, 1)):
        if not _number(value) or not 0 <= value <= most:
            upper = " to 1" if most == 1 else " on"
            raise ValueError(f"{name} is a number from 0{upper}; given {plain(value)!r}")
    made = [keras.layers.MixUp(float(mixup), dtype="float32")] if mixup else []
    return made + ([keras.layers.CutMix(float(cutmix), dtype="float32")] if cutmix else [])


def _number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


class _Draws(keras.random.SeedGenerator):
    """Seeds that follow from a tensor, where Keras' own follow from a state."""

    def __init__(self, seed: Any):  # without a state: it lives in one trace
        self.seed, self.count = seed, 0

    def next(self, ordered: bool = True) -> Any:
        import tensorflow as tf

        self.count += 1
        return tf.random.experimental.stateless_fold_in(self.seed, self.count)


def _drawing(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A copy of a layer, which is called on ``seed`` besides."""
    return layer.__class__.from_config(layer.get_config())


def _called(layer: keras.layers.Layer, data: Any, seed: Any) -> Any:
    draw = getattr(layer, "get_random_transformation", None)
    if draw is None:
        return layer(data, training=True)
    # Keras' image layers ask themselves what to draw, and take the seed here.
    layer.get_random_transformation = functools.partial(draw, seed=_Draws(seed))
    try:
        return layer(data, training=True)
    finally:
        layer.get_random_transformation = draw


def _vary(layer: keras.layers.Layer, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
    import tensorflow as tf

    varied = _called(layer, x, seed)
    return tf.ensure_shape(tf.cast(varied, x.dtype), x.shape), y


def _mix(layers: list[keras.layers.Layer], x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
    import tensorflow as tf

    def one(layer: keras.layers.Layer) -> tuple[Any, Any]:
        mixed = _called(layer, {"images": x, "labels": y}, seed)
        image, label = tf.cast(mixed["images"], x.dtype), tf.cast(mixed["labels"], y.dtype)
        return tf.ensure_shape(image, x.shape), tf.ensure_shape(label, y.shape)

    if len(layers) == 1:
        return one(layers[0])
    first = tf.random.stateless_uniform([], seed) < 0.5
    return tf.cond(first, lambda: one(layers[0]), lambda: one(layers[1]))
