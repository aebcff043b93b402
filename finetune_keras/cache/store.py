"""Where features go: memory while they fit, a folder otherwise or if one is given."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetune_keras._errors import CacheError
from finetune_keras.cache import manifest
from finetune_keras.cache.rows import FileRows, MemoryRows, dtype_of, name_of, open_rows

__all__ = ["Folder", "Memory", "available", "files"]

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]
"""Shape of a row and dtype of each array."""

_EVERY = 2.0  # seconds of work that a kill may cost


def available() -> int:
    """A quarter of the memory that is free now, in bytes: what features may take of it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // 4
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return 2 << 30


class Memory:
    """Features in memory; in a temporary folder as soon as they are more than ``budget`` bytes."""

    def __init__(self, budget: int):
        self.budget = budget
        self.done: dict[str, Any] = {}
        self.complete = False
        self.owner: tempfile.TemporaryDirectory | None = None  # its files go when it does
        self._rows: dict[str, MemoryRows] = {}
        self._folder: Folder | None = None

    def start(self, spec: Spec, expected: int | None, told: dict[str, Any]) -> None:
        """Says which arrays there will be, how many rows if known, and what to tell of them."""
        row = sum(int(np.prod(s, dtype="int64")) * d.itemsize for s, d in spec.values())
        if expected is not None and row * expected > self.budget:
            self._spill(spec, expected, told)
        else:
            self._rows = {n: MemoryRows(s, d, expected) for n, (s, d) in spec.items()}

    def append(self, batch: dict[str, np.ndarray], done: dict[str, Any]) -> None:
        """Adds the rows of one batch to each array; ``done`` is how far the pass has come then."""
        self.done = done
        if self._folder is None:
            for name, rows in self._rows.items():
                rows.append(batch[name])
            if sum(r.array().nbytes for r in self._rows.values()) > self.budget:
                arrays = {n: r.array() for n, r in self._rows.items()}
                self._spill({n: (a.shape[1:], a.dtype) for n, a in arrays.items()}, None, {})
                self._folder.append(arrays, done)
                self._rows = {}
        else:
            self._folder.append(batch, done)

    def finish(self, told: dict[str, Any]) -> dict[str, np.ndarray]:
        """All arrays."""
        if self._folder is not None:
            return self._folder.finish(told)
        return {n: r.array() for n, r in self._rows.items()}

    def close(self) -> None:
        """Ends an unfinished pass."""
        if self._folder is not None:
            self._folder.close()
            self.owner.cleanup()

    def _spill(self, spec: Spec, expected: int | None, told: dict[str, Any]) -> None:
        self.owner = tempfile.TemporaryDirectory(prefix="finetune_keras_features_")
        self._folder = Folder(Path(self.owner.name), {})
        self._folder.start(spec, expected, told)


