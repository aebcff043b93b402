"""How often each class comes, as far as what was seen can tell."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from finetune_keras.check.findings import Finding
from finetune_keras.check.sample import Sample
from finetune_keras.outputs import Output

__all__ = ["balance"]

_STRONG = 10  # times; below that a plain loss still learns the rare class
_ENOUGH = 50  # examples of the largest class before a ratio says anything


def balance(output: Output, counts: np.ndarray, sample: Sample) -> Iterator[Finding]:
    """Classes that are missing, a data set sorted by class, and a strong imbalance."""
    where = f"output {output.name!r}: " if output.name else ""
    n, classes = int(counts.sum()), len(counts)
    present = np.flatnonzero(counts)
    if not n or classes < 2:
        return
    seen = f"all {n} labels" if sample.whole else f"the first {n} labels"
    if not sample.whole and not sample.ordered:
        seen = f"{n} labels from all over the data"
    if len(present) == 1 and (sample.whole or n >= _needed(classes)):
        only = output.class_name(int(present[0])) if output.size > 1 else str(present[0])
        sorted_ = sample.ordered and not sample.whole
        yield Finding(
            "balance",
            f"{where}{seen} are of class {only!r}"
            + (": the data look sorted by class, and every batch unlearns the last" * sorted_),
            "shuffle them, with a buffer as large as the data: dataset.shuffle(n)"
            if sorted_
            else "look at how the labels are made",
        )
        return
    missing = np.flatnonzero(counts == 0)
    if len(missing) and (sample.whole or n >= _needed(classes)):
        names = [_name(output, i) for i in missing[:3]]
        more = ", ..." if len(missing) > 3 else ""
        ordered = sample.ordered and not sample.whole
        yield Finding(
            "balance",
            f"{where}{len(missing)} of {classes} classes ({', '.join(names)}{more}) "
            f"{'has' if len(missing) == 1 else 'have'} no example in {seen}",
            "shuffle with a larger buffer, or leave the class out"
            if ordered
            else "look for their files, or build a head without them",
        )
    few, many = int(counts[present].min()), int(counts.max())
    # A class seen k times comes k +- 2 sqrt(k) times in as many others: the ratio has to hold at
    # the favourable end.
    sure = sample.whole or many >= _STRONG * (few + 2 * math.sqrt(few))
    if many >= _ENOUGH and many >= _STRONG * few and sure:
        rare, common = (int(present[np.argmin(counts[present])]), int(np.argmax(counts)))
        yield Finding(
            "balance",
            f"{where}class {_name(output, rare)} has {few} and class {_name(output, common)} "
            f"{many} of {seen}: accuracy rewards to never answer the rare one",
            'class_weight="balanced"',
        )


def _name(output: Output, index: int) -> str:
    return repr(output.class_name(int(index))) if output.size > 1 else str(int(index))


def _needed(classes: int) -> float:
    """Examples after which, were all classes alike, one of them is missing in a case of a
    thousand: each is missed with ``(1 - 1 / classes) ** n``.
    """
    return classes * math.log(1000 * classes)
