"""Which files belong to which class, and to which split, in a folder of folders."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from finetune_keras._errors import nearest

__all__ = ["classes", "files", "located", "root", "splits"]

# Names of folders that are splits and no classes, by the name that they get.
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")


def root(folder: str | os.PathLike) -> Path:
    """The folder, if there is one.

    Raises:
        ValueError: if there is none, or it is a file, with what to do.

    Examples:
        >>> root("no_such_folder")
        Traceback (most recent call last):
        ValueError: there is no folder 'no_such_folder'
    """
    path = located(folder)
    if path.is_dir():
        return path
    if path.suffix.lower() in _ARCHIVES and path.is_file():
        raise ValueError(f"{str(path)!r} is an archive: unpack it, and give the folder")
    if path.suffix.lower() in _PICKLES and path.is_file():
        raise ValueError(f"{str(path)!r} is a pickle, which can run any code when it is read")
    if path.is_file():
        raise ValueError(f"{str(path)!r} is a file; give the folder that holds those of classes")
    beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    hint = nearest(path.name, beside) if beside else ""
    hint = f": {hint}" if hint.startswith("did") else ""
    raise ValueError(f"there is no folder {str(path)!r}{hint}")


def located(path: str | os.PathLike) -> Path:
    """A path as the user wrote it.

    Raises:
        TypeError: if it is none.

    Examples:
        >>> located(None)
        Traceback (most recent call last):
        TypeError: a path is wanted; given None
    """
    if isinstance(path, str | os.PathLike):
        return Path(path).expanduser()
    article = "an" if type(path).__name__[0] in "aeiou" else "a"
    shown = "None" if path is None else f"{article} {type(path).__name__}"
    raise TypeError(f"a path is wanted; given {shown}")


def splits(folder: Path) -> dict[str, Path]:
    """The folders of splits by name, ``train`` first; empty if ``folder`` holds classes itself.

    It holds splits if all folders in it are named so, there is one for training, and that one
    holds folders again: a class may well be called ``train``.

    Raises:
        ValueError: if it holds splits and something else, which is neither split nor class.
    """
    found: dict[str, Path] = {}
    odd: list[str] = []
    for inside in _folders(folder):
        name = next((k for k, v in _SPLITS.items() if inside.name.lower() in v), None)
        if name is None:
            odd.append(f"{inside.name!r}, which is no split")
        elif name in found:
            odd.append(f"{inside.name!r}, which is {name!r} as {found[name].name!r} is")
        else:
            found[name] = inside
    if "train" not in found or not any(_folders(found["train"])):
        return {}
    if odd and len(found) > 1:
        names = " and ".join(repr(path.name) for path in found.values())
        raise ValueError(f"{str(folder)!r} has the splits {names}, and {odd[0]}: move it elsewhere")
    return {} if odd else {name: found[name] for name in _SPLITS if name in found}


def classes(folder: Path) -> dict[str, Path]:
    """The folders of classes, sorted by name as Keras sorts them; hidden ones are none.

    An archive made on a Mac may write letters with accents in two characters: the name is the same.

    Raises:
        ValueError: if two folders have the same name, written in two ways.
    """
    found: dict[str, Path] = {}
    for path in _folders(folder):
        name = unicodedata.normalize("NFC", path.name)
        if name in found:
            raise ValueError(
                f"{str(folder)!r} has two folders of the name {name!r}, whose accents are written "
                f"as {found[name].name!a} and {path.name!a}: move the files into one"
            )
        found[name] = path
    return dict(sorted(found.items()))


def files(folder: Path, endings: Iterable[str]) -> list[str]:
    """All files below a folder that end so, in Keras' order: by folder, then by name.

    Links are followed, and each folder is read once, so that a loop of links ends. A link to a
    folder that holds this one is not followed: other classes are below it.

    Raises:
        ValueError: if a folder below cannot be read.
    """
    endings = tuple(endings)
    found: list[str] = []
    above = map(os.stat, Path(os.path.realpath(folder)).parents)
    seen = {(stat.st_dev, stat.st_ino) for stat in above}
    for here, inside, names in os.walk(folder, onerror=_stop, followlinks=True):
        stat = os.stat(here)
        if (stat.st_dev, stat.st_ino) in seen:
            inside.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        inside[:] = sorted(n for n in inside if not n.startswith("."))
        found += [
            os.path.join(here, name)
            for name in names
            if name.lower().endswith(endings) and not name.startswith(".")
        ]
    return sorted(found, key=os.path.split)


def chosen(folders: dict[str, Path], class_names: Sequence[str] | None, what: str) -> list[str]:
    """The names of the classes in the order that was asked for.

    Raises:
        ValueError: if one that was asked for is not there.
    """
    if class_names is None:
        return list(folders)
    for name in class_names:
        if name not in folders:
            raise ValueError(f"no folder of a class {name!r} in {what}: {nearest(name, folders)}")
    return list(class_names)


def _stop(error: OSError) -> None:
    raise ValueError(f"the folder {error.filename!r} cannot be read: {error.strerror}") from error


def _folders(folder: Path) -> list[Path]:
    inside = (p for p in folder.iterdir() if not p.name.startswith("."))
    return sorted((p for p in inside if p.is_dir()), key=lambda p: p.name)
