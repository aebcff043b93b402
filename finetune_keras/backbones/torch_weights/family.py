"""What a family of architectures has to say, so that its files can be read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from finetune_keras.backbones.torch_weights.names import Names

__all__ = ["IMAGENET", "Family", "Plan", "count", "no_options", "numbered"]

# What torchvision and timm scale pixels by, mostly: the mean and deviation of ImageNet.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Names under which people hold a backbone in a module of their own.
_HOLDERS = r"(?:(?:module|model|backbone|encoder|net|network|base|base_model|trunk|student)\.)*"

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A network as PyTorch has it, and the names of its weights there.

    Attributes:
        network: takes preprocessed images; its weights are random.
        names: from its paths to PyTorch's names, as for ``load_torch``.
        pixels: mean and deviation of pixels from 0 to 1.
    """

    network: keras.Model
    names: Names
    pixels: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET


@dataclasses.dataclass(frozen=True)
class Family:
    """Architectures of one kind.

    Attributes:
        names: short names of the architectures.
        namings: by library, a tensor at the input that every file of it has, and a regular
            expression for the beginnings of the names of all but the classifier's.
        make: from a name, the library, its tensors, the shape of an image or ``None``, and further
            options, a `Plan`.
        looks: the name of the architecture that tensors are of, or ``None``.
        usual: the name that `looks` gives to an architecture, from any of its names.
    """

    names: tuple[str, ...]
    namings: Mapping[str, tuple[str, str]]
    make: Callable[[str, str, Tensors, tuple | None, dict[str, Any]], Plan]
    looks: Callable[[Tensors], str | None]
    usual: Callable[[str], str] = str

    def naming(self, tensors: Tensors) -> tuple[str, str, Tensors] | None:
        """The library that names tensors so, what stands before its names in the file, and the
        tensors without that; ``None`` if they are of another family.
        """
        for library, (first, _) in self.namings.items():
            wanted = re.compile(f"({_HOLDERS}){re.escape(first)}")
            found = next((m for n in tensors if (m := wanted.fullmatch(n))), None)
            if found is not None:
                before = found[1]
                inside = {
                    n.removeprefix(before): t
                    for n, t in tensors.items()
                    if n[: len(before)] == before
                }
                return library, before, inside
        return None

    def trunk(self, library: str) -> re.Pattern:
        """Beginnings of the names that belong to the network without its classifier."""
        return re.compile(self.namings[library][1])


def count(tensors: Tensors, pattern: str) -> int:
    """How many different matches the beginnings of the names have."""
    return len({m[0] for n in tensors if (m := re.match(pattern, n))})


def no_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuses options of an architecture that has none."""
    if options:
        raise TypeError(f"{name!r} takes no {', '.join(f'{k}=' for k in options)}")


def numbered(function: Callable[..., str]) -> Callable[[re.Match], str]:
    """A name made from the groups of a match: numbers as integers, a single letter by its place.

    Examples:
        >>> name = numbered(lambda stage, block: f"layer{stage - 1}.{block}.conv1")
        >>> name(re.match(r"block(.)([a-z])", "block2c"))
        'layer1.2.conv1'
    """

    def named(found: re.Match) -> str:
        return function(
            *(
                int(g) if g.isdigit() else ord(g) - ord("a") if len(g) == 1 else g
                for g in found.groups()
            )
        )

    return named
