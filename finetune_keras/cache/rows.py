"""Arrays that grow by rows: in memory, or as ``.npy`` files that are read by memory map.

A file under way is ``<name>.npy.partial`` and gets its name when it is complete. NumPy leaves room
in the header of a ``.npy`` file for its first dimension to grow, so that rows are only appended.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["FileRows", "MemoryRows", "dtype_of", "name_of", "open_rows", "release"]

# What NumPy's files have no name for is kept as integers of the same size.
_STORED = {"bfloat16": "uint16"}


def name_of(dtype: Any) -> str:
    """The name of a dtype, bfloat16 included."""
    return np.dtype(dtype).name


def dtype_of(name: str) -> np.dtype:
    """The dtype of a name, bfloat16 included.

    Examples:
        >>> dtype_of("bfloat16").itemsize, dtype_of("float32")
        (2, dtype('float32'))
    """
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class MemoryRows:
    """Rows in memory; room for ``expected`` of them is made at once."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, expected: int | None = None):
        self._array = np.empty((expected or 0, *shape), dtype)
        self.rows = 0

    def append(self, rows: np.ndarray) -> None:
        """Adds rows at the end."""
        end = self.rows + len(rows)
        if end > len(self._array):
            grown = np.empty((max(end, 2 * self.rows), *self._array.shape[1:]), self._array.dtype)
            grown[: self.rows] = self._array[: self.rows]
            self._array = grown
        self._array[self.rows : end] = rows
        self.rows = end

    def array(self) -> np.ndarray:
        """All rows."""
        return self._array[: self.rows]


class FileRows:
    """Rows in a file, to be written on from ``rows`` on.

    Args:
        folder: where the file is.
        name: without suffix.
        shape: of one row.
        dtype: of the elements.
        rows: how many rows of an earlier run are good; what is after them is cut off.
    """

    def __init__(
        self, folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, rows: int = 0
    ):
        self.path = folder / f"{name}.npy"
        self.partial = folder / f"{name}.npy.partial"
        self.shape, self.dtype, self.rows = tuple(shape), np.dtype(dtype), rows
        if rows and not self.partial.exists() and self.path.exists():
            os.replace(self.path, self.partial)  # killed between its renaming and the manifest
        self._file = open(self.partial, "r+b" if rows else "w+b")  # noqa: SIM115
        header = self._header(rows)
        if rows:
            size = len(header) + rows * self.row_bytes
            if os.fstat(self._file.fileno()).st_size < size:
                self._file.close()
                raise ValueError(f"{self.partial} is shorter than its manifest says")
            self._file.truncate(size)
            self._file.seek(size)
        else:
            self._file.write(header)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype="int64")) * self.dtype.itemsize

    def append(self, rows: np.ndarray) -> None:
        """Adds rows at the end; `flush` makes them last."""
        self._file.write(np.ascontiguousarray(rows, self.dtype).view("uint8").data)
        self.rows += len(rows)

    def flush(self) -> None:
        """Sees all rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file as it is."""
        self._file.close()

    def finish(self) -> None:
        """Writes the number of rows into the header, and gives the file its name."""
        self._file.seek(0)
        self._file.write(self._header(self.rows))
        self.flush()
        self._file.close()
        os.replace(self.partial, self.path)

    def _header(self, rows: int) -> bytes:
        import io

        stored = _STORED.get(name_of(self.dtype), self.dtype)
        description = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(stored)),
            "fortran_order": False,
            "shape": (rows, *self.shape),
        }
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, description)
        return buffer.getvalue()


def open_rows(folder: Path, name: str, dtype: str) -> np.ndarray:
    """The rows of a complete file as a read-only array over a memory map."""
    path = folder / f"{name}.npy"
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
        shape, _, stored = read(file)
        offset = file.tell()
        size = int(np.prod(shape, dtype="int64")) * stored.itemsize
        if os.fstat(file.fileno()).st_size != offset + size:
            raise ValueError(f"{path} has another size than its header says")
        if not size:
            return np.empty(shape, dtype_of(dtype))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if name_of(stored) != _STORED.get(dtype, dtype):
        raise ValueError(f"{path} holds {stored} and not {dtype}")
    array = np.ndarray(shape, stored, buffer=mapped, offset=offset)
    return array if name_of(stored) == dtype else array.view(dtype_of(dtype))


def release(array: np.ndarray) -> None:
    """Lets go of the memory that reading a mapped array took; it is read again when needed."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
