"""The classes that a data set names, against those of the head, or of another data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from finetune_keras.check.findings import Finding
from finetune_keras.data.labels import numeric
from finetune_keras.outputs import Output

__all__ = ["clash", "no_values", "number", "order", "permuted"]


def clash(names: Sequence[str], others: Sequence[str]) -> int | None:
    """The first label that two lists of names call otherwise.

    ``None`` if one list begins as the other does, or one has numbers in place of names.

    Examples:
        >>> clash(["cat", "dog"], ["cat", "dog", "fox"]), clash(["cat", "dog"], ["cat", "fox"])
        (None, 1)
        >>> clash(["cat", "dog"], ["0", "1"]) is None
        True
    """
    if not names or not others or numeric(names) != numeric(others):
        return None
    # One name may be written in two ways, with a letter and its accent as one character or two.
    pairs = zip(map(_composed, names), map(_composed, others), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), None)


def order(output: Output, names: Sequence[str]) -> Iterator[Finding]:
    """Names that the data set gives its labels, against those of the head."""
    own = output.recorded.class_names if output.recorded is not None else ()
    at = clash(names, own)
    if at is not None and len(own) > 1:  # the one name of a yes-or-no head is that of label 1
        yield _otherwise(at, names, own)


def permuted(output: Output, names: Sequence[str]) -> Iterator[Finding]:
    """`order`, for certain: a name that both have is another label in each.

    Names that only one has may be the same classes, named more nicely.
    """
    own = output.recorded.class_names if output.recorded is not None else ()
    place = {_composed(name): i for i, name in enumerate(own)}
    for i, name in enumerate(map(_composed, names)):
        if len(own) > 1 and place.get(name, i) != i:
            at = i if i < len(own) else place[name]
            yield _otherwise(at, names, own)
            return


def number(output: Output, names: Sequence[str]) -> Iterator[Finding]:
    """Another number of classes in the data set than the head has."""
    own = output.recorded.class_names if output.recorded is not None else ()
    size = max(output.size, 2)  # one sigmoid is for two classes
    if not names or output.kind not in ("classification", "binary", "ordinal"):
        return
    if len(names) == size or clash(names, own) is not None:
        return
    if len(names) > size:
        more = f"{names[size]!r} and what comes after it are outside the head's range"
    elif numeric(names):
        return  # the last labels may only not have come up
    else:
        lacking = f"{own[len(names)]!r}, say, has" if len(own) == size else "the others have"
        more = f"{lacking} no example"
    yield Finding(
        "class_names",
        f"the data set has {len(names)} classes and the model {size}: {more}",
        "build the head with class_names=dataset.class_names",
    )


def no_values(output: Output, y: np.ndarray | None, names: Sequence[str]) -> Iterator[Finding]:
    """Numbers of classes where numbers are to be predicted."""
    places = [str(i) for i in range(len(names))]
    if output.kind != "regression" or not names or list(names) == places:
        return  # with such names a label is what it was
    if y is not None and y.dtype.kind in "iu":
        yield Finding(
            "labels",
            f"the labels are numbers of classes (0 is {names[0]!r}), and the output is numbers to "
            "predict",
            "a data set with labels='numbers', or heads.Classification(class_names=dataset)",
        )


def _otherwise(at: int, names: Sequence[str], own: Sequence[str]) -> Finding:
    return Finding(
        "class_names",
        f"label {at} is {names[at]!r} in the data set and {own[at]!r} in the model",
        "build the head with class_names=dataset.class_names",
    )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
