"""What the user did not say, chosen from the data and the model, each choice with its reason."""

from __future__ import annotations

import dataclasses
import math
import numbers
import time
import types
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from finetune_keras import _private, blocks, flags, graph, losses, optimizers
from finetune_keras._errors import plain, whole
from finetune_keras.check.memory import free, need
from finetune_keras.outputs import Output, outputs
from finetune_keras.recipes.examples import Examples, counts
from finetune_keras.recipes.progress import lasting

__all__ = ["Plan", "make"]

_SEEN = 32_000  # examples that a training sees in all, counted once an epoch: 1000 batches of 32
_EPOCHS = (3, 30)
_BATCH = 32
_STEPS = 8  # in an epoch, at the least, before batches get smaller
_LOWEST = 0.05  # the rate of the first block, of the head's
_UNBALANCED = 10  # times, as in `finetune_keras.check`
_STEP = 3  # passes: one forward, and two backward, for inputs and for weights
_SETTERS = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers of a training, and why they are these.

    Attributes:
        recipe: its name.
        batch_size: examples in a batch.
        epochs: of all phases that train pretrained layers, together; at most.
        learning_rate: of these phases, the head's.
        head_rate: of a head that is trained alone.
        layer_decay: share of the rate that each block has of the next one's.
        patience: epochs without a better validation score that end a phase.
        ranged: whether a phase with steps enough asks a range test for its rate.
        warm: whether rates rise and fall in a phase; otherwise they are constant.
        monitor: what validation compares, ``"auto"`` for the accuracy or else the loss.
        class_weight: a weight for each class; ``None`` for none, or for those that the loss has.
        refit: whether the best training is done again with the examples that were held out.
        solve: whether a head that is one dense layer is solved rather than trained.
        examples: to learn from.
        steps: batches in an epoch.
        seconds: what a pass of the whole network over the data takes, about; 0 if not measured.
        reasons: why each is what it is, in words.
    """

    recipe: str
    batch_size: int
    epochs: int
    learning_rate: Any
    head_rate: Any
    layer_decay: float | None
    patience: int
    ranged: bool
    warm: bool
    monitor: str
    class_weight: tuple[float, ...] | None
    refit: bool
    solve: bool
    examples: int
    steps: int
    seconds: float
    reasons: Mapping[str, str]

    def of_size(self, batch_size: int, data: Examples) -> Plan:
        """The same with batches of another size, which a stored run was begun with."""
        if batch_size == self.batch_size:
            return self
        reasons = {**self.reasons, "batch_size": "of the stored run"}
        steps = data.steps(batch_size)
        return dataclasses.replace(self, batch_size=batch_size, steps=steps, reasons=reasons)

    def __str__(self) -> str:
        """A line for each choice."""
        rows = [("recipe", self.recipe)]
        rows += [(name, _shown(getattr(self, name, ""))) for name in self.reasons]
        values = [f"  {name:<15}{value}" for name, value in rows]
        reasons = ["", *self.reasons.values()]
        lines = [
            f"{value.rstrip()}{': ' if name != 'recipe' and shown else ''}{why}"
            if shown
            else f"{value:<17}{why}"
            for (name, shown), value, why in zip(rows, values, reasons, strict=True)
        ]
        if self.seconds:
            most = self.seconds * (1 + _STEP * self.epochs * (2 if self.refit else 1))
            lines.append(
                f"  {'time':<15}at most about {lasting(most)}: a pass of the network over the "
                f"data takes {lasting(self.seconds)}, an epoch with everything {_STEP} times that"
            )
        return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{v:.3g}" for v in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def make(
    model: keras.Model,
    data: Examples,
    optimizer: keras.optimizers.Optimizer,
    *,
    recipe: str,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: Any,
    class_weight: Any,
    patience: int | None,
    monitor: str,
    refit: bool,
    callbacks: list[keras.callbacks.Callback],
    timed: bool,
) -> Plan:
    """Chooses what is ``None``.

    Args:
        model: compiled.
        data: what it learns from.
        optimizer: of the kind that trains.
        recipe: its name.
        epochs: as in `finetune_keras.fine_tune`, like all that follow up to ``callbacks``.
        batch_size: of arrays.
        learning_rate: after the probe, or of it if there is nothing else.
        class_weight: of the loss.
        patience: epochs.
        monitor: a metric.
        refit: whether examples that were held out are learned from in the end.
        callbacks: of the user.
        timed: whether to measure how long a pass takes.

    Raises:
        ValueError: for a number out of range.
    """
    reasons: dict[str, str] = {}

    def choose(name: str, given: Any, value: Any, why: str) -> Any:
        reasons[name] = why if given is None else "as given"
        return value if given is None else given

    reasons["examples"] = f"for validation {_held(data)}: {data.why}"
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size, 1)
        if not data.arrays:
            raise ValueError(
                f"batch_size={batch_size} is for arrays, and this data set has batches of its own, "
                f"of {data.batch_size}: leave it out"
            )
    batch = choose("batch_size", batch_size, *_batch(model, data))
    steps = data.steps(batch)
    alone = recipe == "linear_probe"
    solve = not (alone and (epochs is not None or learning_rate is not None))
    if epochs is not None:
        epochs = whole("epochs", epochs, 1)
    length = round(float(np.clip(_SEEN / data.count, *_EPOCHS)))
    why = f"at most; {data.count:,} examples times {length} are about {_SEEN:,}, within 3 and 30"
    epochs = choose("epochs", epochs, length, why)
    given = None if learning_rate is None else _rate(learning_rate)
    head = optimizers.default_rate(optimizer)
    kind = type(optimizers.innermost(optimizer)).__name__
    if alone:
        head_rate = choose("head_rate", given, head, f"Keras' default for {kind}, for a head alone")
        rate, decay = optimizers.open_rate(optimizer), None
    else:
        head_rate = head
        decay, why = _decay(model, optimizer)
        share, times = ("a tenth", 0.1) if decay is not None else ("a hundredth", 0.01)
        if recipe == "auto" and decay is not None and _batch_normalised(model):
            decay, why = None, "batch normalisation bears one rate at each depth"
            share, times = "three tenths", 0.3
        reasons["layer_decay"] = why
        why = f"{share} of Keras' default for {kind}, as pretrained layers forget at more; or "
        why += "what a range test finds in a phase of 1000 steps or more"
        rate = choose("learning_rate", given, head * times, why)
    if patience is not None:
        patience = whole("patience", patience, 1)
    why = "epochs without a better validation score end a phase: a quarter of all, 3 or more"
    patience = choose("patience", patience, max(3, round(epochs / 4)), why)
    weights, why = _weights(model, data, class_weight)
    reasons["class_weight"] = why
    reasons["monitor"] = "as given"
    if monitor == "auto":
        reasons["monitor"] = "accuracy on validation, or else the loss; ties by phase, then by loss"
    if monitor == "auto" and (weights is not None or _weighted(model)):
        monitor = "loss"
        reasons["monitor"] = "of validation, as accuracy rewards to never answer a rare class"
    setter = next((type(c).__name__ for c in callbacks if isinstance(c, _SETTERS)), None)
    if data.whole is not None:
        reasons["refit"] = "what was best is done once more, with the examples held out"
        if not refit:
            reasons["refit"] = "as given"
        elif setter is not None:
            refit = False
            reasons["refit"] = f"{setter} sets the rate, by scores and epochs that a refit has not"
    if setter is not None:
        reasons["warm"] = f"{setter} sets the rate, so it does not rise and fall by itself"
    return Plan(
        recipe=recipe,
        batch_size=batch,
        epochs=epochs,
        learning_rate=rate,
        head_rate=head_rate,
        layer_decay=decay,
        patience=patience,
        ranged=learning_rate is None,
        warm=setter is None,
        monitor=monitor,
        class_weight=weights,
        refit=bool(refit) and data.whole is not None,
        solve=solve,
        examples=data.count,
        steps=steps,
        seconds=_seconds(model, data, batch) if timed else 0.0,
        reasons=types.MappingProxyType(reasons),
    )


def _held(data: Examples) -> str:
    if isinstance(data.validation, tuple):
        n = len(keras.tree.flatten(data.validation[0])[0])
        return f"{n:,} others"
    return "another data set"


def _rate(given: Any) -> Any:
    if callable(given):
        return given
    number = isinstance(given, numbers.Real) and not isinstance(given, bool)
    if not number or not 0 < float(given) < float("inf"):
        raise ValueError(
            f"learning_rate takes a number above 0 or a schedule; given {plain(given)!r}"
        )
    return float(given)


def _batch(model: keras.Model, data: Examples) -> tuple[int, str]:
    if not data.arrays:
        return data.batch_size, "the data set's own"
    size, why = _BATCH, "the usual"
    while size > 8 and data.count < _STEPS * size:
        size //= 2
        why = f"halved until an epoch of {data.count} examples has {_STEPS} steps, not below 8"
    room = free()
    if room is None:
        why += "; how much memory is free is not known"
    before, units = flags.Snapshot(model), graph.opened(model).units
    try:
        flags.put(model, units, frozenset(id(u.variable) for u in units))
        wanted = need(model)
    finally:
        before.restore()
    if room is not None and wanted.step(size) > room[0]:
        fits = max(1, int((room[0] - wanted.fixed) / max(wanted.example, 1)))
        size = min(size, 2 ** int(math.log2(fits)))
        why = f"what fits into the {room[0] / 2**30:.1f} GiB free on {room[1]}, by an estimate"
    return size, why


def _decay(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> tuple[float | None, str]:
    depth = len(blocks.blocks(model))
    if depth < 2:
        return None, "one block has no depth to speak of"
    decay = round(float(np.clip(_LOWEST ** (1 / depth), 0.5, 0.95)), 2)
    try:
        optimizers.by_decay(optimizers.make(optimizer, 1e-3), model, decay)
    except ValueError as e:
        return None, str(e)
    return decay, f"a block, so that the first of {depth} learns at about {decay**depth:.2g} of it"


def _batch_normalised(model: keras.Model) -> bool:
    found = [layer for block in blocks.blocks(model) for layer in block.layers]
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in found)


def _outputs(model: keras.Model) -> list[Output]:
    if not graph.is_functional(model):
        return []
    return outputs(model, graph.ends(model)[1])


def _loss(model: keras.Model) -> Any:
    """Of the only output."""
    found = keras.tree.flatten(_private.compile_arguments(model)["loss"])
    return found[0] if len(found) == 1 else None


def _weighted(model: keras.Model) -> bool:
    """Whether the loss weighs classes already."""
    found = keras.tree.flatten(_private.compile_arguments(model)["loss"])
    while found:
        loss = found.pop()
        if isinstance(loss, losses.WeightedCrossentropy) and loss.class_weight is not None:
            return True
        inner = getattr(loss, "loss", None)
        found += [inner] if isinstance(inner, keras.losses.Loss) else []
    return False


def _weights(
    model: keras.Model, data: Examples, given: Any
) -> tuple[tuple[float, ...] | None, str]:
    """Weights of the classes, in their order."""
    if given is False:
        return None, "as given"
    found = _outputs(model)
    if given is None:
        if _weighted(model):
            return None, "the loss has weights already"
        if data.train[2] is not None:
            return None, "each example has a weight as given"
        if len(found) != 1:
            return None, "given for each output, or not at all"
        if not losses.takes_weights(_loss(model)):
            return None, "the loss weighs no classes"
        if data.labels is None:
            return None, "the labels are read with the data; 'balanced' counts them before"
        many = counts(found[0], data.labels)
        if many is None:
            return None, "the labels are not classes"
        few = many[many > 0]
        if not len(few) or few.max() < _UNBALANCED * few.min():
            return None, f"no class has {_UNBALANCED} times the examples of another"
        if (many == 0).any():
            return None, "a class has no example"
        why = f"the classes have from {few.min()} to {few.max()} examples, and count the same so"
        return tuple(losses.balanced(many)), why
    if len(found) != 1:
        raise ValueError(
            f"class_weight= is for one output, and {model.name!r} has {len(found)}: give it to "
            "finetune_keras.compile, by their names"
        )
    own = found[0].recorded
    names = own.class_names if own is not None else ()
    size = max(found[0].size, 2)
    if len(names) != size:
        names = ()
    many = None
    if isinstance(given, str):
        many = counts(found[0], data.read_labels(model))
        if many is None and given == "balanced":
            raise ValueError(
                "class_weight='balanced' counts the examples of each class, and the labels and "
                f"the loss of {model.name!r} do not tell the classes: give a dict or a list"
            )
    value = losses.weights(given, many, size, names)
    return tuple(value), "as given" if many is None else f"as given, by counts {many.tolist()}"


def _seconds(model: keras.Model, data: Examples, batch: int) -> float:
    """One pass over the data, from the second of two batches; the first one compiles."""
    x = data.first(model, batch)
    took = 0.0
    for _ in range(2):
        start = time.perf_counter()
        keras.Model.predict_on_batch(model, x)
        took = time.perf_counter() - start
    return took * data.steps(batch)
