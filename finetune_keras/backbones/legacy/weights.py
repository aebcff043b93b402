"""Weights of files of Keras 2, read by the names that stand in them.

Two layouts: attributes ``layer_names`` and ``weight_names`` (all of Keras 1 and 2), and groups
``layers/conv2d/vars/0`` (``.keras`` and ``.weights.h5`` since 2.12), which Keras 3 shares.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from finetune_keras._errors import WeightsError
from finetune_keras.backbones.legacy.network import Part

if TYPE_CHECKING:
    import h5py

__all__ = ["by_groups", "by_names"]


def by_names(group: h5py.Group, top: Part) -> None:
    """Weights under ``layer_names`` and ``weight_names``; nothing is set unless all of it fits.

    In the group of a nested model its frozen weights stand after those that learn, so order alone
    says nothing there: their names say which layer they are of.
    """
    parts = {p.name: p for p in top.parts}
    todo: list[tuple[keras.Variable, np.ndarray]] = []
    filled = set()
    for name in _strings(group, "layer_names"):
        if name not in group:
            raise WeightsError(f"the file is not whole: it lists a layer {name!r} and has it not")
        _no_links(group, name)
        arrays = [(n, _array(group[name], n)) for n in _strings(group[name], "weight_names")]
        if not arrays:
            continue
        if name not in parts:
            raise WeightsError(f"the file has weights of a layer {name!r} that its config has not")
        filled.add(name)
        todo += _paired(parts[name], arrays)
    for name, part in parts.items():
        if name not in filled and any(_variables(leaf) for leaf in part.leaves()):
            raise WeightsError(f"the file has no weights for its layer {name!r}")
    _assign(todo, top)


def _paired(part: Part, arrays: list[tuple[str, np.ndarray]]) -> list:
    leaves = [leaf for leaf in part.leaves() if _variables(leaf)]
    if not leaves:
        raise WeightsError(
            f"the file has {len(arrays)} weights for the layer {part.name!r}, which has none"
        )
    shared = _by_leaf(leaves, arrays)
    if shared is None:  # names that say nothing: in the order of old, as Keras does
        variables = [*part.layer.trainable_weights, *part.layer.non_trainable_weights]
        return _in_order(part.name, variables, arrays)
    return [
        pair
        for leaf, own in zip(leaves, shared, strict=True)
        for pair in _in_order(leaf.name, _variables(leaf), own)
    ]


def _by_leaf(leaves: list[Part], arrays: list) -> list[list] | None:
    """The arrays of each leaf, or ``None`` if names do not tell whose they are."""
    if len(leaves) == 1:
        return [arrays]
    found: list[list] = [[] for _ in leaves]
    for name, array in arrays:
        holders = [
            (len(leaf.name), i) for i, leaf in enumerate(leaves) if f"/{leaf.name}/" in f"/{name}"
        ]
        longest = [i for length, i in holders if length == max(holders)[0]]
        if len(longest) != 1:
            return None
        found[longest[0]].append((name, array))
    whole = all(len(own) == len(_variables(leaf)) for leaf, own in zip(leaves, found, strict=True))
    return found if whole else None


def _in_order(name: str, variables: list[keras.Variable], arrays: list) -> list:
    if len(variables) != len(arrays):
        raise WeightsError(
            f"the file has {len(arrays)} weights for the layer {name!r}, which has {len(variables)}"
        )
    pairs = []
    for variable, (written, array) in zip(variables, arrays, strict=True):
        if tuple(variable.shape) != array.shape:
            array = _reshaped(variable, array, name, written)
        pairs.append((variable, array))
    return pairs


def _reshaped(variable, array, name, written):
    if array.size == np.prod(variable.shape, dtype=int):  # statistics of a Normalization
        squeezed = [n for n in array.shape if n != 1]
        if squeezed == [n for n in variable.shape if n != 1]:
            return array.reshape(variable.shape)
    raise WeightsError(
        f"the file has {written!r} of shape {array.shape} for the layer {name!r}, which has "
        f"{tuple(variable.shape)}"
    )


def _variables(leaf: Part) -> list[keras.Variable]:
    """In the order of Keras 2, whatever the flags of a single layer."""
    return [*leaf.layer.trainable_weights, *leaf.layer.non_trainable_weights]


def _assign(todo: Iterable[tuple[keras.Variable, np.ndarray]], top: Part) -> None:
    for variable, array in todo:
        variable.assign(array)
    for leaf in top.leaves():
        if hasattr(leaf.layer, "finalize_state"):  # Normalization computes with what it adapted
            leaf.layer.finalize_state()


def by_groups(file: h5py.File, model: keras.Model, top: Part) -> None:
    """Weights under ``layers/<class>_<n>/vars``.

    The numbers count layers of a class in the order of their model. That order and some classes
    are others here, so groups are renamed, and Keras loads the result.
    """
    import h5py  # comes with Keras

    old_root = "_layer_checkpoint_dependencies"  # of 2.12
    root = old_root if old_root in file else "layers"
    new = dict(_here(model))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "renamed.weights.h5"
        with h5py.File(path, "w") as out:
            for part, old in _there(top.parts, root):
                if part.layer is None or old not in file or id(part.layer) not in new:
                    continue
                _no_links(file, old)
                file.copy(file[old], out, name=new[id(part.layer)])
        model.load_weights(path)


def _there(parts: tuple[Part, ...], root: str) -> Iterator[tuple[Part, str]]:
    """Each layer that is no model, with its group in the file."""
    for part, own in zip(parts, _numbered(p.kind for p in parts), strict=True):
        if part.parts:
            inside = "/layer" if part.kind == "TimeDistributed" else ""
            yield from _there(part.parts, f"{root}/{own}{inside}/{root.split('/')[0]}")
        else:
            yield part, f"{root}/{own}"


def _here(model: keras.Model) -> Iterator[tuple[int, str]]:
    """The same of the model as it is now."""
    layers = model.layers
    for layer, own in zip(layers, _numbered(type(x).__name__ for x in layers), strict=True):
        path = f"layers/{own}"
        yield id(layer), path
        if isinstance(layer, keras.layers.TimeDistributed):
            layer, path = layer.layer, f"{path}/layer"
        if isinstance(layer, keras.Model):
            yield from ((i, f"{path}/{inner}") for i, inner in _here(layer))


def _numbered(kinds: Iterable[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for kind in kinds:
        name = _snake(kind)
        n = seen.get(name, 0)
        seen[name] = n + 1
        found.append(f"{name}_{n}" if n else name)
    return found


def _snake(name: str) -> str:
    """``Conv2DTranspose`` as ``conv2d_transpose``, as in Keras' files."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _strings(group: h5py.Group, name: str) -> list[str]:
    """A list of names; long ones were split over ``name0``, ``name1``, ..."""
    found: list[Any] = []
    if name in group.attrs:
        found = list(group.attrs[name])
    else:
        i = 0
        while f"{name}{i}" in group.attrs:
            found += list(group.attrs[f"{name}{i}"])
            i += 1
    return [n.decode() if isinstance(n, bytes) else str(n) for n in found]


def _array(group: h5py.Group, name: str) -> np.ndarray:
    _no_links(group, name)
    if name not in group:
        raise WeightsError(f"the file lacks the weight {name!r} that it lists")
    return np.asarray(group[name])


def _no_links(group: h5py.Group, name: str) -> None:
    """An HDF5 file may point to other files: those are not read."""
    import h5py  # comes with Keras

    where = group
    for step in name.split("/"):
        link = where.get(step, getlink=True) if step in where else None
        if link is not None and not isinstance(link, h5py.HardLink):
            raise WeightsError(f"the file has a link in place of {name!r}: it is not followed")
        if link is None:
            return
        where = where[step]
    found: list[str] = []

    def note(path, item):
        if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            found.append(path)

    if isinstance(where, h5py.Dataset):
        note(name, where)
    else:
        where.visititems(note)
    if found:
        raise WeightsError(f"the values of {found[0]!r} are in another file: they are not read")
