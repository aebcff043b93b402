"""What is about to go wrong, before the hour of training that would show it."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any

import keras

from finetune_keras import arrays, outputs
from finetune_keras._errors import sentence
from finetune_keras.check import (
    answers,
    balance,
    classes,
    flow,
    labels,
    memory,
    pixels,
    sample,
    shapes,
    training,
)
from finetune_keras.check.findings import Finding, Findings

__all__ = ["Finding", "Findings", "check"]

_FORWARD = 16  # examples that are computed; to tell a first loss from a guess it takes no more


def check(model: keras.Model, data: Any, *, batches: int = 4, batch_size: int = 32) -> Findings:
    """Looks at a model and a few batches for what silently spoils a training.

    Some seconds at most: a few examples go through the model, in inference. Nothing in the model
    changes: no weight, statistic, metric, flag, random state or compiled function. What cannot be
    told for certain is not reported.

    | code                | what it finds                                                       |
    |---------------------|---------------------------------------------------------------------|
    | `compile`, `frozen` | a model that is not compiled, or of which nothing learns            |
    | `flags`, `lora`     | `trainable` or LoRA changed by hand since `compile`                 |
    | `shape`             | inputs of another shape than the model's                            |
    | `nan`, `constant`   | NaN in the inputs or predictions; images of one colour              |
    | `pixels`            | pixels preprocessed twice, or of another scale than in pretraining  |
    | `labels`            | labels of another kind, shape or range than the head's              |
    | `class_names`       | other classes in the data set than in the head, or in another order |
    | `activation`        | a softmax or sigmoid that the loss applies again, or misses         |
    | `first_loss`        | a first loss much worse than a guess                                |
    | `balance`           | missing classes, data sorted by class, a strong imbalance           |
    | `norms`             | batch normalisations that learn from small batches                  |
    | `rate`              | a learning rate of 0, or one that undoes pretraining                |
    | `memory`            | a training step far too large for memory                            |

    Args:
        model: a built ``keras.Model``, made here or not.
        data: what ``model.fit`` takes: ``(x, y)`` of arrays, or of dicts or lists of arrays, a
            ``tf.data.Dataset``, a ``keras.utils.PyDataset``, a torch ``DataLoader``. Of arrays
            examples from all over are read, and all labels; of a ``PyDataset`` batches from all
            over; of what has an order the first batches. A data set that shuffles anew at each
            pass is one pass further on. A generator would lose the batches read and is refused:
            hand in one batch, ``next(generator)``.
        batches: how many batches to read.
        batch_size: examples in a batch of arrays, as you will give to ``fit``.

    Returns:
        `Findings`, one line each with its fix; false if there are none.

    Raises:
        TypeError: if ``model`` is no Keras model, or ``data`` is not what ``fit`` takes.
        ValueError: if the data are empty, the model is not built, or a number is out of range.

    Examples:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
        >>> check(model, (x, y))
        nothing found in 60 examples
        >>> [finding.code for finding in check(model, (x, y + 1))]
        ['labels']
    """
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    if not model.built:
        raise ValueError(
            f"the model {model.name!r} is not built: call it on a batch once, or give it an Input"
        )
    for what, value in (("batches", batches), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{what} must be an integer of 1 or more; given {value!r}")
    drawn = sample.draw(data, batches, batch_size)
    return Findings(tuple(_all(model, drawn)), drawn.seen)


def _all(model: keras.Model, drawn: sample.Sample) -> Iterator[Finding]:
    yield from training.compiled(model)
    yield from training.flags(model)
    x = _preprocessed(model, drawn.x)
    wrong = list(shapes.inputs(model, x))
    yield from wrong
    broken = list(pixels.finite(drawn))
    yield from broken
    yield from pixels.constant(model, drawn)
    if not wrong:
        scale = []
        if not broken:  # one cause, seen in two ways: the first that sees it says so
            scale = list(pixels.scaled_twice(model, drawn))
            scale = scale or list(pixels.unlike_pretraining(model, drawn))
            yield from scale
        for finding in _predictions(model, drawn, x, finite=not broken):
            if not (scale and finding.code == "first_loss"):  # which comes of it
                yield finding
    yield from training.norms(model, drawn.batch)
    yield from training.rate(model)
    yield from memory.memory(model, drawn.batch)


def _preprocessed(model: keras.Model, x: Any) -> Any:
    """What a KerasHub task makes of raw inputs before the graph, as ``fit`` does."""
    own = getattr(model, "preprocess_samples", None)
    if not callable(own) or getattr(model, "preprocessor", None) is None:
        return x
    made = keras.utils.unpack_x_y_sample_weight(own(x))[0]
    return keras.tree.map_structure(arrays.to_numpy, made)


def _predictions(
    model: keras.Model, drawn: sample.Sample, x: Any, *, finite: bool
) -> Iterator[Finding]:
    x = keras.tree.map_structure(lambda a: a[:_FORWARD], x)
    try:
        predicted = flow.forward(model, x)
    except Exception as e:
        why = sentence(e)
        yield Finding("model", f"the model fails on these inputs: {why}", "call it on a batch")
        return
    found = outputs.outputs(model, predicted)
    names = [output.name for output in found]
    values = [v for _, v in outputs.pairs(predicted)]
    several = isinstance(predicted, dict | list | tuple)
    ys = labels.by_output(drawn.y, names, several)
    firsts = labels.by_output(drawn.batch_y, names, several)
    broken = list(answers.finite(list(zip(found, values, strict=True)))) if finite else []
    yield from broken
    own = list(model.output) if isinstance(getattr(model, "output", None), dict) else names
    mismatch = list(labels.structure(found, drawn.y, several, own))
    if mismatch:
        yield from mismatch
        return
    for output, value, y, first in zip(found, values, ys, firsts, strict=True):
        wrong = list(labels.labels(output, y, value.shape))
        wrong = wrong or list(classes.no_values(output, y, drawn.class_names))
        yield from wrong
        squashed = list(answers.activation(output))
        yield from squashed
        if finite and not (wrong or squashed or broken):
            first = None if first is None else first[: len(value)]
            yield from answers.first_loss(model, output, first, value)
        yield from classes.order(output, drawn.class_names)
        counted = None if wrong else labels.counts(output, y, value.shape)
        uneven = [] if counted is None else list(balance.balance(output, counted, drawn))
        yield from uneven
        if not (wrong or uneven or several):
            yield from classes.number(output, drawn.class_names)
