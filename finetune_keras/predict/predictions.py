"""What a prediction says: names and confidences rather than an array."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence

import numpy as np

__all__ = ["Prediction", "Predictions"]

_ROWS = 8  # of a table


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        name: of the class; its number if the model has no names.
        confidence: its probability, 0 to 1, as the model sees it.
        index: the number of the class.
    """

    name: str
    confidence: float
    index: int

    def __str__(self) -> str:
        return f"{self.name} {self.confidence:.3f}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictions(Sequence):
    """The answers of one output, one entry an example.

    | kind                        | an entry                                               |
    |-----------------------------|--------------------------------------------------------|
    | `classification`, `ordinal` | the best classes, at most `top`, best first            |
    | `binary`                    | both answers, the better first (one with `top=1`)      |
    | `multi_label`               | all classes from 0.5 on, best first; there may be none |
    | `regression`                | a float; a tuple of floats where there are several     |

    Classes of equal confidence come in the order of their numbers.

    Attributes:
        kind: as in the table.
        values: float array ``(examples, classes)`` of probabilities, two columns for a binary
            answer; the values themselves for a regression.
        class_names: one name a column.
        examples: what each example is called: its file, or its number.
        top: how many classes an entry has at most.

    Examples:
        >>> values = np.array([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]])
        >>> found = Predictions("classification", values, ("cat", "dog", "fox"), ("a", "b"), 2)
        >>> print(found)
        a  dog 0.700  cat 0.200
        b  cat 0.400  fox 0.400
        >>> found[0][0].name, found.names
        ('dog', ('dog', 'cat'))
    """

    kind: str
    values: np.ndarray
    class_names: tuple[str, ...]
    examples: tuple[str, ...]
    top: int

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index):
        """An entry, or `Predictions` of the examples of a slice."""
        if isinstance(index, slice):
            return dataclasses.replace(
                self, values=self.values[index], examples=self.examples[index]
            )
        row = self.values[index]
        if self.kind == "regression":
            return float(row[0]) if len(row) == 1 else tuple(map(float, row))
        order = np.argsort(-row, kind="stable")
        several = self.kind == "multi_label"
        order = order[row[order] >= 0.5] if several else order[: self.top]
        return tuple(Prediction(self.class_names[i], float(row[i]), int(i)) for i in order)

    @property
    def probabilities(self) -> np.ndarray:
        """Array ``(examples, classes)``; a regression has none."""
        if self.kind == "regression":
            raise ValueError("a regression has no probabilities: its numbers are in .values")
        return self.values

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the best answer to each example; of several labels the likeliest."""
        if self.kind == "regression":
            raise ValueError("a regression has no names: its numbers are in .values")
        return tuple(self.class_names[i] for i in self.values.argmax(axis=-1))

    def to_dict(self) -> dict:
        """The entries as plain Python values, ready for JSON."""
        entries = [
            list(map(dataclasses.asdict, entry))
            if isinstance(entry, tuple) and self.kind != "regression"
            else entry
            for entry in self
        ]
        return {
            "kind": self.kind,
            "class_names": list(self.class_names),
            "examples": list(self.examples),
            "predictions": entries,
        }

    def _cells(self) -> list[list[str]]:
        rows = []
        for name, entry in zip(self.examples[:_ROWS], self[:_ROWS], strict=True):
            if self.kind == "regression":
                entry = entry if isinstance(entry, tuple) else (entry,)
                cells = [f"{v:.4g}" for v in entry]
            else:
                cells = list(map(str, entry)) or ["none"]
            rows.append([name, *cells[:_ROWS]])
        return rows

    def __str__(self) -> str:
        if not len(self):
            return "no examples"
        rows = self._cells()
        width = max(map(len, rows))
        rows = [r + [""] * (width - len(r)) for r in rows]
        widths = [max(len(r[i]) for r in rows) for i in range(width)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        if len(self) > _ROWS:
            lines.append(f"... ({len(self)} examples)")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>"
            for cells in self._cells()
        )
        more = f"<p>... ({len(self)} examples)</p>" if len(self) > _ROWS else ""
        return f"<table><tbody>{rows}</tbody></table>{more}"
