"""How good a set of weights is on validation data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from finetune_keras import _private
from finetune_keras._errors import nearest
from finetune_keras.averaging import refresh as _refresh
from finetune_keras.cache import refuse, source
from finetune_keras.cache.augment import augments
from finetune_keras.cache.features import compute
from finetune_keras.cache.fit import obstacle, preprocess
from finetune_keras.cache.split import Division, divide
from finetune_keras.cache.training import compiled

__all__ = ["MODES", "Goal", "Score", "Scorer", "divided", "goal"]

MODES = ("auto", "min", "max")


@dataclasses.dataclass(frozen=True)
class Score:
    """What validation says of one set of weights.

    Attributes:
        value: of what is monitored.
        loss: the loss, which decides between equal values.
    """

    value: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is monitored, and which way is better.

    Attributes:
        name: as ``evaluate`` names it.
        mode: ``"min"`` or ``"max"``.
    """

    name: str
    mode: str

    def score(self, logs: dict[str, Any]) -> Score:
        """The score in what ``evaluate`` gave."""
        return Score(float(logs[self.name]), float(logs["loss"]))

    def rank(self, score: Score) -> float:
        """Larger is better, NaN worst of all."""
        value = score.value if self.mode == "max" else -score.value
        return -math.inf if math.isnan(value) else value

    def order(self, score: Score) -> tuple[float, float]:
        """`rank`, and for equal ones the loss."""
        return self.rank(score), -math.inf if math.isnan(score.loss) else -score.loss


def goal(model: keras.Model, logs: dict[str, Any], monitor: str, mode: str) -> Goal:
    """What to monitor, in what ``evaluate`` gave.

    Args:
        model: what was evaluated.
        logs: its loss and metrics.
        monitor: a name, with ``val_`` before it or not; ``"auto"`` for the first accuracy of a
            model with one output, or else the loss.
        mode: ``"min"``, ``"max"``, or ``"auto"``, which Keras' metrics tell.

    Raises:
        ValueError: if there is no such metric, if it is not one number, or if nobody says which
            way is better.
    """
    name = monitor.removeprefix("val_")
    if monitor == "auto":
        name = _accuracy(model, logs)
    if name not in logs:
        raise ValueError(
            f"monitor={monitor!r} is nothing that {model.name!r} is compiled with; "
            f"{nearest(name, logs)}"
        )
    if np.ndim(logs[name]) != 0:
        raise ValueError(
            f"monitor={monitor!r} has to be one number, and is {np.size(logs[name])} of them: let "
            "the metric average over classes"
        )
    if mode == "auto":
        mode = _mode(model, name)
    return Goal(name, mode)


def _accuracy(model: keras.Model, logs: dict[str, Any]) -> str:
    if len(getattr(model, "outputs", None) or [0]) > 1:
        return "loss"
    exact = [n for n in logs if n in ("accuracy", "acc")]
    close = [n for n in logs if n.endswith(("accuracy", "_acc"))]
    return next(iter(exact + close), "loss")


def _mode(model: keras.Model, name: str) -> str:
    if name == "loss" or name.endswith("_loss"):
        return "min"
    metrics = [m for x in model.metrics for m in getattr(x, "metrics", [x])]
    for metric in metrics:
        # Of several outputs, the name of the output stands before the metric's.
        if name == metric.name or name.endswith(f"_{metric.name}"):
            found = _private.metric_direction(getattr(metric, "metric", metric))
            if found is not None:
                return found
    if name.endswith(("accuracy", "acc", "auc")):
        return "max"
    raise ValueError(
        f"nothing says whether a larger {name!r} is better: give mode='max' or mode='min'"
    )


