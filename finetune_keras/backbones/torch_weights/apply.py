"""PyTorch's tensors onto a Keras network, by a table of names: all of it, or nothing."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from finetune_keras import graph
from finetune_keras._errors import SelectionError, WeightsError, nearest, sentence
from finetune_keras.backbones import whole
from finetune_keras.backbones.loaded import Loaded
from finetune_keras.backbones.torch_weights import layout
from finetune_keras.backbones.torch_weights.names import Names, rows
from finetune_keras.backbones.torch_weights.reader import Checkpoint, read

__all__ = ["Match", "load_torch", "match"]


def load_torch(
    model: keras.Model, weights: str | os.PathLike | Mapping[str, Any], names: Names
) -> Loaded:
    r"""Loads the weights of a network of your own from PyTorch.

    Arrays are put into the order of axes that each layer has (convolutions of all kinds, dense
    layers, also behind a ``Flatten``, attention, normalisations, embeddings). The networks have to
    compute the same: ``padding="same"`` with a stride pads otherwise than PyTorch does, and
    ``BatchNormalization`` has another ``epsilon`` by default (1e-3; PyTorch has 1e-5).

    Args:
        model: functional, sequential or built; its weights are overwritten, or, if anything does
            not fit, none is.
        weights: a ``.pth``, ``.pt``, ``.th`` or ``.bin`` file of ``torch.save``, which is read
            with ``weights_only=True``; a ``.safetensors`` file; or a state dict. ``module.`` of
            ``DataParallel`` before all names is taken off.
        names: for each variable the tensor to load: a dict from regular expressions to names, of
            which the first that matches the whole path wins. A path is that of a variable
            (``"stem/conv/kernel"``, as in ``graph.opened(model).units``), and the name that of a
            tensor; or the path of a layer (``"stem/conv"``), and the name that of a module, to
            which ``.weight``, ``.bias``, ``.running_mean`` or ``.running_var`` is added. Names may
            refer to groups, as in ``r"layer\1.conv"``, or be functions of the ``re.Match``. A pair
            ``(name, function)`` passes PyTorch's array through the function first, such as to take
            a third of it, and is needed for kernels of other layers than these, such as recurrent
            ones; ``None`` leaves a variable as it is. In place of the dict, a function from the
            path of a variable to the name of a tensor, such a pair, or ``None``.

    Returns:
        A `Loaded`: paths of the variables that were loaded, and names of the tensors that were not
        used in ``.skipped``. A warning says so if among these are layers of a series of which
        others were used, as of a deeper network.

    Raises:
        SelectionError: if a row matches nothing, no row matches a variable, or two variables get
            one tensor.
        WeightsError: if the file cannot be read, or a tensor is missing or of another shape.

    Examples:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="dense_1")])
        >>> state = {"fc1.weight": np.ones((3, 2)), "fc1.bias": np.zeros(3)}
        >>> print(load_torch(model, state, {r"dense_(\d)": r"fc\1"}))
        2 loaded
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"load_torch takes a keras.Model; given {type(model).__name__}")
    if not isinstance(names, Mapping) and not callable(names):
        raise TypeError(
            "names= is a dict from Keras paths to names in PyTorch, or a function of a path; "
            f"given {type(names).__name__}"
        )
    file = read(weights)
    found = match(model, file, names)
    found.assign()
    unused = {n.removeprefix(file.wrapper) for n in found.unused}
    more = whole.deeper(sorted(unused), file.tensors.keys() - unused)
    if more:
        warnings.warn(
            f"{file.name} has {len(more)} tensors of layers like those of {model.name!r} that it "
            f"has no place for, the first of them {more[0]!r}: is it of a deeper network? "
            "(.skipped has all that is left over)",
            stacklevel=2,
        )
    return found.loaded()


@dataclasses.dataclass(frozen=True)
class Match:
    """Which array goes into which variable; nothing is assigned yet.

    Attributes:
        pairs: variables and the arrays for them.
        kept: paths of the variables that are left as they are.
        unused: names of the tensors in the file that no variable takes.
    """

    pairs: tuple[tuple[graph.Unit, np.ndarray], ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def assign(self) -> None:
        """Puts the arrays into the variables."""
        for unit, array in self.pairs:
            unit.variable.assign(array.astype("float32") if array.dtype.kind == "f" else array)

    def loaded(self) -> Loaded:
        """The record of it."""
        paths = tuple(unit.path for unit, _ in self.pairs)
        return Loaded(loaded=paths, random=self.kept, skipped=self.unused)


def match(
    model: keras.Model, file: Checkpoint, names: Names, *, prefix: str = "", hint: str = ""
) -> Match:
    """Finds the array for each variable of a model.

    Args:
        model: nothing in it is changed.
        file: the tensors.
        names: as for `load_torch`.
        prefix: what stands before each of the names in the file.
        hint: what to say after the name of the model if it does not fit.
    """
    seen = graph.opened(model)
    table = rows(seen.units, names)
    maps = layout.flattened(seen)
    pairs, kept, misfits = [], [], []
    used: dict[str, str] = {}
    for unit in seen.units:
        if table[unit.path] is None:
            kept.append(unit.path)
            continue
        name, change = table[unit.path]
        name = prefix + name
        if name not in file.tensors:
            misfits.append((unit.path, f"no tensor {name!r}; {nearest(name, file.tensors)}"))
            continue
        if change is None and name in used:
            raise SelectionError(
                f"names= gives {used[name]!r} and {unit.path!r} the same tensor {name!r}: where "
                "that is meant, give a pair of the name and a function of the array"
            )
        used[name] = unit.path
        array, problem = _fitted(file.tensors[name], change, unit, maps.get(id(unit.variable)))
        if problem:
            misfits.append((unit.path, f"{name!r} {problem}"))
        else:
            pairs.append((unit, array))
    if misfits:
        path, reason = misfits[0]
        raise WeightsError(
            f"{file.name} does not fit {model.name!r}{hint}: {len(pairs)} of "
            f"{len(pairs) + len(misfits)} weights have their tensor; the first without is "
            f"{path!r}: {reason}"
        )
    unused = [n for n in file.tensors if n not in used]
    unused.sort(key=lambda n: n.endswith("num_batches_tracked"))  # counters, which say nothing
    return Match(tuple(pairs), tuple(kept), tuple(file.wrapper + n for n in unused))


def _unusable(array: np.ndarray, unit: graph.Unit) -> str:
    """What is wrong with the values of an array that fits."""
    if not keras.backend.is_float_dtype(unit.variable.dtype):
        return ""
    if array.dtype.kind in "iub":
        return f"holds {array.dtype} and it takes floats: are the weights quantised?"
    bad = array.size - int(np.isfinite(array.astype("float32")).sum())
    return f"has {bad} values that are not finite" if bad else ""


def _fitted(array: np.ndarray, change, unit: graph.Unit, maps) -> tuple[np.ndarray, str]:
    """The array for a variable, and what is wrong with it."""
    given, shape = array.shape, tuple(unit.variable.shape)
    if change is not None:
        try:
            array = np.asarray(change(array))
        except Exception as e:  # the user's own function
            return array, f"of shape {given} makes the function of its row fail: {sentence(e)}"
    elif not layout.has_order(unit):
        return array, (
            f"is for a kernel of a {type(unit.layer).__name__}, of which the order of axes in "
            "PyTorch is not known: give its row a function, as in (name, np.transpose)"
        )
    array = layout.keras_array(array, unit, maps)
    if array.shape == shape:
        return array, _unusable(array, unit)
    became = f", {array.shape} here," if array.shape != given else ""
    return array, f"has shape {given}{became} and it takes {shape}"
