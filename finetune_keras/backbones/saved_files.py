"""The files of a SavedModel: found, copied, and told apart by what is in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from finetune_keras._errors import WeightsError

__all__ = ["Store", "find", "holds", "is_hub_1", "stored"]

_GRAPH = "saved_model.pb"
_HUB_1 = "tfhub_module.pb"  # of modules in TF Hub's format for TensorFlow 1

# What layers of this process hold, by digests: a copy of a layer finds its files here.
_known: weakref.WeakValueDictionary[str, Store] = weakref.WeakValueDictionary()


def stored(source: Path, *, values: bool) -> Store:
    """Our copy of a SavedModel's files, one for all that hold the same files."""
    made = Store(source, values=values)
    return _known.setdefault(made.digest, made)


def find(digest: str) -> Store | None:
    """The files of that digest, if anything in this process holds them."""
    return _known.get(digest)


def holds(folder: str | os.PathLike) -> bool:
    """Whether a folder is a SavedModel."""
    return (Path(folder).expanduser() / _GRAPH).is_file()


def is_hub_1(folder: Path) -> bool:
    """Whether a folder is a module in TF Hub's format for TensorFlow 1."""
    return (folder / _HUB_1).is_file()


class Store:
    """Our own copy of a SavedModel's files, in a folder that goes when nobody holds this.

    Attributes:
        folder: where they are.
        digest: a hash of what they hold.
    """

    def __init__(self, source: Path, *, values: bool):
        """Copies the graph and its assets, and the values of the variables if asked to."""
        self.folder = Path(tempfile.mkdtemp(prefix="finetune_keras_"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.copy(source, self.folder, values=values)
        self.digest = _digest(self.folder)

    @staticmethod
    def copy(source: Path, target: Path, *, values: bool = True) -> None:
        """Copies what belongs to a SavedModel.

        A link out of ``source`` is an error, unless it is one of Hugging Face's cache, where all
        files of ``snapshots/<revision>`` are links into ``blobs`` beside it.
        """
        source = source.resolve()
        inside = [source, *(p.parent / "blobs" for p in source.parents if p.name == "snapshots")]
        for part in (_GRAPH, _HUB_1, "assets", *(["variables"] if values else [])):
            found = [source / part] if (source / part).is_file() else (source / part).rglob("*")
            for file in sorted(found):
                if not any(file.resolve().is_relative_to(root) for root in inside):
                    raise WeightsError(f"{str(file)!r} is a link to outside of its SavedModel")
                if file.is_file():
                    place = target / file.relative_to(source)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, place)

    @property
    def values(self) -> bool:
        """Whether the values of the variables are here too."""
        return (self.folder / "variables").is_dir()


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as data:
            while chunk := data.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()
