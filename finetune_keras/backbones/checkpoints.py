"""Folders and handles of pretrained weights as KerasHub takes them: what is in them, and words for
what can go wrong.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

import keras

from finetune_keras import _optional, _private
from finetune_keras._errors import WeightsError, nearest, sentence
from finetune_keras.backbones import files, whole
from finetune_keras.backbones.saved_files import holds

__all__ = ["is_handle", "left_over", "located", "reworded"]

_HANDLE = re.compile(r"(hf|kaggle|modelscope)://.+")
_FORMATS = (
    "expected a preset of KerasHub (config.json, model.weights.h5), a checkpoint of Hugging "
    "Face or timm (config.json, model.safetensors), or a SavedModel (saved_model.pb)"
)
_LIBRARIES = {"transformers": "Hugging Face", "timm": "timm"}


def is_handle(source: object) -> bool:
    """Whether a source is a handle such as ``"hf://org/name"``.

    Examples:
        >>> is_handle("kaggle://keras/bert/keras/bert_tiny_en_uncased"), is_handle("bert_tiny_en")
        (True, False)
    """
    return isinstance(source, str) and _HANDLE.fullmatch(source) is not None


def located(source: str | os.PathLike, *, weights: bool) -> str:
    """The preset as KerasHub takes it; a folder is looked into first.

    Args:
        source: a name, a handle or a folder.
        weights: whether they are wanted.

    Raises:
        WeightsError: for a folder without the files that are needed.
        ImportError: if they are in safetensors and that package is missing.
    """
    if is_handle(source):
        return source
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return str(source)
    # By its full path: the name of a folder may be that of a preset.
    folder = folder.resolve()
    _check(folder, str(source), weights)
    return str(folder)


def _check(folder: Path, shown: str, weights: bool) -> None:
    """Raises `WeightsError` if a folder is not what KerasHub can load, and why."""
    have = sorted(p.name for p in folder.iterdir())
    listed = f"has {', '.join(have[:6])}{', ...' if len(have) > 6 else ''}" if have else "is empty"
    if "config.json" not in have:
        raise WeightsError(
            f"the folder {shown!r} {listed}; {_FORMATS}{_meant(folder, shown, have)}"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise WeightsError(f"config.json in {shown!r} cannot be read: {sentence(e)}") from e
    kinds = ("registered_name", "model_type", "architecture")
    kind = next((k for k in kinds if isinstance(config, dict) and k in config), None)
    if kind is None:
        raise WeightsError(
            f"config.json in {shown!r} has none of {', '.join(map(repr, kinds))}; {_FORMATS}"
        )
    plain = config.get("class_name") in ("Sequential", "Functional")
    if kind == "registered_name" and plain:
        raise WeightsError(
            f"the folder {shown!r} holds a model of Keras, as an unpacked .keras file does, and no "
            "preset: pass the .keras file"
        )
    if not weights:
        return
    whole, index = ("model.weights.h5", "model.weights.json")
    if kind != "registered_name":
        whole, index = ("model.safetensors", "model.safetensors.index.json")
        if not _optional.installed("safetensors"):
            raise ImportError(
                f"{shown!r} is a checkpoint in safetensors, which is not installed: "
                f"{_optional.hint('presets')}"
            )
    if index in have:
        _check_shards(folder / index, shown)
    elif whole not in have:
        saved = any(n.endswith((".bin", ".pt", ".pth")) for n in have)
        how = ": write it by save_pretrained(folder, safe_serialization=True)" if saved else ""
        raise WeightsError(f"the folder {shown!r} has no {whole}; it {listed}{how}")


def _meant(folder: Path, shown: str, have: list[str]) -> str:
    """The end of a sentence: what in a folder may have been meant."""
    inside = sorted(p.parent.name for p in folder.glob("*/saved_model.pb"))
    models = [n for n in have if n.endswith((".keras", ".h5"))]
    torch = [n for n in have if n.endswith((".pth", ".pt", ".th", ".safetensors"))]
    paths = [repr(os.path.join(shown, n)) for n in inside or models or torch][:3]
    if not paths and folder.name == "variables" and holds(folder.parent):
        return f"; it is a part of a SavedModel: give {str(Path(shown).parent)!r}"
    if not paths:
        return ""
    if inside or models:
        what = "a folder in it" if inside else "the file"
        return f"; or name {what}, as {' or '.join(paths)}"
    return f"; or name the network too, as in backbone('resnet50', weights={paths[0]})"


def _check_shards(index: Path, shown: str) -> None:
    """All files that an index names are in its folder."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        listed = {n for f in files for n in (f if isinstance(f, list) else [f])}
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise WeightsError(f"{index.name} in {shown!r} cannot be read: {sentence(e)}") from e
    for name in sorted(map(str, listed)):
        if name != Path(name).name or name in (".", ".."):
            raise WeightsError(f"{index.name} in {shown!r} names a file outside it: {name!r}")
        if not (index.parent / name).is_file():
            raise WeightsError(f"the folder {shown!r} has no {name}, which its {index.name} names")


