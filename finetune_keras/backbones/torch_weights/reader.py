"""Files of PyTorch weights, as a plain dict of NumPy arrays.

Pickles can run code when they are opened, so files of ``torch.save`` are read with
``weights_only=True``: tensors and plain containers, nothing else.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune_keras import _optional
from finetune_keras._errors import WeightsError, sentence
from finetune_keras.backbones import files

__all__ = ["SUFFIXES", "Checkpoint", "is_torch", "read"]

SUFFIXES = (".pth", ".pt", ".th", ".bin", ".safetensors")

# Under what training scripts keep the state dict; the averaged one only if there is no other.
_HOLDERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_SAVE = "where it was made, torch.save(model.state_dict(), path) keeps the tensors alone"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file of PyTorch weights holds.

    Attributes:
        name: of the file, for messages.
        tensors: NumPy arrays by the names that the network has for them.
        wrapper: what stood before all names and was taken off, such as ``"module."``.
    """

    name: str
    tensors: Mapping[str, np.ndarray]
    wrapper: str = ""


def is_torch(weights: object) -> bool:
    """Whether weights are PyTorch's: a path with one of its endings, or a state dict.

    Examples:
        >>> is_torch("resnet50-0676ba61.pth"), is_torch("resnet50.weights.h5")
        (True, False)
    """
    if isinstance(weights, str | os.PathLike):
        return str(weights).lower().endswith(SUFFIXES)
    return isinstance(weights, Mapping)


def read(source: str | os.PathLike | Mapping[str, Any]) -> Checkpoint:
    """Reads all tensors of a file, or of a state dict.

    Args:
        source: a file of ``torch.save`` (needs PyTorch) or a ``.safetensors`` file (needs the
            package ``safetensors`` and not PyTorch), or a dict of tensors or arrays by name.
            Dicts around the state dict, as training scripts save them, are opened.

    Raises:
        WeightsError: if there is no such file, it cannot be read, or it holds no state dict.
        ImportError: if the package that reads it is not installed.
    """
    if isinstance(source, Mapping):
        name, held = "the state dict", source
    elif not isinstance(source, str | os.PathLike):
        raise TypeError(
            "weights of PyTorch are the path of a file or a state dict; given "
            f"{type(source).__name__}"
        )
    else:
        path = files.existing(source, SUFFIXES)
        name = path.name
        held = _safetensors(path) if path.suffix.lower() == ".safetensors" else _pickled(path)
    tensors = {k: _array(v) for k, v in _state(held, name).items()}
    wrapper = ""
    while start := next((w for w in _WRAPPERS if all(k.startswith(w) for k in tensors)), ""):
        tensors = {k.removeprefix(start): v for k, v in tensors.items()}
        wrapper += start
    return Checkpoint(name, tensors, wrapper)


def _pickled(path: Path) -> Any:
    torch = _optional.require("torch", "torch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch, pickle and zip raise many kinds; the file matters
        said = str(e)
        found = re.search(r"GLOBAL (\S+) was not an allowed global", said)
        if found or "TorchScript" in said:
            what = f"refers to {found.group(1)!r}" if found else "is TorchScript"
            raise WeightsError(
                f"{str(path)!r} holds more than tensors (it {what}), and opening that could run "
                f"code: {_SAVE}"
            ) from None
        files.refuse_archive(path)
        reason = " ".join(said.split("\n")[0].split())[:150].rstrip(". ")
        # PyTorch's advice is to switch ``weights_only`` off.
        readable = " " in reason and "eights_only" not in reason and "Weights only" not in reason
        reason = reason if readable else type(e).__name__
        raise WeightsError(
            f"{str(path)!r} is not a whole file of torch.save ({reason}): fetch or save it again"
        ) from e


def _safetensors(path: Path) -> Any:
    _optional.require("safetensors", "presets")
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as e:  # of a Rust extension, and OSError
        raise WeightsError(
            f"{str(path)!r} is not a whole .safetensors file ({sentence(e)}): fetch or save it "
            "again"
        ) from e


def _is_tensor(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _state(held: Any, name: str) -> dict[str, Any]:
    """The state dict in what was read."""
    if isinstance(held, Mapping):
        found = {k: v for k, v in held.items() if isinstance(k, str) and _is_tensor(v)}
        inner = next((held[h] for h in _HOLDERS if isinstance(held.get(h), Mapping)), None)
        if inner is not None and any(_is_tensor(v) for v in inner.values()):
            return _state(inner, name)
        if found:
            return found
        keys = ", ".join(repr(k) for k in list(held)[:6]) or "nothing"
        raise WeightsError(f"{name} holds no tensors, but {keys}: {_SAVE}")
    raise WeightsError(f"{name} is no state dict, but a {type(held).__name__}: {_SAVE}")


def _array(tensor: Any) -> np.ndarray:
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