class Scorer:
    """Scores the weights that a model has.

    What is frozen is computed once, and again only for weights in it that differ.

    Args:
        model: a compiled model.
        data: what ``validation_data`` of ``fit`` takes, that can be read several times.
        monitor, mode: as in `goal`.
        batch_size: of arrays.
        steps: batches to read.
        refresh: data for the statistics of batch normalisations; ``None`` leaves them.

    Raises:
        ValueError: if the model is not compiled, or data cannot be read again.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        *,
        monitor: str,
        mode: str,
        batch_size: int | None,
        steps: int | None,
        refresh: Any,
    ):
        if mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(map(repr, MODES))}; given {mode!r}")
        if not isinstance(monitor, str):
            raise TypeError(f"monitor is the name of a metric, or 'auto'; given {monitor!r}")
        if not model.compiled:
            raise ValueError(
                f"the model {model.name!r} is not compiled, so there is no validation loss or "
                "metric to go by: finetune_keras.compile(model, loss=..., metrics=[...])"
            )
        self.model, self.goal = model, None
        self._monitor, self._mode = monitor, mode
        prepare = preprocess(model)
        self._given = _unpacked(data)
        settings = {"batch_size": batch_size, "preprocess": prepare}
        self._data = source.source(
            *self._given, **settings, steps=steps, what="the validation data"
        )
        _check(self._data, self._given[1])
        refuse.given(model, *self._given, "the validation data")
        self._steps = steps
        self._moving, self._fresh = (), None
        if refresh is not None:
            self._moving = _refresh.moving(model)
            if not self._moving:
                raise ValueError(
                    f"refresh= is for batch normalisations that learn, and {model.name!r} has "
                    "none: leave it out"
                )
            inputs = _unpacked(refresh)
            self._fresh = source.source(*inputs, **settings, what="refresh=")
            _check(self._fresh, inputs[1], labels=False)
        self._division = divided(model)
        self._frozen: list[np.ndarray] | None = None
        self._features: Any = None
        self._inputs: Any = None  # what the frozen part makes of those for `refresh`

    def __call__(self, *, fresh: bool = False) -> Score:
        """Scores the weights as they are now.

        Args:
            fresh: whether they are an average, whose statistics are estimated anew if there are
                data for it.
        """
        if fresh and self._fresh is not None:
            self._renew()
        network, given = self._network()
        logs = network.evaluate(**given, verbose=0, return_dict=True)
        if self.goal is None:
            self.goal = goal(network, logs, self._monitor, self._mode)
        return self.goal.score(logs)

    def _renew(self) -> None:
        """Estimates the statistics of batch normalisations anew."""
        division = self._division
        if division is None or augments(division.prefix) or not self._as_computed(division):
            batches = (batch.x for batch in self._fresh.read())
            _refresh.refresh(self.model, self._moving, batches)
            return
        if self._inputs is None:
            self._inputs = compute(division.prefix, self._fresh, verbose=0)
        batches = (batch[0] for batch in self._inputs.dataset(seed=0))
        _refresh.refresh(division.suffix, self._moving, batches)

    def _network(self) -> tuple[keras.Model, dict[str, Any]]:
        """What to evaluate, and on what: the part that learns on features, or the model."""
        if self._division is not None and self._as_computed(self._division):
            suffix, found = self._division.suffix, self._features
            compiled(self.model, suffix)
            if not found.in_memory:
                return suffix, {"x": found.dataset()}
            x, y, weights = found.view()
            given = {"x": x, "y": y, "sample_weight": weights, "batch_size": found.batch_size}
            return suffix, given
        x, y, weights = self._given
        given = {"x": x, "y": y, "sample_weight": weights, "steps": self._steps}
        if self._data.arrays:
            given["batch_size"] = self._data.batch_size
        return self.model, given

    def _as_computed(self, division: Division) -> bool:
        """Whether the features are those of the weights as they are; the first time, makes them
        so.
        """
        frozen = [np.array(keras.ops.convert_to_numpy(v)) for v in division.prefix.weights]
        if self._frozen is None:
            self._features = compute(division.prefix, self._data, verbose=0)
            self._frozen = frozen
        return all(map(np.array_equal, frozen, self._frozen))


def divided(model: keras.Model) -> Division | None:
    """The model in two, if what is frozen can be computed apart."""
    try:
        if obstacle(model) is not None:
            return None
        division = divide(model)
    except ValueError:  # nothing learns, or the graph cannot be read
        return None
    fits = division.frozen and division.batched and not division.prefix.metrics
    return division if fits else None


def _unpacked(data: Any) -> tuple[Any, Any, Any]:
    """A tuple is ``(x, y)`` or ``(x, y, sample_weight)``, as everywhere in Keras."""
    if isinstance(data, tuple) and not 1 <= len(data) <= 3:
        raise ValueError(
            "the validation data are (x, y) or (x, y, sample_weight), or batches of these; given "
            f"{len(data)} in a tuple"
        )
    return (
        keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(data, tuple)
        else (
            data,
            None,
            None,
        )
    )


def _check(data: source.Source, y: Any, *, labels: bool = True) -> None:
    if not data.again:
        raise ValueError(
            f"{data.spec} can be read only once, and is needed for each set of weights: make it "
            "arrays, a tf.data.Dataset or a keras.utils.PyDataset"
        )
    if labels and data.arrays and y is None:
        raise ValueError(
            "the validation data are (x, y) or (x, y, sample_weight), or batches of these; given "
            f"{data.spec} without labels"
        )
