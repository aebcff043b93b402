"""Inputs: are they numbers, images, and of the scale that the network was trained on?"""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

from finetune_keras import graph, outputs, parts
from finetune_keras.check import flow
from finetune_keras.check.findings import Finding
from finetune_keras.check.sample import Sample

__all__ = ["constant", "finite", "scaled_twice", "unlike_pretraining"]

# Images from 0 to 255 of which none goes over 5 are all but black; 0..1, -1..1 and images
# standardised by the mean and deviation of ImageNet stay within 2.7.
_SCALED = 5.0
# A batch normalisation has its inputs' variance in its statistics. Pixels that are divided by 58
# (deviations of ImageNet), 127.5 or 255 once too often or too little change it by over 3000; a
# change of contrast by 5 makes 25, and momentum 0.99 after its first step on unscaled inputs 100.
_UNLIKE = 1000.0
_ENOUGH = 16  # images have the pixels of a scale
_BLANK = 0.1  # a few blank photographs happen


def finite(sample: Sample) -> Iterator[Finding]:
    """NaN or infinity in the inputs."""
    for name, x in _named(sample.inputs):
        if not np.issubdtype(x.dtype, np.floating):
            continue
        bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if bad.any():
            yield Finding(
                "nan",
                f"{name} have NaN or infinity in {bad.sum()} of {len(x)} examples (the first is "
                f"number {int(np.argmax(bad))} of those read), and one makes all weights NaN",
                "drop these examples, or replace the values by numpy.nan_to_num",
            )


def constant(model: keras.Model, sample: Sample) -> Iterator[Finding]:
    """Images of one colour, as a failed reader gives them."""
    for name, x in _images(model, sample):
        if len(x) < 2:
            continue
        flat = x.reshape(len(x), -1)
        blank = int((flat.min(axis=1) == flat.max(axis=1)).sum())
        if blank >= 2 and blank > _BLANK * len(x):
            yield Finding(
                "constant",
                f"{blank} of {len(x)} {name} have the same value everywhere",
                "look at them: a reader or an earlier scaling step may have failed",
            )


def scaled_twice(model: keras.Model, sample: Sample) -> Iterator[Finding]:
    """Pixels scaled by hand before a model that scales them itself.

    Scaled pixels that a scaling for 0 to 255 takes once more come out almost equal: of what
    enters the first layer with weights next to nothing differs from pixel to pixel.
    """
    seen = _first(model, sample, lambda op: bool(op.weights) and not _scales(op))
    if seen is None:
        return
    before, after, scaling = seen
    low, high = float(before.min()), float(before.max())
    # Preprocessing for 0..255 leaves a deviation of at most 5 / 58 there if it divides, and a
    # mean of a hundred deviations if it subtracts, as for the weights from Caffe.
    axes = _but_channels()
    spread = float(after.std(axis=axes).mean())
    usual = float(before.std(axis=_but_channels()).mean())
    lost = spread < 0.1 * usual or float(np.abs(after.mean(axis=axes)).mean()) > 50 * spread
    if scaling and max(abs(low), abs(high)) <= _SCALED and spread > 0 and lost:
        yield Finding(
            "pixels",
            f"the inputs run from {low:.3g} to {high:.3g}, and the model scales pixels from 0 to "
            f"255 itself ({scaling}): they are preprocessed twice, and all images look alike to it",
            "hand in pixels from 0 to 255, without preprocess_input or division by 255",
        )


def unlike_pretraining(model: keras.Model, sample: Sample) -> Iterator[Finding]:
    """Inputs of quite another scale than the first batch normalisation has statistics of."""
    norm = keras.layers.BatchNormalization
    seen = _first(model, sample, lambda op: isinstance(op, norm), find=True)
    if seen is None:
        return
    before, op, entering = seen
    if not _trained(op):
        return
    axes = tuple(i for i in range(entering.ndim) if i != op.axis % entering.ndim)
    used_to = keras.ops.convert_to_numpy(op.moving_variance).astype("float64")
    now = entering.astype("float64").var(axis=axes)
    ratio = float(np.median(now / np.maximum(used_to, 1e-12)))
    if not np.isfinite(ratio) or ratio == 0 or 1 / _UNLIKE < ratio < _UNLIKE:
        return
    times = np.sqrt(max(ratio, 1 / ratio))
    size = "larger" if ratio > 1 else "smaller"
    yield Finding(
        "pixels",
        f"the inputs run from {before.min():.3g} to {before.max():.3g} and make the first batch "
        f"normalisation {op.name!r} see values about {times:.0f} times {size} than it was "
        "trained on",
        "scale the inputs as in pretraining: finetune_keras.backbone(..., preprocessing='auto') "
        "does, or that network's preprocess_input"
        if ratio > 1
        else "hand in pixels from 0 to 255, as in pretraining: they seem to be scaled already",
    )


def _named(inputs) -> list[tuple[str, np.ndarray]]:
    return [
        (f"inputs {name!r}" if name else "inputs", x)
        for name, x in outputs.pairs(inputs)
        if isinstance(x, np.ndarray) and x.dtype.kind in "fiub"
    ]


def _channels(shape: tuple) -> int | None:
    if len(shape) != 4:
        return None
    return shape[1 if keras.config.image_data_format() == "channels_first" else -1]


def _but_channels() -> tuple[int, ...]:
    return (0, 2, 3) if keras.config.image_data_format() == "channels_first" else (0, 1, 2)


def _images(model: keras.Model, sample: Sample) -> list[tuple[str, np.ndarray]]:
    return [
        (name.replace("inputs", "images", 1), x)
        for name, x in _named(sample.inputs)
        if _channels(x.shape) in (1, 3, 4)
    ]


def _trained(norm: keras.layers.BatchNormalization) -> bool:
    mean = keras.ops.convert_to_numpy(norm.moving_mean)
    return bool(np.any(mean != 0)) and bool(np.all(np.isfinite(mean)))


def _scales(op: keras.Operation) -> bool:
    scales = keras.layers.Rescaling | keras.layers.Normalization
    return isinstance(op, scales) or op.name.startswith(parts.PREPROCESSING)


def _first(model: keras.Model, sample: Sample, wanted, *, find: bool = False):
    """The images of a batch, and what they are when they reach the first ``wanted`` layer.

    Returns:
        ``(images, values, names of the scaling layers before)``, with ``find`` ``(images, layer,
        values)``; ``None`` if there is not one image input, or no such layer.
    """
    if not graph.is_functional(model) or len(model.inputs) != 1:
        return None
    images = [x[:_ENOUGH] for x in keras.tree.flatten(sample.x)]
    if len(images) != 1 or _channels(images[0].shape) not in (1, 3, 4):
        return None
    if images[0].dtype.kind not in "fiub" or not np.all(np.isfinite(images[0])):
        return None
    names: list[str] = []
    hit: list = []

    def see(op, reads):
        if _scales(op):
            names.append(op.name)
        elif wanted(op) if isinstance(op, keras.layers.Layer) else False:
            hit.extend([op, reads])
            return True
        return False

    try:
        flow.watch(model, images, see)
    except Exception:  # a graph that only runs as a whole tells nothing
        return None
    if not hit or len(hit[1]) != 1 or len(hit[1][0].shape) != 4:
        return None
    op, values = hit[0], keras.ops.convert_to_numpy(hit[1][0]).astype("float32")
    before = images[0].astype("float32")
    return (before, op, values) if find else (before, values, ", ".join(names))
