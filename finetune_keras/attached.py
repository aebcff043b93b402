"""State of ours that travels in the weights of a model.

Keras saves what hangs on a model as an attribute, if it is of one of its own kinds, under the
attribute's name, and on load skips what the model does not have. So such a file is read by Keras
alone, which drops the state, and by whoever attaches it first, who gets it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import keras
import numpy as np

__all__ = ["Attached", "stored"]


class Attached(keras.losses.Loss):
    """Hang it on a model: ``write()`` gives the arrays to save, ``read(arrays)`` takes them back.

    It is a loss because a loss is neither counted among a model's weights nor among its metrics,
    and has no part in training unless it is compiled.

    Args:
        write: gives arrays by name.
        read: takes them when a file that has them is loaded into the model.

    Examples:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> found = {}
        >>> model.ftk_example = Attached(lambda: {"n": np.array(3)}, found.update)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_weights(f"{folder}/mine.weights.h5")
        ...     model.load_weights(f"{folder}/mine.weights.h5")
        >>> int(found["n"])
        3
    """

    def __init__(
        self,
        write: Callable[[], Mapping[str, np.ndarray]],
        read: Callable[[dict[str, np.ndarray]], None],
    ) -> None:
        super().__init__(name="attached")
        self._write, self._read = write, read

    def save_own_variables(self, store: dict) -> None:
        """Called by Keras where it saves weights."""
        for name, value in self._write().items():
            store[name] = np.asarray(value)

    def load_own_variables(self, store: Mapping) -> None:
        """Called by Keras where it loads weights; ``store`` is empty if the file has none."""
        # Keras' entry of a file has keys, and no iterator.
        found = {name: np.asarray(store[name]) for name in list(store.keys())}
        if found:
            self._read(found)


def stored(weights: Mapping, name: str) -> dict[str, np.ndarray]:
    """What an open weights file (of ``h5py``) has of the attribute ``name``; empty if nothing."""
    path = f"{name}/vars"
    return {k: np.asarray(v) for k, v in weights[path].items()} if path in weights else {}
