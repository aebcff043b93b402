"""Labels: of the kind, the shape and the range that the head and its loss take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from finetune_keras._errors import nearest
from finetune_keras.check.findings import Finding
from finetune_keras.outputs import Output

__all__ = ["by_output", "counts", "labels", "refused", "structure"]

# TensorFlow's sparse cross-entropy documents an error on the CPU and NaN on a GPU; on JAX such a
# label is an empty one-hot vector, which has no loss and teaches nothing. PyTorch raises.
_OUTSIDE = "by backend and device they raise, make the loss NaN, or are silently skipped"


def labels(output: Output, y: np.ndarray | None, shape: tuple) -> Iterator[Finding]:
    """What is wrong with the labels of one output.

    Args:
        output: what it is.
        y: labels, or ``None``.
        shape: of a batch of predictions.
    """
    yield from refused(output, y, shape)
    if y is not None and y.dtype.kind in "fiub" and _family(output, y, shape) == "one-hot":
        for message, fix in _sums(output, y, shape):
            yield Finding("labels", _where(output) + message, fix)


def refused(output: Output, y: np.ndarray | None, shape: tuple) -> Iterator[Finding]:
    """The same without what a loss takes all the same, and somebody may have meant."""
    for message, fix in _wrong(output, y, shape):
        yield Finding("labels", _where(output) + message, fix)


def by_output(y: Any, names: list[str], several: bool) -> list[Any]:
    """Labels in the order of the outputs; ``None`` where an output has none."""
    if not several:
        flat = [] if y is None else keras.tree.flatten(y)
        return [flat[0] if len(flat) == 1 else None]
    if isinstance(y, dict):
        return [y.get(name) for name in names]
    if isinstance(y, list | tuple):
        return [y[i] if i < len(y) else None for i in range(len(names))]
    # One array for several outputs is for the only one that has a loss; Keras says so otherwise.
    return [y if len(names) == 1 else None for _ in names]


def structure(found: list[Output], y: object, several: bool, order: list[str]) -> Iterator[Finding]:
    """Labels in a structure that does not go with that of the outputs.

    Args:
        found: the outputs, in the order in which Keras flattens them.
        y: the labels as they were given.
        several: whether the outputs are a dict or a list, of one perhaps.
        order: names of the outputs in the order in which the model was made.
    """
    if isinstance(y, list | tuple):
        names = [output.name for output in found]
        if several and len(y) == len(names) and names != order:
            yield Finding(
                "labels",
                f"the labels are a list, which Keras gives to {', '.join(map(repr, names))} in "
                f"this order, and the heads are {', '.join(map(repr, order))}",
                "give a dict by these names",
            )
    elif several:
        yield from _keys(found, y)
    elif isinstance(y, dict) and y and found[0].loss is not None:
        yield Finding(
            "labels",
            f"the labels are a dict of {', '.join(map(repr, y))}, and the model has one output; "
            "fit fails on that",
            f"the labels themselves, y[{next(iter(y))!r}]",
        )


def _keys(found: list[Output], y: object) -> Iterator[Finding]:
    """Labels that are no dict by the names of the outputs."""
    wanted = [output.name for output in found if output.loss is not None]
    if not wanted or (len(found) == 1 and not isinstance(y, dict)):
        return
    names = ", ".join(map(repr, wanted))
    if not isinstance(y, dict):
        what = "there are no labels" if y is None else "the labels are one array"
        yield Finding(
            "labels", f"{what}, and the model has the outputs {names}", "give a dict by these names"
        )
        return
    lacking = [name for name in wanted if name not in y]
    extra = [str(key) for key in y if key not in {output.name for output in found}]
    if lacking or extra:
        near = nearest(lacking[0], extra) if lacking and extra else ""
        yield Finding(
            "labels",
            f"the labels are a dict of {', '.join(map(repr, y))}, and the model has the outputs "
            f"{names}; fit fails on that" + (f" ({near})" if near.startswith("did") else ""),
            "give each output its labels, by its name",
        )


def _where(output: Output) -> str:
    return f"output {output.name!r}: " if output.name else ""


def _missing(output: Output, y: np.ndarray) -> np.ndarray:
    return np.isnan(y) | ((y == -1) & (output.kind != "regression"))


def _wrong(output: Output, y, shape: tuple) -> Iterator[tuple[str, str]]:
    family = _family(output, y, shape)
    if y is None:
        if output.loss is not None:
            yield f"there are no labels, and {output.loss.name} needs them", "give (x, y)"
        return
    if y.dtype.kind in "OSUT":
        value = y.reshape(-1)[:1].tolist()[0]  # not NumPy's own, which shows its type
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        yield (
            f"labels are not numbers ({value!r}, for one); {_takes(output, family)}",
            "map them by position, [class_names.index(label) for label in y]",
        )
        return
    if output.loss is not None and output.loss.missing:
        y = np.where(_missing(output, y), 0, y)  # 0 is a label of every kind
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        bad = int((~np.isfinite(y)).sum())
        yield (
            f"{bad} of {y.size} labels are NaN or infinite, and one makes all weights NaN",
            "drop these examples, or give them a label",
        )
        return
    rule = {"sparse": _sparse, "one-hot": _one_hot, "binary": _binary, "regression": _values}
    if family in rule:
        yield from rule[family](output, y, shape)


def _family(output: Output, y, shape: tuple) -> str:
    """What labels are taken: by the loss; where that is unknown by the record."""
    if output.loss is not None and output.loss.family:
        return output.loss.family
    if output.recorded is None:
        return ""
    if output.kind in ("classification", "ordinal"):
        return "one-hot" if y is not None and y.ndim == len(shape) and y.shape[-1] > 1 else "sparse"
    return "regression" if output.kind == "regression" else "binary"


def _takes(output: Output, family: str) -> str:
    # The user may have compiled with a loss that takes other labels than the head was made for.
    kinds = {"sparse": ("classification", "ordinal"), "binary": ("binary", "multi_label")}
    agree = output.kind in kinds.get(family, (family,))
    if output.recorded is not None and output.recorded.labels and agree:
        return f"the head takes {output.recorded.labels}"
    name = output.loss.name if output.loss is not None else "the head"
    words = {
        "sparse": f"integers from 0 to {output.size - 1}",
        "one-hot": f"one-hot rows of {output.size}",
        "binary": "0 or 1" + (f" for each of {output.size} classes" if output.size > 1 else ""),
        "regression": f"{output.size} numbers an example",
    }
    return f"{name} takes {words.get(family, 'numbers')}"


def _sparse(output: Output, y: np.ndarray, shape: tuple) -> Iterator[tuple[str, str]]:
    size, ignored = output.size, output.loss.ignore_class if output.loss is not None else None
    if y.ndim == len(shape) and y.shape[-1] == 1:
        y = y[..., 0]
    if y.ndim == len(shape) and y.shape[-1] == size and size > 1:
        mixed = y.dtype.kind == "f" and bool(((y > 0) & (y < 1)).any())  # by mixup, say
        yield (
            f"labels have shape {_batch(y)}, like one-hot rows; {_takes(output, 'sparse')}",
            ("" if mixed else "numpy.argmax(y, axis=-1), or ")
            + "the loss 'categorical_crossentropy'",
        )
        return
    if y.ndim != len(shape) - 1 or not _same(y.shape[1:], shape[1:-1]):
        expected, takes = _expected(shape[:-1]), _takes(output, "sparse")
        takes = takes if expected in takes else f"{takes}, shape {expected}"
        yield (
            f"labels have shape {_batch(y)}; {takes}",
            "one class number an example" if len(shape) == 2 else f"labels of shape {expected}",
        )
        return
    if y.dtype.kind == "f" and (y != np.floor(y)).any():
        yield (
            f"labels are fractions ({y[y != np.floor(y)].flat[0]:.3g}, for one), which are cut to "
            f"integers; {_takes(output, 'sparse')}",
            "class numbers, or heads.Regression for values",
        )
        return
    outside = (y < 0) | (y >= size)
    if ignored is not None:
        outside &= y != ignored
    if outside.any():
        low, high = int(y[outside].min()), int(y[outside].max())
        what = str(low) if low == high else f"{low} to {high}"
        yield (
            f"{int(outside.sum())} of {y.size} labels are outside the head's range ({what}); "
            f"{_takes(output, 'sparse')}; {_OUTSIDE}",
            _shift(output, y, outside),
        )


def _shift(output: Output, y: np.ndarray, outside: np.ndarray) -> str:
    size, low, high = output.size, int(y.min()), int(y.max())
    if size == 1:
        return "one output is a yes-or-no question: the loss 'binary_crossentropy'"
    if low == 1 and high == size:
        return "the labels start at 1: y - 1"
    if (y[outside] == -1).all():
        return "drop them, or loss SparseCategoricalCrossentropy(ignore_class=-1)"
    if (y[outside] == 255).all():
        return "drop them, or loss SparseCategoricalCrossentropy(ignore_class=255)"
    renumber = f"number the labels from 0 to {size - 1}"
    if len(np.unique(y)) <= size:
        return f"{renumber}: numpy.unique(y, return_inverse=True)[1] does"
    return f"a head of {high + 1} classes" if low >= 0 else renumber


def _one_hot(output: Output, y: np.ndarray, shape: tuple) -> Iterator[tuple[str, str]]:
    if y.ndim != len(shape) or not _same(y.shape[1:], shape[1:]):
        integers = y.ndim == len(shape) - 1 or (y.ndim == len(shape) and y.shape[-1] == 1)
        given = "class numbers, " if integers and y.dtype.kind in "iub" else ""
        fix = (
            f"keras.utils.to_categorical(y, {output.size}), finetune_keras.data.one_hot(dataset), "
            "or the loss 'sparse_categorical_crossentropy'"
        )
        yield f"labels are {given}shape {_batch(y)}; {_takes(output, 'one-hot')}", fix


def _sums(output: Output, y: np.ndarray, shape: tuple) -> Iterator[tuple[str, str]]:
    if y.ndim != len(shape) or not _same(y.shape[1:], shape[1:]) or not np.isfinite(y).all():
        return
    rows = y.reshape(-1, y.shape[-1]).astype("float64")
    sums = rows.sum(axis=-1)
    wrong = (np.abs(sums - 1) > 0.02) | (rows < -1e-6).any(axis=-1)
    if wrong.any():
        several = bool((sums[wrong] > 1.5).all() and (rows >= 0).all())
        yield (
            f"{int(wrong.sum())} of {len(rows)} rows of labels are no probabilities that sum to 1 "
            f"(one sums to {sums[wrong][0]:.3g}); {_takes(output, 'one-hot')}",
            "heads.Classification(multi_label=True) for several classes an example"
            if several
            else "one 1 in each row, zeros else",
        )


def _binary(output: Output, y: np.ndarray, shape: tuple) -> Iterator[tuple[str, str]]:
    takes = _takes(output, "binary")
    flat = y.ndim == len(shape) - 1 and shape[-1] == 1
    if not flat and (y.ndim != len(shape) or not _same(y.shape[1:], shape[1:])):
        if shape[-1] == 1 and y.ndim == len(shape):
            fix = "numpy.argmax(y, axis=-1)" if y.shape[-1] == 2 else "a head of that many classes"
        else:
            fix = "one 0 or 1 for each class, or a softmax head for one class an example"
        yield f"labels have shape {_batch(y)} and predictions {_expected(shape)}; {takes}", fix
        return
    low, high = float(y.min()), float(y.max())
    if low >= 0 and high <= 1:
        return
    values = np.unique(y)
    if set(values.tolist()) <= {-1, 1}:
        fix = "(y + 1) / 2"
    elif set(values.tolist()) <= {0, 255}:
        fix = "y / 255"
    elif set(values.tolist()) <= {1, 2}:
        fix = "y - 1"
    elif len(values) > 2 and y.dtype.kind in "iu" and shape[-1] == 1:
        fix = f"heads.Classification({int(high) + 1}) for several classes"
    else:
        fix = "labels of 0 and 1"
    yield f"labels run from {low:g} to {high:g} and the loss falls without end; {takes}", fix


def _values(output: Output, y: np.ndarray, shape: tuple) -> Iterator[tuple[str, str]]:
    flat = y.ndim == len(shape) - 1 and shape[-1] == 1
    if not flat and (y.ndim != len(shape) or not _same(y.shape[1:], shape[1:])):
        yield (
            f"targets have shape {_batch(y)} and predictions {_expected(shape)}: the loss is "
            "refused, or taken between all of them",
            f"targets of shape {_expected(shape)}",
        )


def _same(given: tuple, wanted: tuple) -> bool:
    return len(given) == len(wanted) and all(
        w is None or g == w for g, w in zip(given, wanted, strict=True)
    )


def _batch(y: np.ndarray) -> str:
    return _expected(y.shape)


def _expected(shape: tuple) -> str:
    return f"({', '.join(['batch', *map(str, shape[1:])])}{',' if len(shape) == 1 else ''})"


def counts(output: Output, y: np.ndarray | None, shape: tuple) -> np.ndarray | None:
    """How many labels of each class there are; ``None`` where that is no question.

    A yes-or-no output has two classes; with several labels an example nothing is counted. Nor are
    the pixels of a map or the words of a text, which are alike within an example.
    """
    if len(shape) != 2:
        return None
    family = _family(output, y, shape)
    if y is None or y.dtype.kind not in "fiub":
        return None
    if output.loss is not None and output.loss.missing and y.ndim == 1:
        y = y[~_missing(output, y)]
    if family == "one-hot" and output.size > 1:
        return np.bincount(y.reshape(-1, y.shape[-1]).argmax(axis=-1), minlength=output.size)
    flat = y.reshape(-1)
    if family == "sparse" and output.size > 1:
        inside = flat[(flat >= 0) & (flat < output.size)]  # the rest is ignored by the loss
        return np.bincount(inside.astype("int64"), minlength=output.size)
    if family == "binary" and output.size == 1 and set(np.unique(flat).tolist()) <= {0, 1}:
        return np.bincount(flat.astype("int64"), minlength=2)
    return None
