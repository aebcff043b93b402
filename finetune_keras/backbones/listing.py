"""The backbones that have a name, with what is published of them; nothing is fetched.

What is said of ``keras.applications`` stands in ``applications.json``, written by
``scripts/applications_table.py``, with where each number comes from. KerasHub tells of its presets
itself.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from finetune_keras._errors import nearest
from finetune_keras.backbones import applications, letters

__all__ = ["Listing", "Row", "list_backbones"]

_TABLE = Path(__file__).with_name("applications.json")
_HEAD = ("name", "inputs", "parameters", "pixels", "top-1", "top-5", "download", "source")
_LEFT = (0, 1, 7)  # columns of words; the rest are numbers


@dataclasses.dataclass(frozen=True)
class Row:
    """One backbone.

    Attributes:
        name: what `backbone` takes.
        inputs: ``"image"``, ``"text"``, ``"audio"``, or several of them.
        parameters: number of scalars, without a classifier.
        input_size: height and width of the images that it was made for, ``None`` where its source
            does not say.
        top1: accuracy on ImageNet's validation images in percent, as published by the source, or
            ``None``.
        top5: the same for the five best classes.
        download_mb: of the weights, about, in units of 1e6 bytes: 4 bytes a parameter. Large
            language models are stored in half of that.
        source: ``"keras.applications"``, ``"KerasHub"`` or ``"finetune_keras"``.
        description: what the source says of it.
    """

    name: str
    inputs: str
    parameters: int
    input_size: tuple[int, int] | None
    top1: float | None
    top5: float | None
    download_mb: float
    source: str
    description: str = ""


@dataclasses.dataclass(frozen=True, repr=False)
class Listing(Sequence):
    """What `list_backbones` returns: rows, and as text or in a notebook a table."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return Listing(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def names(self) -> list[str]:
        """The names, in the order of the rows."""
        return [row.name for row in self.rows]

    def to_dict(self) -> dict[str, dict]:
        """The rows by name as plain Python values, ready for JSON or a data frame."""
        return {row.name: dataclasses.asdict(row) for row in self.rows}

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            _HEAD,
            *(
                (
                    r.name,
                    r.inputs,
                    f"{r.parameters:,}",
                    f"{r.input_size[0]} x {r.input_size[1]}" if r.input_size else "",
                    f"{r.top1:.1f} %" if r.top1 else "",
                    f"{r.top5:.1f} %" if r.top5 else "",
                    f"{r.download_mb:,.0f} MB" if r.download_mb else "",
                    r.source,
                )
                for r in self.rows
            ),
        ]

    def __str__(self) -> str:
        table = self._cells()
        widths = [max(len(cells[i]) for cells in table) for i in range(len(_HEAD))]

        def line(cells: tuple[str, ...]) -> str:
            padded = (
                c.ljust(w) if i in _LEFT else c.rjust(w)
                for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join(padded).rstrip()

        head, *body = map(line, table)
        return "\n".join([head, "-" * max(map(len, [head, *body])), *body])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        head, *body = self._cells()
        body_rows = "".join(row(cells, "td") for cells in body)
        return f"<table><thead>{row(head, 'th')}</thead><tbody>{body_rows}</tbody></table>"


def list_backbones(pattern: str = "*") -> Listing:
    """The names that `backbone` takes, with what is published of each; without the network.

    Folders, files and handles are not in it: there is no end of them.

    Args:
        pattern: a part of the name, or a pattern with ``*`` and ``?`` for the whole of it.
            Capitals, hyphens and underscores do not matter.

    Returns:
        A `Listing`: rows in a sequence, a table by ``print`` or in a notebook.

    Raises:
        ValueError: if no name fits, with the nearest ones.

    Examples:
        >>> for row in list_backbones("MobileNetV3*[el]"):
        ...     print(row.name, row.parameters, row.input_size, row.top1)
        mobilenetv3large 2996352 (224, 224) 75.6
        mobilenetv3small 939120 (224, 224) 68.1
    """
    if not isinstance(pattern, str):
        raise TypeError(f"list_backbones takes a pattern such as 'resnet*'; given {pattern!r}")
    wanted = applications.tidy(pattern)
    whole = wanted if re.search(r"[*?\[]", wanted) else f"*{wanted}*"
    every = _rows()
    found = tuple(r for r in every if fnmatchcase(applications.tidy(r.name), whole))
    if not found:
        near = nearest(pattern, [r.name for r in every], key=applications.tidy)
        raise ValueError(f"no backbone's name fits {pattern!r}; {near}")
    return Listing(found)


@functools.cache
def _rows() -> tuple[Row, ...]:
    return (_letters(), *_applications(), *_presets())


def _letters() -> Row:
    with np.load(letters.WEIGHTS_PATH) as arrays:
        parameters = sum(a.size for a in arrays.values())
    about = "a small residual network for symbols; ships with this package"
    size = letters.IMAGE_SIZE
    return Row("letters_resnet", "image", parameters, size, None, None, 0, "finetune_keras", about)


def _applications() -> Iterator[Row]:
    table = json.loads(_TABLE.read_text(encoding="utf-8"))["networks"]
    for name in applications.names():
        if name in table:  # a later Keras may have more
            said = table[name]
            yield Row(
                name,
                "image",
                said["parameters"],
                tuple(said["input_size"]),
                said["top1"],
                said["top5"],
                4e-6 * said["parameters"],
                "keras.applications",
            )


def _presets() -> Iterator[Row]:
    import keras_hub

    takes = {
        "image": keras_hub.layers.ImageConverter.presets,
        "audio": keras_hub.layers.AudioConverter.presets,
        "text": keras_hub.tokenizers.Tokenizer.presets,
    }
    presets = keras_hub.models.Backbone.presets
    for name in sorted(presets):
        said = presets[name]["metadata"]
        inputs = ", ".join(kind for kind, names in takes.items() if name in names)
        about = " ".join(said["description"].split())
        # The one place where KerasHub says it before the preset is fetched.
        size = re.search(r"\b(\d{2,4}) ?x ?(\d{2,4})\b", about) if "image" in inputs else None
        yield Row(
            name,
            inputs,
            said["params"],
            (int(size[1]), int(size[2])) if size else None,
            None,
            None,
            4e-6 * said["params"],
            "KerasHub",
            about,
        )
