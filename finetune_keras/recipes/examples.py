"""The data of a run: what it learns from, what it is validated on, and how many there are."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from finetune_keras import arrays, graph, outputs
from finetune_keras.cache import refuse, source
from finetune_keras.cache.features import unpacked
from finetune_keras.cache.fit import preprocess
from finetune_keras.check import labels as checked
from finetune_keras.data.dataset import Plan
from finetune_keras.data.split import stratified

__all__ = ["SHARE", "Divided", "Examples", "check", "counts", "examples", "strata", "taken"]

SHARE = 0.2  # of arrays, where there are no validation data
_LOOK = 8  # batches


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What `finetune_keras.fit` gets.

    Attributes:
        train: ``x``, ``y`` and ``sample_weight``; the last two are ``None`` for a data set.
        validation: ``validation_data`` of ``fit``.
        count: number of examples to learn from.
        batches: in an epoch of a data set; ``None`` for arrays.
        batch_size: of a data set; ``None`` for arrays.
        labels: the labels of all examples to learn from, where they are in memory.
        why: where the validation data are from, in words.
        whole: all, as they were before some were held out; ``None`` if none were.
    """

    train: tuple[Any, Any, Any]
    validation: Any
    count: int
    batches: int | None
    batch_size: int | None
    labels: Any
    why: str
    whole: Examples | None = None

    @property
    def arrays(self) -> bool:
        """Whether these are arrays rather than a data set of batches."""
        return self.batches is None

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        return -(-self.count // batch_size) if self.batches is None else self.batches

    def first(self, model: keras.Model, batch_size: int | None) -> Any:
        """The inputs of one batch, as the network takes them."""
        return self._source(model, batch_size).first().x

    def seen_labels(self, model: keras.Model) -> list[Any]:
        """Labels of some batches to learn from and to validate on, or all that are in memory."""
        found = []
        for part in (self.train, unpacked(self.validation)):
            read = source.source(*part, preprocess=preprocess(model))
            batches = itertools.islice(() if read.arrays else read.read(), _LOOK)
            found += [part[1]] if read.arrays else [batch.y for batch in batches]
        return [arrays.to_numpy(y) for y in keras.tree.flatten([arrays.bare(y) for y in found])]

    def read_labels(self, model: keras.Model) -> Any:
        """The labels of all examples, for which a data set is read through."""
        if self.labels is not None:
            return self.labels
        found = [batch.y for batch in self._source(model, None).read()]
        return keras.tree.map_structure(lambda *y: np.concatenate(y), *found)

    def _source(self, model: keras.Model, batch_size: int | None) -> source.Source:
        settings = {"batch_size": batch_size if self.arrays else None}
        return source.source(*self.train, **settings, preprocess=preprocess(model))


@dataclasses.dataclass(frozen=True, eq=False)
class Divided:
    """Data of which others have held some out already, such as whole groups.

    Attributes:
        whole: all.
        learn: to learn from.
        choose: the others, to choose by.
    """

    whole: Any
    learn: Any
    choose: Any


def examples(model: keras.Model, train: Any, validation_data: Any, seed: int | None) -> Examples:
    """Looks at the data, and holds some out if there are none to validate on.

    Args:
        model: what is trained.
        train: ``(x, y)`` or ``(x, y, sample_weight)`` of arrays, or a data set; or `Divided`.
        validation_data: likewise, or ``None``.
        seed: chooses what is held out.

    Raises:
        TypeError: if it is neither.
        ValueError: if the data cannot be read several times, or a data set comes without
            validation data.
    """
    divided = train if isinstance(train, Divided) else None
    x, y, weights = unpacked(train if divided is None else divided.whole)
    read = source.source(x, y, weights, preprocess=preprocess(model)) if _ends(x) else None
    if read is None or not read.again:
        raise ValueError(
            f"fine_tune reads the data several times, and a {type(x).__name__} "
            + ("has no end" if read is None else "can be read only once")
            + ": make it arrays, or a tf.data.Dataset or keras.utils.PyDataset of one epoch"
        )
    check(model, train if divided is None else divided.whole, "the training data")
    if validation_data is not None:
        if isinstance(validation_data, list):  # as ``fit`` takes it
            validation_data = tuple(validation_data)
        again = check(model, validation_data, "the validation data")
        if not again:
            raise ValueError(
                "fine_tune reads the validation data several times, and a "
                f"{type(validation_data).__name__} can be read only once: make it arrays, or a "
                "tf.data.Dataset or keras.utils.PyDataset"
            )
        refuse.names(model, x, validation_data)
        return _counted(read, x, y, weights, validation_data, "as given")
    if divided is None:
        rest = _held_out(model, read, x, y, weights, seed)
    else:
        rest = (*unpacked(divided.learn), divided.choose, f"{SHARE:.0%} held out")
    whole = _counted(read, x, y, weights, *rest[3:])
    if not read.arrays:
        read = source.source(rest[0], preprocess=preprocess(model))
    return dataclasses.replace(_counted(read, *rest), whole=whole)


def check(model: keras.Model, data: Any, what: str) -> bool:
    """Refuses what cannot be learned from or scored, as far as that is seen without reading all.

    Args:
        model: compiled.
        data: ``(x, y)``, ``(x, y, sample_weight)`` or a data set.
        what: names the data in messages.

    Returns:
        Whether they can be read several times.

    Raises:
        TypeError: if they are neither.
        ValueError: if they are empty, without an end or without labels, or the labels are not what
            the loss takes.
    """
    x, y, weights = unpacked(data)
    if not _ends(x):
        raise ValueError(f"{what}: a {type(x).__name__} has no end: take() so many batches of it")
    read = source.source(x, y, weights, preprocess=preprocess(model), what=what)
    if read.arrays and y is None:
        raise ValueError(
            f"{what} are (x, y), or a data set of such batches; given {arrays.short(x)} "
            "without labels"
        )
    refuse.given(model, x, y, weights, what)
    return read.again


def _counted(
    read: source.Source, x: Any, y: Any, weights: Any, validation: Any, why: str
) -> Examples:
    if read.arrays:
        x, y, weights = (arrays.bare(part) for part in (x, y, weights))
        count = int(keras.tree.flatten(x)[0].shape[0])
        return Examples((x, y, weights), validation, count, None, None, _read(y), why)
    known = isinstance(getattr(x, "plan", None), Plan)  # of a data set of finetune_keras.data
    labels = x.labels if known and isinstance(x.labels, np.ndarray) else None
    size, batches = read.batch_size, read.batches
    if labels is not None:
        count = len(labels)
    elif batches is not None:
        count = batches * size
    else:  # only reading tells
        sizes = [batch.size for batch in read.read()]
        count, batches = sum(sizes), len(sizes)
    return Examples((x, None, None), validation, count, batches, size, labels, why)


def _ends(x: Any) -> bool:
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches is not None
    cardinality = getattr(x, "cardinality", None)
    return not callable(cardinality) or int(cardinality()) != -1


def _held_out(
    model: keras.Model, read: source.Source, x: Any, y: Any, weights: Any, seed: int | None
) -> tuple:
    share = f"{SHARE:.0%} held out, each class in proportion; validation_data= gives others"
    if not read.arrays:
        if not callable(getattr(x, "split", None)):
            raise ValueError(
                f"{read.spec} comes without validation data, and fine_tune keeps what is best on "
                "them: give validation_data="
            )
        return (*unpacked(x.split(SHARE, seed)[0]), x.split(SHARE, seed)[1], share)
    x, y, weights = (arrays.bare(part) for part in (x, y, weights))
    classes = strata(*_by_output(model, y), count=read.examples)
    if not classes.any():
        share = f"{SHARE:.0%} held out at random; validation_data= gives others"
    rest, part = stratified(classes, SHARE, seed or 0)
    take = functools.partial(taken, at=part)
    held = tuple(arrays.each(take, a) for a in (x, y, weights) if a is not None)
    take = functools.partial(taken, at=rest)
    return (*(a if a is None else arrays.each(take, a) for a in (x, y, weights)), held, share)


def _by_output(model: keras.Model, y: Any) -> tuple[list[Any], list[str]]:
    """Labels by output, and the family of the loss of each, see `outputs.Loss`."""
    if not graph.is_functional(model):
        return keras.tree.flatten(y), []
    made = graph.ends(model)[1]
    found = outputs.outputs(model, made)
    several = isinstance(made, dict | list | tuple)
    parts = checked.by_output(y, [output.name for output in found], several)
    pairs = zip(parts, found, strict=True)
    known = [(part, o.loss.family) for part, o in pairs if o.loss and part is not None]
    return [part for part, _ in known], [family for _, family in known]


def strata(y: Any, families: Sequence[str] = (), *, count: int) -> np.ndarray:
    """The class of each example by the first labels that are classes; all one where none are.

    Args:
        y: labels, of one output or several.
        families: of the loss of each, where they are known: numbers of a regression are no classes.
        count: number of examples.
    """
    for i, leaf in enumerate(keras.tree.flatten(y)):
        family = families[i] if i < len(families) else ""
        if family == "regression":
            continue
        labels = arrays.to_numpy(leaf)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if family == "sparse" and labels.dtype.kind == "f" and (labels == labels.round()).all():
            labels = labels.astype("int64")
        # Numbers that hardly come twice are amounts.
        many = family == "" and len(np.unique(labels)) > count / 2 if labels.ndim == 1 else False
        if labels.ndim == 1 and labels.dtype.kind in "iub" and not many:
            return labels
        if labels.ndim == 1 and labels.dtype.kind == "f" and np.isin(labels, (0, 1)).all():
            return labels.astype("int64")  # of a sigmoid
        one_hot = labels.ndim == 2 and np.isin(labels, (0, 1)).all()
        if one_hot and (labels.sum(axis=1) == 1).all():
            return labels.argmax(axis=1)
    return np.zeros(count, "int64")


def taken(array: Any, at: np.ndarray) -> Any:
    """Some examples of an array, of a data frame or series as such."""
    return array.iloc[at] if hasattr(array, "iloc") else arrays.to_numpy(array)[at]


def _read(y: Any) -> Any:
    return keras.tree.map_structure(arrays.to_numpy, y)


def counts(output: outputs.Output, y: Any) -> np.ndarray | None:
    """How many examples each class of an output has; ``None`` if its labels are not classes."""
    flat = keras.tree.flatten(y)
    family = output.loss.family if output.loss is not None else ""
    if len(flat) != 1 or family not in ("sparse", "one-hot", "binary"):
        return None
    labels = np.asarray(flat[0])
    if labels.dtype.kind not in "biuf":
        return None
    if family == "one-hot" and labels.ndim > 1:
        return labels.sum(axis=0) if labels.ndim == 2 else None
    if family == "binary" and output.size != 1:
        return None
    known = labels[np.isfinite(labels)] if labels.dtype.kind == "f" else labels.reshape(-1)
    known = known[known >= 0].astype("int64")
    found = np.bincount(known, minlength=max(output.size, 2))
    return found if len(found) == max(output.size, 2) else None
