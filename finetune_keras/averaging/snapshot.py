"""The weights of a model at one time, to go back to or to average with."""

from __future__ import annotations

import dataclasses
import os
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from finetune_keras import graph
from finetune_keras._errors import WeightsError, sentence, shown
from finetune_keras.averaging import place
from finetune_keras.backbones import files

__all__ = ["SUFFIX", "Snapshot", "expect_model", "snapshot"]

SUFFIX = ".npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """The weights of a model as they were.

    Attributes:
        name: of the model or the file.
        weights: read-only NumPy arrays by path (``"resnet50/conv1_conv/kernel"``), statistics
            included, in the order of the graph. The state of optimizers and of random seeds is
            not in it.
    """

    name: str
    weights: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Mapping):
            raise TypeError(f"weights is a dict of arrays by path; given {shown(self.weights)}")
        arrays = {path: np.asarray(a).view() for path, a in self.weights.items()}
        for array in arrays.values():
            array.flags.writeable = False
        object.__setattr__(self, "weights", types.MappingProxyType(arrays))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.weights.values())

    def __len__(self) -> int:
        """Number of arrays."""
        return len(self.weights)

    def __repr__(self) -> str:
        count = sum(a.size for a in self.weights.values())
        return f"<Snapshot of {self.name!r}: {len(self)} weights, {count:,} numbers>"

    def restore(self, model: keras.Model) -> None:
        """Sets the weights of a model to these; its optimizer stays as it is.

        Args:
            model: of the same architecture.

        Raises:
            WeightsError: if it is of another one, with the first difference; nothing is written.

        Examples:
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")])
            >>> start = snapshot(model)
            >>> model.set_weights([np.ones((2, 1)), np.ones(1)])
            >>> start.restore(model)
            >>> bool((model.get_weights()[0] == start.weights["d/kernel"]).all())
            True
        """
        expect_model(model)
        units = graph.opened(model).units
        weights = place.matched(self.weights, units, f"the snapshot of {self.name!r}")
        with place.undone(units):
            place.put(units, weights)

    def save(self, path: str | os.PathLike) -> Path:
        """Writes a ``.npz`` file, which `snapshot` and ``numpy.load`` read; nothing is pickled.

        Args:
            path: ends in ``.npz``; a file that is there is replaced. bfloat16, which the format
                does not know, is written as float32, and loses nothing.

        Returns:
            The path.
        """
        path = Path(path).expanduser()
        if path.suffix.lower() != SUFFIX:
            raise ValueError(f"a snapshot is a {SUFFIX} file; given {path.name!r}")
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            # What numpy.savez writes, which has no place for a variable called "file".
            with zipfile.ZipFile(part, "w") as archive:
                for name, array in self.weights.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, _plain(array), allow_pickle=False)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path


def snapshot(source: keras.Model | str | os.PathLike | Snapshot) -> Snapshot:
    """Keeps the weights of a model as they are now.

    Args:
        source: a built model; or the path of a ``.npz`` file of `Snapshot.save`, or of a whole
            model as ``.keras`` or ``.h5``.

    Returns:
        A `Snapshot`: copies, which training does not change.

    Raises:
        WeightsError: if there is no such file, or it is none of these.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> start = snapshot(model)
        >>> list(start.weights)
        ['d/kernel', 'd/bias']
    """
    if isinstance(source, Snapshot):
        return source
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        if path.suffix.lower() == SUFFIX:
            return _load(path)
        if files.kind(files.existing(path)) == "weights":
            raise WeightsError(
                f"{path.name!r} holds weights without the model that names them: load it into the "
                "model and take the snapshot of that (wise_ft and soup take the path)"
            )
        model = files.load_model(path)
        return dataclasses.replace(snapshot(model), name=path.name)
    expect_model(source)
    units = graph.opened(source).units
    weights = dict(zip((u.path for u in units), place.read(units), strict=True))
    return Snapshot(source.name, weights)


def expect_model(model: object) -> None:
    """Refuses what is no model.

    Raises:
        TypeError: with what to pass instead, where that is known.
    """
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")


def _load(path: Path) -> Snapshot:
    path = files.existing(path, (SUFFIX,))
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Snapshot(path.name, {name: archive[name] for name in archive.files})
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as e:
        raise WeightsError(f"{str(path)!r} is no whole snapshot: {sentence(e)}") from e


def _plain(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "biuf" else array.astype("float32")
