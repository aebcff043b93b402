"""The gates of recurrent layers that were saved with the ``hard_sigmoid`` of Keras 2.

It was ``clip(x / 5 + 1/2, 0, 1)`` there, the default of LSTM and GRU until 2.2, and is
``clip(x / 6 + 1/2, 0, 1)`` in Keras 3. So weights that lead into gates are scaled by 6/5.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from finetune_keras._errors import WeightsError
from finetune_keras.backbones.legacy.network import Part

__all__ = ["sharpen"]


def sharpen(top: Part) -> None:
    """Scales what leads into hard gates, in place."""
    for leaf in top.leaves():
        for layer in _recurrent(leaf.layer):
            if _is_hard(layer):
                _scale(layer)


def _recurrent(layer: Any) -> list[Any]:
    """The layers or cells with gates in a layer."""
    if isinstance(layer, keras.layers.Bidirectional):
        return _recurrent(layer.forward_layer) + _recurrent(layer.backward_layer)
    if isinstance(layer, keras.layers.Wrapper):
        return _recurrent(layer.layer)
    if isinstance(layer, keras.layers.StackedRNNCells):
        return [found for cell in layer.cells for found in _recurrent(cell)]
    if isinstance(layer, keras.layers.RNN):
        return _recurrent(layer.cell)
    return [layer] if hasattr(layer, "recurrent_activation") else []


def _is_hard(cell: Any) -> bool:
    return keras.activations.serialize(cell.recurrent_activation) == "hard_sigmoid"


def _scale(cell: Any) -> None:
    kernel = cell.kernel
    kind = type(cell).__name__
    gates = {"GRU": (1, 1, 0), "LSTM": (1, 1, 0, 1)}
    which = next((g for start, g in gates.items() if kind.startswith(start)), None)
    if which is None and kind.startswith("ConvLSTM"):
        which = gates["LSTM"]
    if which is None:
        raise WeightsError(f"a {kind} with recurrent_activation='hard_sigmoid' cannot be read")
    factors = np.where(np.repeat(which, kernel.shape[-1] // len(which)), 1.2, 1.0)
    for variable in (kernel, cell.recurrent_kernel, cell.bias):
        if variable is not None:
            value = keras.ops.convert_to_numpy(variable)
            variable.assign((value * factors).astype(value.dtype))
