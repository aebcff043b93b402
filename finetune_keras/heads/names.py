"""Names of classes: a list, or anything that has one."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune_keras._errors import HeadError
from finetune_keras.heads import base

__all__ = ["classes"]


def classes(
    num_classes: int | None, class_names: Any, *, low: int = 1
) -> tuple[int, tuple[str, ...] | None]:
    """The number of classes and their names, from either or both.

    Args:
        num_classes: number of classes; ``None`` to count the names.
        class_names: a list or array of names, or an object that has one as ``.class_names``, such
            as the dataset of ``keras.utils.image_dataset_from_directory``; ``None`` for no names.
        low: the least number of classes.

    Raises:
        HeadError: if they do not agree, or both are ``None``.

    Examples:
        >>> classes(None, ["cat", "dog"])
        (2, ('cat', 'dog'))
    """
    names = None if class_names is None else _listed(class_names)
    if num_classes is None:
        if not names:
            raise HeadError("give num_classes, or class_names to count")
        num_classes = len(names)
    num_classes = base.check_count("num_classes", num_classes, low)
    if names is None:
        return num_classes, None
    # A yes-or-no head may name both answers, or the one that it asks for.
    wanted = (1, 2) if num_classes == 1 else (num_classes,)
    if len(names) not in wanted:
        raise HeadError(
            f"{len(names)} class_names for num_classes={num_classes}: "
            f"give {' or '.join(map(str, wanted))}"
        )
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise HeadError(f"class_names has {twice[0]!r} twice")
    return num_classes, names


def _listed(given: Any) -> tuple[str, ...]:
    names = getattr(given, "class_names", given)
    names = names.tolist() if isinstance(names, np.ndarray) else names  # scikit-learn's classes_
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        hint = ""
        if hasattr(type(given), "element_spec"):  # a dataset that was mapped or batched again
            hint = ", which lost its class_names on the way: give those of the first dataset"
        shown = type(given).__name__ if hint else repr(names)
        raise HeadError(
            f"class_names is a list of names, in the order of the labels; given {shown}{hint}"
        )
    return tuple(map(str, names))
