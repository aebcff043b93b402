"""What an engine is: a function of a batch, and the record of why it was taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["Engine", "EngineRecord", "Run", "relative_error"]

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class EngineRecord:
    """Which engine computes the features, and what the others gave.

    Attributes:
        name: ``"keras"``, ``"openvino"``, ``"openvino-bfloat16"`` or ``"onnxruntime"``.
        error: relative error against Keras on the probe, ``||keras - engine|| / ||keras||``, the
            largest over the outputs; 0 for Keras itself.
        examples_per_second: as timed on the probe, or ``None`` if nothing was timed.
        tried: for each engine that was considered its name, and what it gave or why it was not
            taken, in words.
    """

    name: str = "keras"
    error: float = 0.0
    examples_per_second: float | None = None
    tried: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The record for JSON.

        Examples:
            >>> EngineRecord(tried=(("openvino", "not installed"),)).to_dict()["tried"]
            {'openvino': 'not installed'}
        """
        return {**dataclasses.asdict(self), "tried": dict(self.tried)}

    def __str__(self) -> str:
        head = f"engine: {self.name}"
        if self.name != "keras":
            head += f", relative error {self.error:.1e}"
        others = [f"  {name}: {what}" for name, what in self.tried]
        return "\n".join([head, *others])


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """Computes the outputs of a model, batch by batch.

    Attributes:
        record: which engine it is, and why.
    """

    record: EngineRecord
    _run: Run = dataclasses.field(repr=False)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Computes one batch.

        Args:
            arrays: one array for each flat input, in the order of ``model.inputs`` and of the
                shapes of the probe.

        Returns:
            One array for each flat output, in the dtypes that Keras gives. They are the caller's
            own: none is a view of ``arrays``, nor changed by the next call.
        """
        found = self._run(arrays)
        return [x.copy() if any(np.may_share_memory(x, a) for a in arrays) else x for x in found]


def relative_error(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """The largest ``||a - b|| / ||a||`` over pairs of arrays.

    Returns:
        Infinity where shapes differ, or where either of a pair is not finite.

    Examples:
        >>> relative_error([np.array([3.0, 4.0])], [np.array([3.0, 4.5])])
        0.1
        >>> relative_error([np.zeros(2)], [np.array([0.0, np.nan])])
        inf
    """
    if len(expected) != len(found):
        return float("inf")
    return max(map(_error, expected, found), default=0.0)


def _error(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype("float64"), b.astype("float64")
    distance = float(np.linalg.norm(a - b))
    if not np.isfinite(distance):
        return float("inf")
    size = float(np.linalg.norm(a))
    if not distance:
        return 0.0
    return distance / size if size else float("inf")
