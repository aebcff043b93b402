"""Networks to hold contracts against: of Keras, of KerasHub, of users' own, all at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import zoo
from conftest import classifier, residual, value
from sources import SOURCES

from finetune_keras import Backbone, backbone
from finetune_keras.backbones import applications

__all__ = ["NETWORKS", "Network"]

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class Network:
    """One row of the table.

    Attributes:
        name: as the user writes it.
        kind: where it is from.
        make: gives the backbone, and what its features are to be, by a function of raw inputs.
        marks: ``"slow"`` for those that a family's representative stands for, ``"big"`` for
            representatives of which only the cheap contracts are held by default.
        top: the largest value of its inputs.
        towers: how many chains of blocks run side by side.
        half: how far features in mixed bfloat16 may be from those in float32, relative to their
            norm. bfloat16 has 8 bits, 0.4 %; many layers at random make several times that of it,
            and of narrow separable convolutions, normalised by a batch, a quarter (measured).
        needs: packages without which it cannot be made.
        opaque: whether it is a SavedModel: one layer whose maps nobody sees, and foreign code, so
            that its file is loaded with consent only.
    """

    name: str
    kind: str
    make: Callable[[], tuple[Backbone, Callable[[Any], np.ndarray]]]
    mark: str = ""
    top: float = 1.0
    towers: int = 1
    half: float = 0.05
    needs: tuple[str, ...] = ()
    opaque: bool = False


# The smallest image that each takes, and options that make it small.
FAMILIES: dict[str, tuple[int, dict]] = {
    "convnexttiny": (32, {}),
    "densenet121": (32, {}),
    "efficientnetb0": (32, {}),
    "efficientnetv2b0": (32, {}),
    "inceptionresnetv2": (75, {}),
    "inceptionv3": (75, {}),
    "mobilenet": (32, {"alpha": 0.25}),
    "mobilenetv2": (32, {"alpha": 0.35}),
    "mobilenetv3small": (32, {}),
    "nasnetmobile": (32, {}),
    "resnet50": (32, {}),
    "resnet50v2": (32, {}),
    "vgg16": (32, {}),
    "xception": (71, {}),
}
BIG = {
    "convnexttiny",
    "densenet121",
    "efficientnetb0",
    "efficientnetv2b0",
    "inceptionresnetv2",
    "inceptionv3",
    "mobilenetv2",
    "mobilenetv3small",
    "nasnetmobile",
    "resnet50v2",
    "xception",
}


def _named(name: str) -> Network:
    size, options = FAMILIES.get(name, (75 if "ception" in name else 32, {}))

    def make():
        base = backbone(name, weights=None, input_shape=(size, size, 3), **options)
        if "mobilenet" in name:
            _settle(base, size)
        own = applications._module(name).preprocess_input
        return base, lambda x: value(base.network(own(np.array(x)), training=False))

    mark = "slow" if name not in FAMILIES else "big" if name in BIG else ""
    half = 0.3 if "mobilenet" in name else 0.05
    return Network(name, "keras.applications", make, mark, top=255.0, half=half)


def _settle(base: Backbone, size: int) -> None:
    """Statistics of a batch for batch normalisations: at random and with the statistics they
    start with, the features of MobileNets are zero but for rounding, and nothing learns from them.
    """
    norms = [x for x in base.network.layers if isinstance(x, layers.BatchNormalization)]
    usual = [x.momentum for x in norms]
    for norm in norms:
        norm.momentum = 0.0
    images = np.random.default_rng(1).uniform(0, 255, (8, size, size, 3)).astype("float32")
    base.model(images, training=True)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def _letters():
    base = backbone("letters_resnet", input_shape=(24, 24, 3))
    return base, lambda x: value(base.network(x / 127.5 - 1, training=False))


CUTS = {
    "BERT": "pooled_output",
    "ALBERT": "sequence_output",
    "ELECTRA": "sequence_output",
    "T5": "encoder_sequence_output",
    "Whisper": "encoder_sequence_output",
    "HGNetV2": "stage2",
}


def _hub(name: str) -> Network:
    cut = CUTS.get(name)

    def make():
        whole = zoo.KERAS_HUB[name]()

        def features(x):
            if cut is None:
                return value(whole(x, training=False))
            missing = [t for t in whole.inputs if not isinstance(x, dict) or t.name not in x]
            if isinstance(x, dict):  # what was cut off still wants its inputs here
                x = {**x, **{t.name: np.ones((2, 6), "int32") for t in missing}}
            elif len(whole.inputs) > 1:
                kept = base.model.inputs[0].name
                x = {t.name: x if t.name == kept else np.ones((2, 6), "int32") for t in missing}
            return value(whole(x, training=False)[cut])

        base = backbone(whole, cut_at=cut)
        return base, features

    mark = (
        "big"
        if name
        in (
            *("MobileNet", "MiT", "Swin", "T5", "HGNetV2", "DeiT", "DINOv3", "CSPNet", "ResNet-vd"),
            *("XLM-R", "DistilBERT", "ELECTRA", "Xception"),
        )
        else ""
    )
    return Network(name, "KerasHub", make, mark, top=49.0 if _reads_tokens(name) else 1.0)


def _reads_tokens(name: str) -> bool:
    tokens = ("BERT", "RoBERTa", "XLM-R", "DistilBERT", "ALBERT", "ELECTRA", "GPT-2", "T5")
    return name in (*tokens, "DeBERTa v3")


def sequential() -> keras.Model:
    """Convolutions in a row."""
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="gelu", name="one"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="gelu", name="two"),
            layers.Conv2D(8, 3, padding="same", activation="gelu", name="three"),
        ],
        name="row",
    )


def two_inputs() -> keras.Model:
    """A picture and numbers."""
    image, numbers = keras.Input((16, 16, 3), name="image"), keras.Input((5,), name="numbers")
    x = residual("eye")(image)
    x = layers.GlobalAveragePooling2D(name="seen")(x)
    y = layers.Dense(6, activation="tanh", name="first")(numbers)
    y = layers.Dense(6, activation="tanh", name="second")(y)
    joined = layers.Dense(7, activation="tanh", name="joined")(layers.Concatenate()([x, y]))
    return keras.Model([image, numbers], joined, name="both")


def shared() -> keras.Model:
    """One tower that looks at two pictures, and compares."""
    tower = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(6, 3, strides=2, activation="tanh", name="look"),
            layers.Conv2D(6, 3, strides=2, activation="tanh", name="closer"),
            layers.GlobalAveragePooling2D(name="pooled"),
        ],
        name="tower",
    )
    a, b = keras.Input((16, 16, 3), name="a"), keras.Input((16, 16, 3), name="b")
    return keras.Model([a, b], layers.Subtract(name="difference")([tower(a), tower(b)]))


def _own(source: Callable[[], keras.Model], upto: str | None = None):
    def make():
        model = source()
        bare = keras.Model(model.inputs, model.get_layer(upto).output) if upto else model
        return backbone(model), lambda x: value(bare(x, training=False))

    return make


def _source(name: str, mark: str = "", **settings: Any) -> Network:
    return Network(name, "files and folders", SOURCES[name], mark, **settings)


NETWORKS: dict[str, Network] = {
    n.name: n
    for n in [
        Network("letters_resnet", "this package", _letters, top=255.0),
        Network("functional", "your own", _own(residual)),
        Network("sequential", "your own", _own(sequential)),
        Network("nested", "your own", _own(classifier, "pooled")),
        Network("two inputs", "your own", _own(two_inputs), towers=2),
        Network("shared layers", "your own", _own(shared)),
        _source("module of TF Hub", opaque=True),
        _source("SavedModel of Keras 3", opaque=True),
        _source("text preset of KerasHub", top=49.0),
        _source("image preset of KerasHub", top=255.0),
        _source("folder of Hugging Face", top=49.0, needs=("safetensors",)),
        # Of the smallest size that KerasHub converts.
        _source("folder of timm", "big", top=255.0, needs=("safetensors",)),
        _source("state dict of PyTorch", top=255.0, needs=("torch",)),
        _source(".h5 of Keras 2"),
        _source(".keras"),
        _source(".weights.h5", top=255.0),
        *(_hub(name) for name in zoo.KERAS_HUB),
        *(_named(name) for name in FAMILIES),
        *(_named(name) for name in applications.names() if name not in FAMILIES),
    ]
}
