"""Files of weights and of models, told apart before Keras opens them."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

import keras

from finetune_keras._errors import WeightsError, nearest, sentence
from finetune_keras.backbones import legacy, whole

__all__ = [
    "arrays",
    "kind",
    "load_into",
    "load_model",
    "looks_like_file",
    "mismatch",
    "refuse_archive",
]

_SUFFIXES = (".keras", ".h5", ".hdf5")
_OTHERS = (".pb", ".zip", ".tar", ".tgz", ".gz")  # no model by themselves, and no name of one
# Arrays that are no weights; the last is a random layer's in Keras 2.
_STATE = re.compile(r"^(optimizer|_optim|ftk_\w+/vars/)|seed_generator|random_generator|StateVar")


def looks_like_file(source: object) -> bool:
    """Whether a source is meant as a file: a path, by its type or its ending."""
    if isinstance(source, os.PathLike):
        return True
    return isinstance(source, str) and (
        source.lower().endswith(_SUFFIXES + _OTHERS) or os.sep in source
    )


def existing(path: str | os.PathLike, suffixes: tuple[str, ...] = _SUFFIXES) -> Path:
    """The path, or a `WeightsError` that names what the folder has instead."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise WeightsError(
            f"{str(path)!r} is a folder; expected a {' or '.join(suffixes[:2])} file"
        )
    if not path.parent.is_dir():
        named = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and path.suffix not in suffixes
        hint = f" (at Hugging Face? 'hf://{path}')" if named else ""
        hub = re.match(r"(tfhub\.dev|(www\.)?kaggle\.com)/", path.as_posix())
        hint = f" (at TF Hub or Kaggle? 'https://{path.as_posix()}')" if hub else hint
        raise WeightsError(f"no file {str(path)!r}: there is no folder {str(path.parent)!r}{hint}")
    have = sorted(p.name for p in path.parent.iterdir() if p.name.lower().endswith(suffixes))
    raise WeightsError(f"no file {path.name!r} in {str(path.parent)!r}; {nearest(path.name, have)}")


def kind(path: Path) -> str:
    """``"model"`` for a whole model, ``"weights"`` for weights alone.

    Raises:
        WeightsError: if the file is neither a ``.keras`` archive nor HDF5.
    """
    why = "is it whole?"
    if path.name == "saved_model.pb" or path.parent.name == "variables":
        folder = path.parent if path.name == "saved_model.pb" else path.parent.parent
        raise WeightsError(
            f"{str(path)!r} is a part of a SavedModel: give its folder, {str(folder)!r}"
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                torn = archive.testzip()
                if {"config.json", "model.weights.h5"} <= set(archive.namelist()) and not torn:
                    return "model"
        elif _h5py().is_hdf5(path):
            with _h5py().File(path, "r") as file:
                return "model" if "model_config" in file.attrs else "weights"
    except (OSError, zipfile.BadZipFile) as e:
        why = sentence(e)
    refuse_archive(path)
    raise WeightsError(
        f"{str(path)!r} is neither a .keras archive nor an HDF5 file of Keras ({why})"
    )


def refuse_archive(path: Path) -> None:
    """Raises `WeightsError` if a file is an archive around others."""
    inside = ""
    if tarfile.is_tarfile(path):  # first: one with a zip in it looks like a zip
        with tarfile.open(path) as archive:
            inside = archive.next().name
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        own = any(n.rpartition("/")[2] in ("data.pkl", "metadata.json") for n in names)
        inside = "" if own or not names else names[0]
    if inside:
        raise WeightsError(
            f"{str(path)!r} is an archive, with {inside!r} in it: unpack it, and give the path of "
            "what is inside"
        )


def load_model(path: str | os.PathLike) -> keras.Model:
    """A whole model from a ``.keras`` or ``.h5`` file, not compiled."""
    path = existing(path)
    if kind(path) == "weights":
        raise WeightsError(
            f"{str(path)!r} holds weights only, not a model: name the architecture they belong "
            f"to, as in backbone('resnet50', weights={str(path)!r})"
        )
    try:
        if legacy.is_legacy(path):
            model = legacy.load(path)
        else:
            model = keras.models.load_model(path, compile=False)
    except WeightsError as e:
        raise WeightsError(f"{str(path)!r} cannot be loaded: {e}") from e
    except Exception as e:  # Keras raises many kinds here; the file and its reason matter
        raise WeightsError(f"Keras cannot load the model {str(path)!r}: {sentence(e)}") from e
    whole.finite(model, str(path))
    return model


def load_into(model: keras.Model, path: str | os.PathLike, name: str, hint: str = "") -> None:
    """Loads weights into a new model, and makes sure that the file is for it, whole.

    Args:
        model: its weights are overwritten.
        path: ``.weights.h5``, ``.h5`` or ``.keras``.
        name: of the architecture, for messages.
        hint: what to do if the file holds a classifier's kernel and bias besides.

    Raises:
        WeightsError: if shapes or the number of weights differ, or a weight is not finite.
    """
    path = existing(path)
    kind(path)
    try:
        have, want = len(arrays(path)), len(model.weights)
    except OSError as e:
        raise WeightsError(f"{str(path)!r} cannot be read: {sentence(e)}") from e
    if have != want:
        raise WeightsError(
            f"{str(path)!r} is for another architecture: it holds {have} weight arrays and "
            f"{name!r} has {want}{hint if have == want + 2 else ''}"
        )
    try:
        model.load_weights(path)
    except Exception as e:
        raise WeightsError(f"{str(path)!r} does not fit {name!r}: {mismatch(e)}") from e
    whole.finite(model, str(path))


def arrays(path: Path) -> list[str]:
    """The names of the weights in a file of Keras, without what is of the optimizer, of random
    generators, or attached by this library.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data: object = io.BytesIO(archive.read("model.weights.h5"))
    else:
        data = path
    h5py = _h5py()
    with h5py.File(data, "r") as file:
        group = file.get("model_weights", file)
        found: list[str] = []

        def note(where, item):
            if isinstance(item, h5py.Dataset) and not _STATE.search(where):
                found.append(where)

        group.visititems(note)
        return found


def _h5py():
    import h5py  # comes with Keras

    return h5py


def mismatch(error: BaseException) -> str:
    """The first two shapes that differ, where Keras names them; otherwise what it says."""
    text = str(error)
    shape = r"(?:torch\.Size\()?[(\[]([^)\]]*)[)\]]"  # PyTorch writes torch.Size([3, 3])
    found = re.search(rf"variable\.shape={shape}.*?value\.shape={shape}", text, re.DOTALL)
    if not found:
        return sentence(error)
    mine, its = (f"({numbers})" for numbers in found.groups())
    return f"a weight of shape {its} in the file, where the network has {mine}: another size of it?"
