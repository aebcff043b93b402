"""Figures: written to a file as a whole, or handed back for a notebook to show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from finetune_keras._optional import require

__all__ = ["figure", "given"]


def figure(width: float = 5.5, height: float = 3.5) -> Any:
    """An empty ``matplotlib.figure.Figure``, which no window belongs to; sizes in inches.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "plots")
    return figures.Figure(figsize=(width, height), layout="constrained")


def given(made: Any, path: str | os.PathLike | None) -> Any:
    """The figure itself, or the path of the PNG file that it was written to.

    Raises:
        ValueError: if there is no such folder.
    """
    if path is None:
        return made
    path = Path(path).expanduser()
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        made.savefig(part, format="png", dpi=110)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
