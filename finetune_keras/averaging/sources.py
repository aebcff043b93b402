"""What may be averaged: snapshots, models and files, read as the weights of one model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras

from finetune_keras import arrays, graph
from finetune_keras._errors import WeightsError
from finetune_keras.averaging import place
from finetune_keras.averaging.snapshot import SUFFIX, Snapshot, expect_model, snapshot
from finetune_keras.backbones import files
from finetune_keras.backbones.rebuild import rebuilt

__all__ = ["Reader", "located", "opened"]

_KINDS = "a snapshot, a model of the same architecture, or a .npz, .keras or .weights.h5 file"


class Reader:
    """Reads weights for one model.

    Args:
        model: whose architecture they are of.
        units: its variables.
    """

    def __init__(self, model: keras.Model, units: tuple[graph.Unit, ...]):
        self.model, self.units = model, units
        self._copy: keras.Model | None = None

    def read(self, source: Any, what: str) -> place.Weights:
        """The weights of a source in the order of the model's, all finite.

        Args:
            source: a `Snapshot`, a model, what ``model.get_weights()`` gave, or a path.
            what: names it in messages.

        Raises:
            WeightsError: if there is no such file, or it is of another architecture, or has NaN
                or infinity, or weights that cannot be averaged.
            TypeError: if it is nothing of this kind.
        """
        if isinstance(source, list | tuple) and source and all(map(arrays.is_array, source)):
            found = self._listed(source, what)
        elif isinstance(source, keras.Model):
            place.check_averageable(source, graph.opened(source).units)
            found = snapshot(source)
        elif isinstance(source, str | os.PathLike):
            found = self._file(source)
        elif isinstance(source, Snapshot):
            found = source
        else:
            hint = "; pass its .model" if hasattr(source, "model") else ""
            raise TypeError(f"{what} is {_KINDS}; given a {type(source).__name__}{hint}")
        weights = place.matched(found.weights, self.units, what)
        place.check_finite(weights, self.units, what)
        return weights

    def _file(self, path: str | os.PathLike) -> Snapshot:
        path = located(path)
        if path.suffix.lower() == SUFFIX or files.kind(path) == "model":
            return snapshot(path)
        # Files of weights know no paths of ours: Keras puts them where they belong, in a copy.
        if self._copy is None:
            try:
                self._copy = rebuilt(self.model)
            except ValueError as e:
                raise WeightsError(
                    f"{path.name!r} cannot be read without changing the model, since {e}; load it "
                    "into a model yourself, and pass finetune_keras.snapshot(of_that)"
                ) from e
        files.load_into(self._copy, path, self.model.name)
        return snapshot(self._copy)

    def _listed(self, given: Any, what: str) -> Snapshot:
        """What ``get_weights`` gave, in the order of ``model.weights``."""
        order = {id(v): i for i, v in enumerate(self.model.weights)}
        if len(given) != len(order):
            raise WeightsError(
                f"{what} has {len(given)} arrays, and {self.model.name!r} has {len(order)} weights"
            )
        taken = {u.path: arrays.to_numpy(given[order[id(u.variable)]]) for u in self.units}
        return Snapshot("get_weights()", taken)

    def shares(self, source: Any) -> bool:
        """Whether a source is a model with variables of this one."""
        if not isinstance(source, keras.Model):
            return False
        mine = {id(u.variable) for u in self.units}
        return any(id(v) in mine for v in source.weights)


def located(path: str | os.PathLike) -> Path:
    """The path of a file that is there.

    Raises:
        WeightsError: if it is not, with what the folder has.
    """
    return files.existing(path, (SUFFIX, ".keras", ".h5"))


def opened(model: Any) -> tuple[graph.Unit, ...]:
    """The variables of a model whose weights can be averaged."""
    expect_model(model)
    units = graph.opened(model).units
    place.check_averageable(model, units)
    return units