def left_over(
    shown: str, where: str, network: keras.Model, read: set[str], there: set[str]
) -> tuple[str, ...]:
    """The names in the files of weights that the network takes none of; counters come last.

    Args:
        shown: the preset as the user gave it.
        where: the same as KerasHub takes it.
        network: with its weights.
        read: the tensors that KerasHub took out of safetensors.
        there: all that there are.

    Raises:
        WeightsError: if among them are layers of the kind of those that were used.
    """
    if not there:
        read, there = _arrays(Path(where), network)
    unused = sorted(there - read)
    more = whole.deeper(unused, there & read)
    if more:
        raise WeightsError(
            f"the weights of {shown!r} are of a deeper network than its config.json says: "
            f"{len(more)} of {len(there)} have no place, the first of them {more[0]!r}; for fewer "
            "layers leave config.json as it was, and pass cut_at="
        )
    return tuple(sorted(unused, key=lambda n: n.endswith("num_batches_tracked")))


def _arrays(folder: Path, network: keras.Model) -> tuple[set[str], set[str]]:
    """The same of a preset of KerasHub in a folder: by its own names in the file."""
    if not folder.is_dir():
        return set(), set()
    one = folder / "model.weights.h5"
    parts = [one] if one.is_file() else folder.glob("model_*.weights.h5")
    there = {n for part in parts for n in files.arrays(part)}
    if len(there) == len(network.weights):
        return there, there
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "own.weights.h5"
        network.save_weights(path)
        own = set(files.arrays(path))
    return (own, there) if own & there else (there, there)  # or an older layout


def reworded(shown: str, where: str, error: Exception) -> Exception:
    """What KerasHub raised, as one line of ours."""
    text = sentence(error)
    lacking = re.search(r"no converter for \S*?(transformers|timm) models .*?`'(.+?)'`", text)
    if lacking:
        library, kind = lacking.groups()
        known = _private.converted_families(library)
        return WeightsError(
            f"KerasHub has no converter for {kind!r} of {_LIBRARIES[library]} in {shown!r}; "
            f"{nearest(kind, known)}"
        )
    other = "the weights of {} are of another network than its config.json says: {}"
    if "objects could not be loaded" in text:
        number = re.search(r"total of (\d+) objects", text)[1]
        return WeightsError(other.format(repr(shown), f"{number} of its layers do not find theirs"))
    missing = re.search(r"does not contain tensor (\S+)", text)
    if missing:
        return WeightsError(other.format(repr(shown), f"there is no {missing[1]!r}"))
    shapes = files.mismatch(error)
    if shapes != text:
        return WeightsError(other.format(repr(shown), shapes))
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown:
        return TypeError(f"{shown!r} takes no {unknown[1]}=")
    if isinstance(error, ImportError):
        package = {"hf": "huggingface_hub", "modelscope": "modelscope"}.get(where.split("://")[0])
        package = "safetensors" if "safetensors" in text else package
        if package is None:
            return ImportError(f"{shown!r} needs a package that is missing: {text}")
        ours = package != "modelscope"
        install = _optional.hint("presets") if ours else "pip install modelscope"
        return ImportError(f"{shown!r} needs {package}: {install}")
    if not Path(where).is_dir() and _is_offline(error):
        host = re.search(r"host='([\w.-]+)'", str(error))
        why = f"no connection to {host[1]}" if host else text
        return WeightsError(f"{shown!r} cannot be downloaded ({why}): {_elsewhere(where)}")
    return WeightsError(f"KerasHub cannot load {shown!r}: {text}")


def _is_offline(error: BaseException) -> bool:
    """Whether nothing could be fetched; KerasHub says "has no config.json" of Hugging Face then."""
    text = str(error)
    answered = (
        isinstance(error, FileNotFoundError) or "Unexpected" in text or "Client Error" in text
    )
    return (isinstance(error, OSError) or "has no config.json" in text) and not answered


def _elsewhere(where: str) -> str:
    """How to come by a preset on another machine."""
    import keras_hub

    known = keras_hub.models.Backbone.presets.get(where)
    handle = known["kaggle_handle"] if known else where
    scheme, _, name = handle.partition("://")
    fetch = {
        "kaggle": f"kagglehub.model_download({name!r})",
        "hf": f"huggingface_hub.snapshot_download({name!r})",
    }.get(scheme, f"modelscope.snapshot_download({name!r})")
    return f"where there is a network, {fetch} gives a folder; copy it here and pass its path"
