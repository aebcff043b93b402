"""Stems for small images: the first convolution at full resolution, and no pooling after it.

Networks made for 224 x 224 halve the image in their first convolution, and many once more in a
max-pooling. Of an image of 32 x 32 nothing would be left to look at. The stem that is usual for
CIFAR is a 3 x 3 convolution of stride 1 without pooling (He et al. 2016,
https://arxiv.org/abs/1512.03385, section 4.2).
"""

from __future__ import annotations

import dataclasses

import keras

from finetune_keras import blocks, graph
from finetune_keras._errors import nearest
from finetune_keras.backbones.base import Backbone
from finetune_keras.backbones.loaded import Edits

__all__ = ["image_input", "small_stem"]

_KERNEL = (3, 3)


def small_stem(made: Backbone, stem: str | None) -> Backbone:
    """The backbone with a stem for small images, the rest shared with the one given.

    The stem is read off the graph: on the one path that leads from the image to the first
    branch, the first convolution, and the first max-pooling that follows it before anything else
    that has a stride. The convolution becomes 3 x 3 with stride 1 and ``"same"`` padding; the
    pooling goes, and so do paddings before the two.

    Args:
        made: with a network that takes one image.
        stem: ``"small"``, or ``None`` to leave it as it is.

    Returns:
        A backbone whose output stride is 4 times smaller where there was a pooling (ResNet,
        DenseNet) or a convolution of stride 4 (ConvNeXt), else 2 times. A kernel that was 3 x 3
        is kept (EfficientNet, MobileNet); others start at random (He normal) and
        learn, whatever the old one's flag was.

    Raises:
        ValueError: for another word, or a network that has no strided convolution at its input.
    """
    if stem is None:
        return made
    if stem != "small":
        raise ValueError(f"unknown stem={stem!r}; {nearest(str(stem), ['small'])}")
    image_input(made.network, "stem='small'")
    conv, gone = _stem(made.network)
    old = conv.op
    config = {**old.get_config(), "kernel_size": _KERNEL, "strides": (1, 1), "padding": "same"}
    same = tuple(old.kernel_size) == _KERNEL
    if not same:
        config |= {"kernel_initializer": "he_normal", "trainable": True}
    new = type(old).from_config(config)
    changes = {tuple(c.path.split("/")): None for c in gone}
    network = graph.rebuild(made.network, {tuple(conv.path.split("/")): new, **changes})
    for mine, theirs in zip(new.weights, old.weights, strict=True):
        if tuple(mine.shape) == tuple(theirs.shape):
            mine.assign(keras.ops.convert_to_numpy(theirs))
    kernel = tuple(u.path for u in conv.units if u.variable is old.weights[0])
    edits = Edits() if same or not made.pretrained else Edits(random=kernel, skipped=kernel)
    return dataclasses.replace(
        made,
        network=network,
        edits=made.edits.then(edits),
        source=f"{made.source}, stem='small'",
    )


def image_input(network: keras.Model, what: str) -> None:
    """Makes sure that the network takes one image.

    Raises:
        ValueError: if it takes text, several inputs, or has no graph to work on.
    """
    if graph.is_functional(network):
        shapes = [tuple(t.shape) for t in network.inputs]
        if len(shapes) == 1 and len(shapes[0]) == 4:
            return
        given = f"takes {' and '.join(map(str, shapes))}"
    else:
        given = "is a subclassed model without a graph"
    raise ValueError(
        f"{what} is for a network that takes one batch of images (4 axes); {network.name!r} {given}"
    )


def _stem(network: keras.Model) -> tuple[graph.Call, list[graph.Call]]:
    """The convolution to replace, and the calls to take out."""
    conv, gone, pads = None, [], []
    for call in _line(graph.opened(network)):
        op = call.op
        if _pads(op):
            pads.append(call)
            continue
        if isinstance(op, keras.layers.Conv2D):
            if conv is not None and max(op.strides) > 1:
                break
            if conv is None:
                conv, gone = call, list(pads)
        elif isinstance(op, keras.layers.MaxPooling2D):
            if conv is not None:
                gone += [*pads, call]
            break
        elif call.units and not blocks.is_norm(op):
            break
        pads = []
    if conv is None or max(conv.op.strides) == 1:
        why = "no convolution reads the image" if conv is None else f"{conv.path!r} has stride 1"
        raise ValueError(
            f"stem='small' makes the strided convolution at the input one of stride 1, and "
            f"{network.name!r} has none ({why}): leave stem= out"
        )
    return conv, gone


def _line(seen: graph.Opened):
    """The calls from the input to the first branch."""
    readers: dict[int, list[graph.Call]] = {}
    for call in seen.calls:
        for t in set(call.inputs):
            readers.setdefault(t, []).append(call)
    tensor = seen.inputs[0]
    while len(readers.get(tensor, ())) == 1:
        call = readers[tensor][0]
        if len(set(call.inputs)) != 1 or len(call.outputs) != 1:
            return
        yield call
        tensor = call.outputs[0]


def _pads(op: keras.Operation) -> bool:
    # KerasHub pads with minus infinity through keras.ops.pad, whose operation is named so.
    return isinstance(op, keras.layers.ZeroPadding2D) or type(op).__name__ == "Pad"
