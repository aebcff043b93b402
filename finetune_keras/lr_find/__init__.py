"""The learning-rate range test: which rate to train at, asked of the model and its data."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from finetune_keras import _private, optimizers
from finetune_keras.cache import refuse
from finetune_keras.cache.batch import Batch
from finetune_keras.cache.features import compute, unpacked
from finetune_keras.cache.featureset import FeatureSet
from finetune_keras.cache.fit import obstacle, preprocess
from finetune_keras.cache.split import Division, divide
from finetune_keras.check import check
from finetune_keras.compile import scope
from finetune_keras.lr_find import kept
from finetune_keras.lr_find.batches import WHAT, Batches
from finetune_keras.lr_find.found import LRFind, found

__all__ = ["LRFind", "lr_find"]

_DIVERGED = 3.0  # times the size of the first loss, above the lowest
_WRONG = ("shape", "nan", "labels", "model")  # what `check` finds that no sweep survives


def lr_find(
    model: keras.Model,
    data: Any,
    y: Any = None,
    *,
    start: float = 1e-7,
    end: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
    batch_size: int | None = None,
    verbose: int | str = "auto",
) -> LRFind:
    """Trains for a few steps, each at a higher rate, and sees where the loss falls and diverges.

    The range test of Smith 2017 (Cyclical Learning Rates, arXiv:1506.01186, section 3.3) with the
    rates growing exponentially from ``start`` to ``end``, as fastai has it. It ends early once the
    smoothed loss is above its lowest value by three times the size of the first loss.

    Afterwards all is as before, to the bit: weights, statistics, optimizer, metrics, ``trainable``,
    compiled functions, the random state of Keras, NumPy, Python and PyTorch, and the epoch of a
    data set of ``finetune_keras.data``; also when an error or Ctrl-C ends it. It begins with the
    optimizer's state and with what is compiled, but for metrics. Where the first layers are frozen
    their outputs are computed once, for as many batches as there are steps at most, and the rest is
    trained on these, as `finetune_keras.fit` does.

    Args:
        model: a compiled ``keras.Model``, trained or not.
        data: what ``fit`` takes: ``(x, y)`` or ``(x, y, sample_weight)`` of arrays, ``x``, a
            ``tf.data.Dataset``, a ``keras.utils.PyDataset``, a PyTorch ``DataLoader``. Fewer
            batches than steps are read again. What is read from a generator is gone, and a
            ``tf.data.Dataset`` that shuffles is one reading further on.
        y: labels, beside arrays only.
        start: the first rate.
        end: the last rate.
        steps: how many, 10 or more.
        smoothing: weight of the past in the moving average of the losses, from 0 to below 1.
        batch_size: of arrays, 32 by default. The rate belongs to the batch size.
        verbose: 1 or ``"auto"`` for a progress bar, 0 for none.

    Returns:
        An `LRFind`: the curve, ``.suggestion`` and ``.plot()``. The suggestion is a tenth of the
        rate where the smoothed loss is lowest. Where the loss has not risen again at ``end`` that
        is a lower bound, and where it does not fall there is none, ``None``: both are told by a
        warning, by ``.note``, and on the plot.

    Raises:
        TypeError: if ``model`` is no Keras model, or ``data`` is not what ``fit`` takes.
        ValueError: if the model is not compiled, nothing learns, the data are empty, a label is
            none for its loss (of data that are read in the sweep, when it is read), the first loss
            is not finite, or a number is out of range.

    Examples:
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> found = lr_find(model, x, x[:, :2] * 3, verbose=0)
        >>> 1e-3 < found.suggestion < 1, len(found.losses) <= 100, found.stopped
        (True, True, True)
    """
    rates = _rates(start, end, steps)
    number = isinstance(smoothing, numbers.Real) and not isinstance(smoothing, bool)
    if not number or not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is a number from 0 to below 1; given {smoothing!r}")
    _check_model(model)
    x, labels, weights = unpacked(data)
    if y is not None and labels is not None:
        raise ValueError("labels are given twice: in data=(x, y) and as y=")
    labels = labels if y is None else y
    refuse.names(model, x, None)
    refuse.given(model, x, labels, weights, WHAT)
    verbose = 1 if verbose == "auto" else verbose
    with kept.values(_variables(model), data):
        read = Batches(
            x,
            labels,
            weights,
            batch_size=batch_size,
            most=steps,
            preprocess=preprocess(model),
        )
        _check_data(model, read)
        own = obstacle(model) is not None  # a train step, or a call, of the user's
        division = None if own else _frozen(model)
        if division is None:
            trainer, batches = model, _right(model, read)
        else:
            features = compute(division.prefix, read.source(), verbose=verbose)
            refuse.batch(model, (), features.labels, features.sample_weight, WHAT)
            trainer, batches = division.suffix, _of(features)
        with kept.compiled(trainer):
            optimizer = _compile(model, trainer, rates[0], metrics=own)
            losses, stopped = _sweep(trainer, optimizer, batches, rates, smoothing, verbose)
    made = found(rates[: len(losses)], losses, smoothing, stopped=stopped)
    if made.note:
        warnings.warn(f"lr_find: {made.note}", stacklevel=2)
    return made


def _rates(start: float, end: float, steps: int) -> np.ndarray:
    for name, value in (("start", start), ("end", end)):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise ValueError(f"{name} is a rate above 0; given {value!r}")
    if start >= end:
        raise ValueError(f"rates grow from start to end; given start={start!r}, end={end!r}")
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 10:
        raise ValueError(f"steps is a whole number from 10 on; given {steps!r}")
    return np.geomspace(float(start), float(end), int(steps))


def _check_model(model: keras.Model) -> None:
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    if not model.built:
        raise ValueError(
            f"the model {model.name!r} is not built: call it on a batch once, or give it an Input"
        )
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            f"the model {model.name!r} is not compiled: the rate belongs to an optimizer and a "
            "loss; finetune_keras.compile(model, optimizer='adamw', loss=...)"
        )
    if not model.trainable_variables:
        raise ValueError(
            f"nothing learns in the model {model.name!r}: thaw something first, for example "
            "finetune_keras.thaw(model, select.head())"
        )


def _variables(model: keras.Model) -> list[keras.Variable]:
    """All that a step of training may change, but for the optimizer."""
    given = _private.compile_arguments(model)
    metrics = keras.tree.flatten([given.get("metrics"), given.get("weighted_metrics")])
    metrics = [m for m in metrics if isinstance(m, keras.metrics.Metric)]
    found = [*model.variables, *model.metrics_variables, *(v for m in metrics for v in m.variables)]
    return list({id(v): v for v in found}.values())


def _check_data(model: keras.Model, read: Batches) -> None:
    """Raises what `finetune_keras.check` finds wrong with the first batch."""
    first = read.first
    refuse.batch(model, first.x, first.y, first.sample_weight, WHAT)
    if read.preprocess is not None:
        return  # `check` would preprocess the batch once more
    for finding in check(model, (first.x, first.y), batches=1, batch_size=16):
        if finding.code in _WRONG:
            raise ValueError(f"{finding.message}: {finding.fix}")


def _right(model: keras.Model, read: Iterable[Batch]) -> Iterator[tuple[Any, Any, Any]]:
    """Batches with labels that the loss can take."""
    for b in read:
        refuse.batch(model, b.x, b.y, b.sample_weight, WHAT)
        yield b.x, b.y, b.sample_weight


def _frozen(model: keras.Model) -> Division | None:
    """The model in two, where the first part is frozen and can be computed apart."""
    division = divide(model)
    apart = division.frozen and division.batched and not division.prefix.metrics
    return division if apart else None


def _of(features: FeatureSet) -> Iterator[tuple[Any, Any, Any]]:
    """Batches of one size, in a new order at each lap."""
    data = features.dataset(min(features.batch_size, len(features)), shuffle=True, seed=0)
    while True:
        for batch in data:
            parts = keras.utils.unpack_x_y_sample_weight(batch)
            if len(keras.tree.flatten(parts[0])[0]) == data.size:
                yield parts


def _compile(
    model: keras.Model, trainer: keras.Model, rate: float, *, metrics: bool
) -> keras.optimizers.Optimizer:
    """Compiles ``trainer`` as ``model`` is, with a copy of its optimizer at a plain rate."""
    with scope(model):
        carried = optimizers.carry(
            model.optimizer, model.trainable_variables, learning_rate=float(rate)
        )
        given = {
            **_private.compile_arguments(model),
            "optimizer": carried.optimizer,
            "steps_per_execution": 1,
            "auto_scale_loss": False,  # it is scaled already if it has to be
        }
        if not metrics:
            given |= {"metrics": [], "weighted_metrics": []}  # None would keep the old ones
        keras.Model.compile(trainer, **given)
    return carried.optimizer


def _sweep(
    trainer: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    batches: Iterator[tuple[Any, Any, Any]],
    rates: np.ndarray,
    smoothing: float,
    verbose: int,
) -> tuple[list[float], bool]:
    """The loss of each step, and whether it diverged."""
    losses: list[float] = []
    average, lowest = 0.0, float("inf")
    bar = keras.utils.Progbar(len(rates), verbose=verbose, stateful_metrics=["loss", "rate"])
    for i, (rate, (x, y, weights)) in enumerate(zip(rates, batches, strict=False)):
        optimizer.learning_rate = float(rate)
        logs = keras.Model.train_on_batch(trainer, x, y, weights, return_dict=True)
        loss = float(logs["loss"]) if "loss" in logs else float("nan")
        if not np.isfinite(loss):
            if losses:
                return losses, True
            raise ValueError(
                f"the loss is {loss} at the first step, before anything was learned: "
                "finetune_keras.check(model, data) looks for the cause"
            )
        losses.append(loss)
        average = smoothing * average + (1 - smoothing) * loss
        smoothed = average / (1 - smoothing ** (i + 1))
        lowest = min(lowest, smoothed)
        stopped = bool(smoothed - lowest > _DIVERGED * max(abs(losses[0]), abs(lowest)))
        if verbose:
            told = [("loss", smoothed), ("rate", rate)]
            bar.update(i + 1, told, finalize=stopped or i + 1 == len(rates))
        if stopped:
            return losses, True
    return losses, False
