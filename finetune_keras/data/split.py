"""Two parts of a data set, each class in both in the same proportion."""

from __future__ import annotations

import numbers

import numpy as np

from finetune_keras._errors import plain

__all__ = ["stratified"]


def stratified(labels: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the examples of two disjoint parts, in their order.

    Args:
        labels: one a row. Integers are classes; anything else is divided at random.
        fraction: the share of the second part, between 0 and 1.
        seed: chooses which.

    Each class gives its share, rounded, and at least one example to each part if it has two; a
    class of a single example stays in the first part.

    Raises:
        ValueError: if the fraction is not between 0 and 1, or leaves a part empty.

    Examples:
        >>> rest, part = stratified(np.array([0, 0, 0, 0, 1, 1]), 0.25)
        >>> len(rest), len(part), np.array([0, 0, 0, 0, 1, 1])[part].tolist()
        (4, 2, [0, 1])
    """
    number = isinstance(fraction, numbers.Real) and not isinstance(fraction, bool)
    if not number or not 0 < fraction < 1:
        raise ValueError(f"the fraction to split off is between 0 and 1; given {plain(fraction)!r}")
    rng = np.random.default_rng([int(seed), 0x5EED])
    labels = np.asarray(labels)
    classes = labels.ndim == 1 and labels.dtype.kind in "iub"
    groups = labels if classes else np.zeros(len(labels), "int64")
    part = [np.zeros(0, "int64")]
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        count = int(np.floor(len(members) * fraction + 0.5))
        part.append(members[: np.clip(count, min(1, len(members) - 1), len(members) - 1)])
    chosen = np.sort(np.concatenate(part))
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    if not len(rest) or not len(chosen):
        raise ValueError(
            f"{fraction} of {len(labels)} examples leaves {len(rest)} and {len(chosen)}: "
            "each part needs one"
        )
    return rest, chosen
