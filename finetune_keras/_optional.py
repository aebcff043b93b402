"""Packages that are not needed to import this one: asked for where they are used."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

__all__ = ["hint", "installed", "require"]


def installed(module: str) -> bool:
    """Whether a module can be found, without importing it.

    Examples:
        >>> installed("keras"), installed("no_such_module")
        (True, False)
    """
    return importlib.util.find_spec(module) is not None


def require(module: str, extra: str) -> ModuleType:
    """Imports a module that belongs to one of the extras.

    Args:
        module: its name.
        extra: the extra of ``pyproject.toml`` that brings it.

    Raises:
        ImportError: if it cannot be imported, naming the extra.

    Examples:
        >>> require("no_such_module", "openvino")
        Traceback (most recent call last):
        ImportError: no_such_module is not installed: pip install 'finetune_keras[openvino]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name != module:
            raise  # it is there, and something that it needs is not
        raise ImportError(f"{module} is not installed: {hint(extra)}", name=module) from None


def hint(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'finetune_keras[{extra}]'"
