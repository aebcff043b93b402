"""The few exceptions, and the wording they share.

Every message is one line: what was given, what was expected, and the nearest right thing.
All of them are ``ValueError``s, so that ``except ValueError`` around a builder keeps working.
"""

from __future__ import annotations

import difflib
import numbers
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

__all__ = [
    "CacheError",
    "HeadError",
    "LossError",
    "SelectionError",
    "WeightsError",
    "nearest",
    "plain",
    "sentence",
    "shown",
    "whole",
]


class SelectionError(ValueError):
    """A name or a selector that finds nothing in the model it was applied to."""


class WeightsError(ValueError):
    """Pretrained weights that are missing, unreadable, or made for another architecture."""


class CacheError(ValueError):
    """A folder of features, or of a run, that cannot be used, or cannot be written."""


class HeadError(ValueError):
    """A head that does not fit the features it was put on, or clashes with what is there."""


class LossError(ValueError):
    """A loss that is no number before anything was learned."""


def nearest(
    name: str, names: Iterable[str], *, limit: int = 3, key: Callable[[str], str] = str
) -> str:
    """Returns the end of a sentence: the closest of ``names``, or the first few of them.

    ``key`` gives what is compared, such as a name without hyphens.

    Examples:
        >>> nearest("resnet5", ["resnet50", "vgg16"])
        "did you mean 'resnet50'?"
    """
    names = list(dict.fromkeys(names))
    # A short name inside a long one ("conv4_block6" for "conv4_block6_out") is close, whatever
    # the edit distance says.
    keys = {n: key(n) for n in names}
    name = key(name)
    likely = difflib.get_close_matches(name, keys.values(), n=limit, cutoff=0.6)
    close = sorted((n for n in names if keys[n] in likely), key=lambda n: likely.index(keys[n]))
    close += [n for n in names if n not in close and len(name) >= 3 and name in keys[n]][:limit]
    if close:
        return "did you mean " + " or ".join(repr(n) for n in close[:limit]) + "?"
    shown = ", ".join(repr(n) for n in names[:8])
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return f"there are: {shown}{more}" if names else "there are none"


def plain(value: Any) -> Any:
    """A number of NumPy's as Python's, which is shown without its type.

    Examples:
        >>> plain(np.float32(0.5)), plain("x")
        (0.5, 'x')
    """
    return value.item() if isinstance(value, np.generic) else value


def shown(value: Any) -> str:
    """A value as it stands in a message; in a few words, if it would fill more than one line.

    Examples:
        >>> shown("x"), shown(np.zeros((90, 90)))
        ("'x'", 'a ndarray of shape (90, 90)')
    """
    text = repr(plain(value))
    if "\n" not in text and len(text) <= 200:
        return text
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"a {type(value).__name__}{shape}"


def whole(name: str, value: Any, low: int) -> int:
    """A whole number, of Python or NumPy, as Python's.

    Raises:
        ValueError: if it is anything else, or less than ``low``.

    Examples:
        >>> whole("rows", np.int64(3), 1)
        3
    """
    number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not number or value < low:
        raise ValueError(f"{name} is a whole number from {low} on; given {plain(value)!r}")
    return int(value)


def sentence(error: BaseException) -> str:
    """What another library's exception says, in one line without colours and lists of arguments.

    Examples:
        >>> sentence(ValueError("Bad shape. Arguments received by Dense.call(): ..."))
        'Bad shape'
    """
    text = re.sub(r"\x1b\[\d*m", "", str(error)).split("Arguments received by")[0]
    text = re.sub(r"Exception encountered when calling [\w.()]+\.", "", text)
    text = " ".join(text.split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]}"
