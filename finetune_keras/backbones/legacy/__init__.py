"""Whole models that Keras 1.2 to 2.15 (tf.keras) saved, for Keras 3.

The config is read by this package and the layers are made by Keras: no code of the file runs.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from finetune_keras._errors import WeightsError
from finetune_keras.backbones.legacy import gates, network, weights

if TYPE_CHECKING:
    import h5py

__all__ = ["is_legacy", "load"]


def is_legacy(path: Path) -> bool:
    """Whether a file of a whole model was written before Keras 3."""
    import h5py  # comes with Keras

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            known = "metadata.json" in archive.namelist()
            version = json.loads(archive.read("metadata.json")) if known else {}
            version = version.get("keras_version", "3")
    else:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version", "1")
    version = version.decode() if isinstance(version, bytes) else str(version)
    return version.split(".")[0] in ("0", "1", "2")


def load(path: Path) -> keras.Model:
    """The model, not compiled.

    Raises:
        WeightsError: naming the layer and what to do about it.
    """
    import h5py  # comes with Keras

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            spec = json.loads(archive.read("config.json"))
            model, top = network.build(spec)
            with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file:
                weights.by_groups(file, model, top)
    else:
        with h5py.File(path, "r") as file:
            model, top = network.build(_config(file))
            if "model_weights" not in file:
                raise WeightsError("the file has a config and no weights")
            weights.by_names(file["model_weights"], top)
    gates.sharpen(top)
    return model


def _config(file: h5py.File) -> dict:
    text = file.attrs["model_config"]
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise WeightsError(f"its model_config is not JSON: {e}") from e
