"""A backbone from each kind of file and folder, and what its features are to be.

Each function writes a small artefact into a folder and reads it. The folder is gone afterwards,
since nothing may be needed of it later.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import keras
import keras_2
import numpy as np
import saved_models
from conftest import residual, value

from finetune_keras import Backbone, backbone

__all__ = ["SOURCES"]

Made = tuple[Backbone, Callable[[Any], np.ndarray]]
# The three channels scaled alike, so that a grey image may give what it gives as RGB.
ALIKE = functools.partial(keras.layers.Rescaling, 1 / 127.5, -1)


def _in_a_folder(make: Callable[[Path], Made]) -> Callable[[], Made]:
    def made() -> Made:
        with tempfile.TemporaryDirectory() as folder:
            return make(Path(folder) / "it")

    return made


def _saved_model(write: Callable, size: int, call: Callable) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        if keras.backend.backend() != "tensorflow":  # refused before it is read
            folder.mkdir()
            (folder / "saved_model.pb").touch()
            return backbone(folder), None
        import tensorflow as tf

        theirs = tf.saved_model.load(str(write(folder)))
        base = backbone(folder, input_shape=(size, size, 3))
        return base, lambda x: value(call(theirs, x))

    return make


def _bert(write: Callable[[Path], keras.Model]) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        network = write(folder)
        return (
            backbone(folder),
            lambda x: value(network(x, training=False)["sequence_output"]),
        )

    return make


def _images(write: Callable[[Path], keras.Model]) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        network = write(folder)
        base = backbone(folder, input_shape=(32, 32, 3), preprocessing=ALIKE())
        return base, lambda x: value(network(value(x) / 127.5 - 1, training=False))

    return make


def _state_dict(folder: Path) -> Made:
    import torch_nets

    net = torch_nets.randomised(torch_nets.NETWORKS["resnet18"]())
    base = backbone(
        "resnet18",
        weights={k: v.numpy() for k, v in net.state_dict().items()},
        input_shape=(32, 32, 3),
        preprocessing=ALIKE(),
    )
    return base, lambda x: torch_nets.features(net, x, (0.5,) * 3, (0.5,) * 3)


def _keras_2(write: Callable) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        base = backbone(write(folder), cut_at="g")
        whole = keras_2.reference()
        pooled = keras.Model(whole.inputs, whole.layers[-3].output)
        return base, lambda x: value(pooled(np.array(x), training=False))

    return make


def _keras_file(folder: Path) -> Made:
    model = checkpoints.randomized(residual())
    path = folder.with_suffix(".keras")
    model.save(path)
    return backbone(path), lambda x: value(model(x, training=False))


def _keras_weights(folder: Path) -> Made:
    path = folder.with_suffix(".weights.h5")
    network = backbone("letters_resnet", weights=None, input_shape=(24, 24, 3)).network
    checkpoints.randomized(network).save_weights(path)
    base = backbone("letters_resnet", weights=path, input_shape=(24, 24, 3))
    return base, lambda x: value(network(x / 127.5 - 1, training=False))


SOURCES: dict[str, Callable[[], Made]] = {
    name: _in_a_folder(make)
    for name, make in {
        "module of TF Hub": _saved_model(
            saved_models.conv_net, 8, lambda theirs, x: theirs(x, training=False)
        ),
        "SavedModel of Keras 3": _saved_model(
            saved_models.export, 16, lambda theirs, x: theirs.serve(x)
        ),
        "text preset of KerasHub": _bert(checkpoints.bert_preset),
        "image preset of KerasHub": _images(lambda folder: checkpoints.resnet_preset(folder)[0]),
        "folder of Hugging Face": _bert(checkpoints.transformers_bert),
        "folder of timm": _images(checkpoints.timm_resnet18),
        "state dict of PyTorch": _state_dict,
        ".h5 of Keras 2": _keras_2(
            lambda path: keras_2.write(path.with_suffix(".h5"), *keras_2.teachable())
        ),
        ".keras": _keras_file,
        ".weights.h5": _keras_weights,
    }.items()
}