class Folder:
    """Features in ``.npy`` files with a manifest.

    Args:
        path: the folder; made if it is not there.
        identity: what the features are of; see `manifest.differs`.

    Raises:
        CacheError: if it holds other features, or cannot be written.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self.identity = path, identity
        with _told(path):
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
            found = manifest.read(path)
        self.found = found
        if found is not None:
            reasons = manifest.differs(found, identity)
            if reasons:
                raise CacheError(
                    f"the features in {path} are of something else; what differs: "
                    f"{'; '.join(reasons)}. Give another directory, or delete this one"
                )
        elif path.is_dir() and files(path):
            raise CacheError(
                f"{path} has {files(path)[0]!r} and no manifest: give another directory"
            )
        self.complete = found is not None and found["state"] == "complete"
        self.done: dict[str, Any] = dict(found["done"]) if found and not self.complete else {}
        self.owner = None
        self._rows: dict[str, FileRows] = {}
        self._spec: Spec = {}
        self._told: dict[str, Any] = {}
        self._saved = 0.0

    def arrays(self) -> dict[str, np.ndarray]:
        """What a complete folder holds, by memory map."""
        try:
            found = {n: open_rows(self.path, n, f["dtype"]) for n, f in self._files().items()}
            for name, array in found.items():
                if list(array.shape) != self._files()[name]["shape"]:
                    raise ValueError(f"{name}.npy has the shape {array.shape}")
        except (OSError, ValueError) as e:
            raise CacheError(
                f"the features in {self.path} are damaged ({e}): delete the folder"
            ) from None
        return found

    def _files(self) -> dict[str, Any]:
        return self.found["files"]

    def spec(self) -> Spec:
        """What arrays an unfinished pass has."""
        return {n: (tuple(f["shape"][1:]), dtype_of(f["dtype"])) for n, f in self._files().items()}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others from writing here meanwhile."""
        with contextlib.ExitStack() as stack:
            with _told(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(manifest.lock(self.path))
            yield

    def restart(self) -> None:
        """Forgets an unfinished pass."""
        self.done = {}

    def start(self, spec: Spec, expected: int | None, told: dict[str, Any]) -> None:
        """Opens the files, at the rows that an unfinished pass left."""
        rows = self.done.get("rows", 0)
        with _told(self.path):
            if expected is not None:
                row = sum(int(np.prod(s, dtype="int64")) * d.itemsize for s, d in spec.values())
                need, free = row * (expected - rows), shutil.disk_usage(self.path).free
                if need > free:
                    raise OSError(errno.ENOSPC, f"{_size(need)} are needed and {_size(free)} free")
            self._spec, self._told = spec, told
            # Before the files, which nobody would know for ours without it.
            manifest.write(self.path, self._manifest("partial", rows))
            for name, (shape, dtype) in spec.items():
                try:
                    self._rows[name] = FileRows(self.path, name, shape, dtype, rows)
                except (ValueError, FileNotFoundError) as e:
                    raise CacheError(
                        f"the unfinished features in {self.path} are damaged ({e}): delete the "
                        "folder"
                    ) from None
            self._save()

    def append(self, batch: dict[str, np.ndarray], done: dict[str, Any]) -> None:
        """Adds the rows of one batch to each file; ``done`` is how far the pass has come then."""
        with _told(self.path):
            for name, rows in self._rows.items():
                rows.append(batch[name])
            self.done = done
            if time.monotonic() - self._saved > _EVERY:
                self._save()

    def finish(self, told: dict[str, Any]) -> dict[str, np.ndarray]:
        """Completes the files and the manifest."""
        with _told(self.path):
            self._save()
            for rows in self._rows.values():
                rows.finish()
            self._told = told
            self.found = self._manifest("complete")
            manifest.write(self.path, self.found)
        self.complete = True
        return self.arrays()

    def close(self) -> None:
        """Ends an unfinished pass, so that the next one goes on here."""
        if self._rows:  # or else there is nothing new to tell
            with contextlib.suppress(OSError, CacheError):
                self._save()
        for rows in self._rows.values():
            with contextlib.suppress(OSError):
                rows.close()

    def _save(self) -> None:
        for rows in self._rows.values():
            rows.flush()
        manifest.write(self.path, self._manifest("partial"))
        self._saved = time.monotonic()

    def _manifest(self, state: str, rows: int | None = None) -> dict[str, Any]:
        return {
            "state": state,
            **self.identity,
            **self._told,
            "done": self.done,
            "files": {
                name: {"dtype": name_of(dtype), "shape": [self._count(name, rows), *shape]}
                for name, (shape, dtype) in self._spec.items()
            },
        }

    def _count(self, name: str, rows: int | None) -> int:
        return self._rows[name].rows if rows is None else rows


def files(folder: Path) -> list[str]:
    """Names of files in a folder that are called as ours are."""
    kinds = ("features_", "labels_", "weights_")
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(kinds))


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.3g} {unit}"
        n /= 1000
    return ""


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Says what the file system refused, and what to do."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "no space left" + (f" ({e.strerror})" if "needed" in str(e.strerror) else "")
            fix = (
                "give a directory on another disk, or dtype='float16'; a pass that was under way "
                "goes on from where it was"
            )
        elif isinstance(e, PermissionError) or e.errno == errno.EROFS:
            why, fix = "it cannot be written", "give a directory that you may write to"
        elif isinstance(e, FileExistsError | NotADirectoryError):
            why, fix = "there is a file of that name", "give a directory"
        else:
            why, fix = str(e), "give another directory"
        raise CacheError(f"features cannot be kept in {folder}: {why}; {fix}") from e
