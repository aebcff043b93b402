"""Poolings: from maps and sequences to one vector an example.

Those without a mask are Keras' own layers. The others are made of ``keras.ops`` in a small nested
model, so that Keras alone loads a file with them.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops

from finetune_keras._errors import HeadError, nearest
from finetune_keras.heads import base

__all__ = ["POOLINGS", "check_pooling", "pool"]

POOLINGS = ("avg", "max", "avgmax", "gem", "first", "mean", "attention")

_AVG = ("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D")
_MAX = ("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D")
_LAYERS = {"avg": _AVG, "mean": _AVG, "max": _MAX}
_P = 3.0
_TINY = 1e-6


def check_pooling(pooling: str | None) -> None:
    """Raises `HeadError` for a pooling that there is not."""
    if pooling is not None and (not isinstance(pooling, str) or pooling not in POOLINGS):
        raise HeadError(f"unknown pooling={pooling!r}; {nearest(str(pooling), POOLINGS)}")


def pool(
    features: keras.KerasTensor,
    pooling: str | None,
    *,
    mask: keras.KerasTensor | None = None,
    prefix: str = "",
) -> keras.KerasTensor:
    """One vector an example: maps and sequences are pooled, vectors are left as they are.

    | pooling       | of                 | gives                                                  |
    |---------------|--------------------|--------------------------------------------------------|
    | `"avg"`       | maps and sequences | the mean                                               |
    | `"max"`       | maps and sequences | the maximum                                            |
    | `"avgmax"`    | maps and sequences | half the sum of both (timm's `avgmax`)                 |
    | `"gem"`       | maps and sequences | the generalised mean, cube root of the mean of cubes   |
    | `"attention"` | maps and sequences | a mean weighted by a learned softmax over positions    |
    | `"first"`     | sequences          | the first step, such as BERT's `[CLS]`                 |
    | `"mean"`      | sequences          | the mean, another word for `"avg"`                     |
    | `None`        | maps and sequences | one long vector, which needs a fixed size              |

    GeM is that of Radenovic, Tolias and Chum 2018 (arXiv:1711.02512) with `p = 3` fixed: values
    below 1e-6 count as 1e-6, so it is for features that are positive (after a ReLU). It is
    computed in float32, since cubes overflow float16.

    Args:
        features: shape ``(batch, channels)``, ``(batch, steps, channels)``,
            ``(batch, height, width, channels)`` or with one more dimension.
        pooling: as above.
        mask: of sequences, shape ``(batch, steps)``, boolean or integer, true where there is a
            token. What is masked counts for nothing; all masked gives zeros. ``"first"`` and
            ``None`` ignore it.
        prefix: of the names of the layers.

    Returns:
        A tensor of shape ``(batch, channels)``, or ``(batch, height * width * channels)``, in the
        precision of the features.

    Raises:
        HeadError: if the pooling does not fit the shape.

    Examples:
        >>> pool(keras.Input((7, 7, 16)), "gem").shape
        (None, 16)
        >>> tokens, mask = keras.Input((None, 8)), keras.Input((None,), dtype="int32")
        >>> pool(tokens, "attention", mask=mask).shape
        (None, 8)
    """
    rank = len(features.shape)
    if rank == 2:
        return features
    if pooling is None:
        return _flat(features, prefix)
    if rank > 5:
        raise HeadError(
            f"pooling={pooling!r} takes features of at most 5 dimensions; given {features.shape}"
        )
    if rank != 3:
        if pooling in ("first", "mean"):
            raise HeadError(
                f"pooling={pooling!r} takes sequences, shape (batch, steps, channels); given maps "
                f"of shape {features.shape}: use pooling='avg'"
            )
        mask = None
    _check_mask(features, mask)
    if mask is None and pooling in _LAYERS:
        kind = getattr(keras.layers, _LAYERS[pooling][rank - 3])
        return kind(name=base.name(f"{prefix}pool"), dtype=base.policy(features))(features)
    if pooling == "first":
        return _nested(features, None, prefix, lambda x, _: x[:, 0])
    return _nested(features, mask, prefix, _RULES[pooling])


def _flat(features: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
    if any(n is None for n in features.shape[1:]):
        raise HeadError(
            f"pooling=None flattens, which needs a fixed size; the features have shape "
            f"{features.shape}: give the backbone an input_shape, or use pooling='avg'"
        )
    name = base.name(f"{prefix}flatten")
    return keras.layers.Flatten(name=name, dtype=base.policy(features))(features)


def _check_mask(features: keras.KerasTensor, mask: keras.KerasTensor | None) -> None:
    if mask is None:
        return
    steps = {features.shape[1], mask.shape[1] if len(mask.shape) == 2 else -1} - {None}
    if len(mask.shape) != 2 or len(steps) > 1:
        raise HeadError(
            f"the mask of features of shape {features.shape} has shape (batch, steps); "
            f"given {mask.shape}"
        )


def _nested(
    features: keras.KerasTensor,
    mask: keras.KerasTensor | None,
    prefix: str,
    rule: Callable,
) -> keras.KerasTensor:
    """A rule on ``(batch, positions, channels)`` and ``(batch, positions, 1)``, as one layer.

    Only layers bear the head's name, and operations cannot; in a model of their own they do.
    """
    given = [features] if mask is None else [features, mask]
    inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in given]
    x = inputs[0]
    if len(x.shape) > 3 and keras.config.image_data_format() == "channels_first":
        x = ops.moveaxis(x, 1, -1)
    if x.shape[-1] is None:
        raise HeadError(
            f"the features have no fixed width, shape {features.shape}: "
            "give the backbone an input_shape"
        )
    if len(x.shape) > 3:
        x = keras.layers.Reshape((-1, x.shape[-1]), dtype=features.dtype, name="positions")(x)
    kept = None if mask is None else ops.expand_dims(ops.cast(inputs[1], "bool"), -1)
    x = ops.cast(rule(x, kept), features.dtype)
    made = keras.Model(inputs, x, name=base.name(f"{prefix}pool"))
    return made(given if len(given) > 1 else given[0])


def _mean(x, kept):
    x = ops.cast(x, "float32")
    if kept is None:
        return ops.mean(x, axis=1)
    # ``where`` and not a product: what stands in padding may be infinite or NaN.
    total = ops.sum(ops.where(kept, x, 0.0), axis=1)
    return total / ops.maximum(ops.sum(ops.cast(kept, "float32"), axis=1), 1.0)


def _max(x, kept):
    if kept is None:
        return ops.max(x, axis=1)
    most = ops.max(ops.where(kept, ops.cast(x, "float32"), -3e38), axis=1)
    return ops.where(ops.any(kept, axis=1), most, 0.0)


def _avgmax(x, kept):
    return 0.5 * (_mean(x, kept) + ops.cast(_max(x, kept), "float32"))


def _gem(x, kept):
    # The floor keeps the root's gradient finite, as in the paper's code.
    cubes = ops.power(ops.maximum(ops.cast(x, "float32"), _TINY), _P)
    mean = ops.maximum(_mean(cubes, kept), _TINY**_P)
    return ops.power(mean, 1.0 / _P)


def _attention(x, kept):
    x = ops.cast(x, "float32")
    if kept is not None:
        x = ops.where(kept, x, 0.0)
    scores = keras.layers.Dense(1, name="scores", dtype="float32")(x)
    if kept is not None:
        # Finite, so that a row of nothing but padding gives weights and not NaN.
        scores = ops.where(kept, scores, -1e9)
    return ops.sum(ops.softmax(scores, axis=1) * x, axis=1)


_RULES = {
    "avg": _mean,
    "mean": _mean,
    "max": _max,
    "avgmax": _avgmax,
    "gem": _gem,
    "attention": _attention,
}
