"""Labels as users have them, names or numbers, as what a loss takes."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune_keras._errors import nearest

__all__ = ["KINDS", "checked", "encode", "halved", "missing", "named", "numeric"]

KINDS = ("auto", "classes", "numbers")


def encode(
    values: Sequence[Any] | np.ndarray,
    class_names: Sequence[str] | None = None,
    *,
    kind: str = "auto",
    where: Callable[[int], str] = "row {}".format,
) -> tuple[np.ndarray, list[str]]:
    """Labels and the names of the classes.

    Text is names of classes: they get numbers in the order of the sorted names, as Keras gives
    them to folders. Whole numbers are classes as well, sorted by their size, so that 0, 1, 2 stay
    what they are. Other numbers are kept as numbers.

    Args:
        values: one label a row: text or numbers; numbers may come as text.
        class_names: the names in the order that you want; others are then an error.
        kind: ``"classes"`` or ``"numbers"`` where ``"auto"`` guesses wrong, such as for ages.
        where: what to call a row in messages.

    Returns:
        int32 labels from 0 on with the names, or float32 numbers with an empty list.

    Raises:
        ValueError: if a label is missing, is no class of ``class_names``, or no number where
            numbers are wanted.

    Examples:
        >>> encode(["dog", "cat", "dog"])
        (array([1, 0, 1], dtype=int32), ['cat', 'dog'])
        >>> encode(["10", "9", "10"])
        (array([1, 0, 1], dtype=int32), ['9', '10'])
        >>> encode([0.5, 1.0])
        (array([0.5, 1. ], dtype=float32), [])
    """
    checked(kind)
    items = [_plain(v) for v in values]
    known = class_names if kind == "auto" else items  # who says what they are means what is there
    lacking = [i for i, v in enumerate(items) if missing(v, known)]
    if lacking:
        word = f" ({items[lacking[0]]!r})" if items[lacking[0]] else ""
        raise ValueError(
            f"{len(lacking)} labels are missing, the first in {where(lacking[0])}{word}"
            + (": leave these rows out, or give class_names= with it" if word else "")
        )
    if (i := next((i for i, v in enumerate(items) if halved(v)), None)) is not None:
        raise ValueError(
            f"the label in {where(i)} has half a character (from \\ud800 to \\udfff): {items[i]!a}"
        )
    if kind == "auto" and class_names is None:
        _decimal_commas(items, where)
    numbers = _numbers(items)
    whole = numbers is not None and all(isinstance(n, int) or n.is_integer() for n in numbers)
    if kind == "numbers" or (
        kind == "auto" and class_names is None and numbers is not None and not whole
    ):
        if numbers is None:
            i = next(i for i, v in enumerate(items) if _numbers([v]) is None)
            raise ValueError(f"the label in {where(i)} is no number: {items[i]!r}")
        found = np.array(numbers, "float64")
        if not np.all(np.isfinite(found)):
            i = int(np.flatnonzero(~np.isfinite(found))[0])
            raise ValueError(f"the label in {where(i)} is {items[i]}")
        return found.astype("float32"), []
    if class_names is not None:
        texts, names = [_text(v) for v in items], [str(n) for n in class_names]
    elif numbers is not None:  # 1, 01 and 1.0 are one class
        texts = [_text(n) for n in numbers]
        names = [_text(n) for n in sorted(set(numbers))]
    else:
        texts = [_text(v) for v in items]
        names = sorted(set(texts))
    if class_names is None:
        _doubtful(texts, names, where)
    index = {name: i for i, name in enumerate(names)}
    for i, text in enumerate(texts):
        if text not in index:
            raise ValueError(
                f"the label {text!r} in {where(i)} is no class: {nearest(text, names)}"
            )
    return np.array([index[t] for t in texts], "int32"), names


def missing(value: Any, class_names: Sequence[str] | None = None) -> bool:
    """Whether this says that there is no label, or no text.

    Examples:
        >>> missing(float("nan")), missing(" "), missing("nan"), missing("nan", ["nan", "x"])
        (True, True, True, False)
    """
    value = _plain(value)
    if value is None or value == "":
        return True
    # What printing or str() makes of the missing values of NumPy and pandas.
    text = isinstance(value, str) and value.lower() in ("nan", "<na>", "nat")
    return text and value not in (class_names or ())


def named(class_names: Any) -> list[str] | None:
    """The ``class_names=`` of a call: a list or array of names, or a data set that has them.

    Raises:
        ValueError: if it is anything else, or names a class twice.

    Examples:
        >>> named(("cat", "dog")), named(None)
        (['cat', 'dog'], None)
    """
    if class_names is None:
        return None
    given = getattr(class_names, "class_names", class_names)
    given = given.tolist() if isinstance(given, np.ndarray) else given
    listed = isinstance(given, list | tuple) and len(given) > 0
    if not listed or not all(isinstance(n, str | int) for n in given):
        shown = repr(given) if isinstance(given, str | list | tuple) else type(given).__name__
        raise ValueError(
            "class_names is a list of names in the order of their numbers, or a data set that has "
            f"them; given {shown}"
        )
    names = [_plain(str(n)) for n in given]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise ValueError(f"class_names has {twice!r} twice")
    return names


def numeric(class_names: Sequence[str]) -> bool:
    """Whether all names of classes are numbers, so that a label that is one is such a name."""
    return _numbers([str(n) for n in class_names]) is not None


def checked(kind: str) -> None:
    """Raises a ``ValueError`` if there is no such kind of labels."""
    if kind not in KINDS:
        raise ValueError(f"there is no labels={kind!r}: {nearest(str(kind), KINDS)}")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        value = value.item()
    if type(value).__name__ in ("NAType", "NaTType"):  # of pandas
        return None
    if isinstance(value, float) and value != value:  # how data frames say that there is none
        return None
    if isinstance(value, bool):
        return str(value)
    # An archive made on a Mac may write letters with accents in two characters.
    return unicodedata.normalize("NFC", value.strip()) if isinstance(value, str) else value


def halved(value: Any) -> bool:
    """Whether a surrogate is without its other half, so that no encoding has this text."""
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)


def _decimal_commas(items: Sequence[Any], where: Callable[[int], str]) -> None:
    """Numbers as Excel writes them in half of Europe would be classes."""
    texts = [v for v in items if isinstance(v, str)]
    if len(texts) < len(items) or not all(re.fullmatch(r"[+-]?\d+(,\d+)?", t) for t in texts):
        return
    if (i := next((i for i, t in enumerate(texts) if "," in t), None)) is not None:
        raise ValueError(
            f"the label in {where(i)} is {texts[i]!r}: write numbers with a point, or give "
            "labels='classes'"
        )


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers, whole ones exactly: an id may have more digits than a float."""
    try:
        found = [_number(v) for v in values]
    except (TypeError, ValueError, OverflowError):  # the last of what is no float
        return None
    # Python reads "1_000", "nan" and "infinity" as numbers; as labels they are names.
    texts = [v for v in values if isinstance(v, str)]
    odd = any(not set(t) <= set("0123456789+-.eE") for t in texts)
    return None if odd else found


def _number(value: Any) -> float:
    number = float(value)
    digits = isinstance(value, str) and value.lstrip("+-").isdecimal()
    if digits and np.isinf(number):
        raise OverflowError
    return int(value) if digits or isinstance(value, int) else number


def _doubtful(texts: Sequence[str], names: Sequence[str], where: Callable[[int], str]) -> None:
    """Warns of what looks like a slip of the pen."""
    for name in names:
        if name.lower() in ("na", "n/a", "#n/a", "null"):
            at = where(list(texts).index(name))
            warnings.warn(
                f"there is a class {name!r}, first in {at}: if these labels are missing, leave the "
                "rows out; if it is a class, give class_names=",
                stacklevel=4,
            )
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            warnings.warn(
                f"the classes {other!r} and {name!r} differ only by upper and lower case: give "
                "class_names= if they should be one",
                stacklevel=4,
            )
    if len(texts) < 10 or len(names) > len(texts) / 2:
        return
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    single = [n for n in names if counts[n] == 1]
    if single:
        at = where(list(texts).index(single[0]))
        more = f", and {len(single) - 1} others" if single[1:] else ""
        warnings.warn(
            f"the class {single[0]!r} has a single example, in {at}{more}: a slip of the pen?",
            stacklevel=4,
        )
