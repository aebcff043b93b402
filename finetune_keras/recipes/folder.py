"""The folder of a run: what it is a run of, how it started, and how far it came.

Three files, each written under a temporary name and renamed, so that what lies there is whole
whenever the process dies: ``run.json`` says what the run is of, ``start.npz`` has the variables
and random states that it began with, ``state.npz`` those after the last epoch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetune_keras._errors import CacheError
from finetune_keras._version import __version__
from finetune_keras.cache import manifest

__all__ = ["FORMAT", "HASHED", "Folder"]

FORMAT = 3
HASHED = "#"  # before what stands for something longer, and tells nobody anything
_RUN, _START, _STATE = "run.json", "start.npz", "state.npz"
_TOLD = "state"  # the name of the JSON among the arrays
_PARTIAL = ".partial"

Stored = tuple[dict[str, np.ndarray], dict[str, Any]]


class Folder:
    """A folder that holds one run.

    Args:
        directory: made if it is not there.

    Attributes:
        path: where it is.
        run: what it is a run of, as `begin` was told; empty for a new run, and before `locked`.

    Raises:
        CacheError: if it holds something else, or cannot be read.
    """

    def __init__(self, directory: str | os.PathLike):
        if not isinstance(directory, str | os.PathLike):
            raise TypeError(f"directory= takes a path; given {directory!r}")
        self.path = Path(directory).expanduser().absolute()  # a callback may change the current one
        self.run: dict[str, Any] = {}
        self._full = False
        if self.path.exists() and not self.path.is_dir():
            raise CacheError(f"directory={str(self.path)!r} is a file: give a directory")
        own = {_RUN, _START, _STATE, "lock"}
        with self._told():
            names = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        if _RUN in names:
            return  # what callbacks write may lie beside it
        if other := sorted(n for n in names if n.removesuffix(_PARTIAL) not in own):
            raise CacheError(
                f"{self.path} has {other[0]!r}, which is of no run of fine_tune: give another "
                "directory"
            )

    def begin(self, run: dict[str, Any]) -> None:
        """Says what the run is of.

        Raises:
            CacheError: if the folder has a run of something else, or cannot be written.
        """
        if self.run:
            if reasons := _differs(self.run, run):
                raise CacheError(
                    f"the run in {self.path} is another: {'; '.join(reasons)}. Give another "
                    "directory, or delete this one; a model that was trained meanwhile has to be "
                    "made anew, as the first call got it"
                )
            return
        text = json.dumps({"format": FORMAT, **run}, indent=1)
        with self._told(), self._replacing(_RUN) as file:
            file.write(text.encode())
        self.run = run

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from the same run meanwhile, and reads what is there."""
        with contextlib.ExitStack() as held:
            with self._told():
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(manifest.lock(self.path, "a run"))
                for name in (_RUN, _START, _STATE):
                    (self.path / f"{name}{_PARTIAL}").unlink(missing_ok=True)
            if (self.path / _RUN).exists():
                self.run = self._read_run()
            yield

    def start(self) -> Stored | None:
        """How the run began; ``None`` if it did not."""
        return self._read(_START)

    def state(self) -> Stored | None:
        """How far it came; ``None`` if no epoch has ended."""
        return self._read(_STATE)

    def write_start(self, arrays: dict[str, np.ndarray], told: dict[str, Any]) -> None:
        """Stores how the run begins.

        Raises:
            CacheError: if that cannot be written.
        """
        with self._told():
            self._write(_START, arrays, told)

    def write_state(self, arrays: dict[str, np.ndarray], told: dict[str, Any]) -> None:
        """Stores how far it came; warns where that cannot be written, and keeps what is there."""
        try:
            self._write(_STATE, arrays, told)
            self._full = False
        except OSError as e:
            if not self._full:
                warnings.warn(
                    f"the run cannot be stored in {self.path} ({_why(e)}): it goes on, and what "
                    "was stored before is kept",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._full = True  # said once, and tried again after each epoch

    def _write(self, name: str, arrays: dict[str, np.ndarray], told: dict[str, Any]) -> None:
        text = np.frombuffer(json.dumps(told).encode(), "uint8")
        with self._replacing(name) as file:
            np.savez(file, **arrays, **{_TOLD: text})

    def _read(self, name: str) -> Stored | None:
        path = self.path / name
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {k: file[k] for k in file.files}
            return arrays, json.loads(arrays.pop(_TOLD).tobytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as e:
            raise CacheError(
                f"{path} is damaged ({e}): delete {self.path}, or give another"
            ) from None

    def _read_run(self) -> dict[str, Any]:
        path = self.path / _RUN
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            known = found.pop("format")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
            raise CacheError(f"{path} cannot be read ({e}): give another directory") from None
        if known != FORMAT:
            raise CacheError(
                f"{path} is of format {known}, and finetune_keras {__version__} knows {FORMAT}: "
                "give another directory"
            )
        return found

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[Any]:
        """A file to write, which takes its name when it is complete."""
        partial = self.path / f"{name}{_PARTIAL}"
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path / name)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise CacheError(
                f"the run cannot be stored in {self.path} ({_why(e)}): give another directory"
            ) from e


def _why(e: OSError) -> str:
    return "no space left" if e.errno in (errno.ENOSPC, errno.EDQUOT) else e.strerror or str(e)


def _differs(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What is otherwise, in words."""
    reasons = []
    for name in dict.fromkeys([*there, *here]):
        was, now = there.get(name), here.get(name)
        if was == now:
            continue
        hashed = any(isinstance(v, str) and v.startswith(HASHED) for v in (was, now))
        reasons.append(f"other {name}" if hashed else f"{name} {was} there, {now} here")
    return reasons
