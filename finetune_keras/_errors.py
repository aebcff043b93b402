"""The few exceptions, and the wording they share.

Every message is one line: what was given, what was expected, and the nearest right thing.
All of them are ``ValueError``s, so that ``except ValueError`` around a builder keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CacheError", "HeadError", "SelectionError", "WeightsError", "nearest"]


class SelectionError(ValueError):
    """A name or a selector that finds nothing in the model it was applied to."""


class WeightsError(ValueError):
    """Pretrained weights that are missing, unreadable, or made for another architecture."""


class CacheError(ValueError):
    """A folder of features that cannot be used, or cannot be written."""


class HeadError(ValueError):
    """A head that does not fit the features it was put on, or clashes with what is there."""


def nearest(name: str, names: Iterable[str], *, limit: int = 3) -> str:
    """Returns the end of a sentence: the closest of ``names``, or the first few of them.

    Examples:
        >>> nearest("resnet5", ["resnet50", "vgg16"])
        "did you mean 'resnet50'?"
    """
    names = list(dict.fromkeys(names))
    # A short name inside a long one ("conv4_block6" for "conv4_block6_out") is close, whatever
    # the edit distance says.
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.6)
    close += [n for n in names if n not in close and len(name) >= 3 and name in n][:limit]
    if close:
        return "did you mean " + " or ".join(repr(n) for n in close[:limit]) + "?"
    shown = ", ".join(repr(n) for n in names[:8])
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return f"there are: {shown}{more}" if names else "there are none"
