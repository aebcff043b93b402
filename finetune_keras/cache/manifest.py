"""The manifest of a folder of features: what they are of, and how far the pass came.

It is written anew under a temporary name and renamed each time, so that what lies there is always
whole; rows of the data files that it does not count do not exist.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_keras._errors import CacheError
from finetune_keras._version import __version__

__all__ = ["FORMAT", "differs", "lock", "read", "write"]

FORMAT = 1
_NAME = "manifest.json"
_KEYS = {"state", "done", "files", "structure", "engine_record"}
_WORDS = {
    "graph": "the frozen part of the model (another network, cut, size of input or dtype)",
    "weights": "the weights of the frozen part",
    "data": "the data",
    "key": "key=",
    "views": "views=",
    "dtype": "dtype=",
    "engine": "engine=",
}


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder; ``None`` if there is none.

    Raises:
        CacheError: if it cannot be read, or was written by a later version of this library.
    """
    path = folder / _NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise CacheError(f"{path} cannot be read ({e}): delete {folder}, or give another") from None
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise CacheError(f"{path} is no manifest of features: give another directory")
    if found["format"] <= FORMAT and not found.keys() >= _KEYS:
        raise CacheError(f"{path} is no whole manifest of features: delete {folder}")
    if found["format"] > FORMAT:
        raise CacheError(
            f"{path} is of format {found['format']}, written by finetune_keras "
            f"{found.get('written_by')}; this is {__version__}, which knows up to {FORMAT}: "
            "update finetune_keras, or give another directory"
        )
    return found


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Puts a manifest in place at once, or not at all."""
    manifest = {"format": FORMAT, "written_by": __version__, **manifest}
    partial = folder / f"{_NAME}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / _NAME)


def differs(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What of ``wanted`` is otherwise in a manifest, in words.

    Features of the exact engine serve every other; those of any engine serve ``"auto"``.
    """
    reasons = []
    for name, value in wanted.items():
        was = found.get(name)
        fine = name == "engine" and (value == "auto" or was == "keras")
        if was != value and not fine:
            told = f": {was!r} there, now {value!r}" if name in ("key", "dtype", "views") else ""
            told = f": {was} there, now {value}" if name == "engine" else told
            reasons.append(f"{_WORDS[name]}{told}")
    return reasons


@contextlib.contextmanager
def lock(folder: Path, what: str = "features") -> Iterator[None]:
    """Keeps other processes from writing the same folder; a process that dies lets go of it."""
    try:
        import fcntl
    except ImportError:  # Windows: two writers are not noticed there
        yield
        return
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CacheError(
                f"another process is writing {what} to {folder}: wait for it, or give another "
                "directory"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
