"""Loading a fine-tuned model with what plain Keras drops."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import keras

from finetune_keras import _private, flags, graph, jit, record
from finetune_keras._errors import sentence
from finetune_keras.attached import stored
from finetune_keras.heads import uncertainty
from finetune_keras.optimizers import innermost, newcomers, rebind
from finetune_keras.regularize import l2sp

__all__ = ["load"]


def load(
    path: str | os.PathLike, *, custom_objects: dict | None = None, safe_mode: bool = True
) -> keras.Model:
    """Loads a ``.keras`` file to go on training.

    ``keras.models.load_model`` restores the graph, the weights, one flag for each layer and the
    optimizer. This also restores the flags of single variables and of layers inside layers, the
    optimizer's state in spite of them, the correction of recently thawed variables, the penalty
    of `finetune_keras.l2sp` with its starting weights, and the tie of learned loss weights
    (``heads.Multi(..., weights="uncertainty")``) to their loss. Class names and kind of labels
    are read by `finetune_keras.describe`. A file of plain Keras is loaded as Keras would.

    Args:
        path: a ``.keras`` file.
        custom_objects: as in ``keras.models.load_model``.
        safe_mode: whether a file with code of its own (a SavedModel, a ``Lambda``) is refused, as
            in ``keras.models.load_model``. Switch it off for files that you trust.

    Returns:
        The model, compiled if it was compiled when it was saved.

    Raises:
        ValueError: if there is no such file, or it is not a ``.keras`` file.

    Examples:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/mine.keras")
        ...     load(f"{folder}/mine.keras").name == model.name
        True
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"load takes the path of a .keras file; given a {type(path).__name__}")
    path = Path(path).expanduser()
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.keras")) if path.parent.is_dir() else []
        there = f"; that folder has {', '.join(near)}" if near else ""
        raise ValueError(f"no file {str(path)!r}{there}")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{str(path)!r} is not a .keras archive, or not whole; for an .h5 file use "
            "finetune_keras.backbone(path) or keras.models.load_model(path)"
        )
    try:
        return _load(path, custom_objects, safe_mode)
    except (OSError, KeyError, json.JSONDecodeError, zipfile.BadZipFile) as e:
        raise ValueError(
            f"{str(path)!r} is damaged or was not written by Keras: {sentence(e)}"
        ) from e


def _load(path: Path, custom_objects: dict | None, safe_mode: bool) -> keras.Model:
    model = keras.models.load_model(
        path, custom_objects=custom_objects, compile=False, safe_mode=safe_mode
    )
    _penalise_as_saved(model, path)
    jit.allow(model)
    found = record.read(model)
    if found is None or not (found.frozen or found.newcomers):
        _compile_as_saved(model, path, custom_objects)
        return model
    units = graph.opened(model).units
    found = record.placed(found, units)
    frozen = set(found.frozen)
    off = {id(u.variable) for u in units if u.path in frozen}
    flags.put(model, units, flags.on(units, model) - off)
    _compile_as_saved(model, path, custom_objects)
    by_path = {u.path: u.variable for u in units}
    if model.compiled and model.optimizer is not None:
        newcomers.attach(
            innermost(model.optimizer),
            [
                newcomers.Group(since, tuple(by_path[p] for p in paths if p in by_path))
                for since, paths in found.newcomers
            ],
        )
    record.refresh(model)
    return model


def _penalise_as_saved(model: keras.Model, path: Path) -> None:
    import h5py  # comes with Keras

    with zipfile.ZipFile(path) as archive:
        if "model.weights.h5" in archive.namelist():
            with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as weights:
                l2sp.attach(model, stored(weights, l2sp.NAME))


def _compile_as_saved(model: keras.Model, path: Path, custom_objects: dict | None) -> None:
    """What ``load_model`` does with ``compile=True``, after the flags are right: an optimizer
    built before would not match the state in the file.
    """
    import h5py  # comes with Keras

    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json")).get("compile_config")
        if not config:
            return
        with keras.saving.custom_object_scope(custom_objects or {}):
            model.compile_from_config(config)
        if model.compiled:
            uncertainty.bind(model, _private.compile_arguments(model).get("loss"))
        if model.optimizer is None:
            return
        with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as weights:
            if "optimizer/vars" in weights:
                model.optimizer.load_own_variables(weights["optimizer/vars"])
        rebind(model)
