"""Which models are linear probes: one dense layer that learns, under a loss that can be solved."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from finetune_keras import graph, outputs, parts
from finetune_keras.heads.missing import KnownLoss
from finetune_keras.losses import WeightedCrossentropy

__all__ = ["Probe", "SharesError", "solvable"]

_LOSSES = {
    "SparseCategoricalCrossentropy": "softmax",
    "CategoricalCrossentropy": "softmax",
    "BinaryCrossentropy": "sigmoid",
    "MeanSquaredError": "linear",
}
_TRAIN = "leave solver= out to train it"
_OFF = (  # at inference
    keras.layers.Identity
    | keras.layers.Dropout
    | keras.layers.SpatialDropout1D
    | keras.layers.SpatialDropout2D
    | keras.layers.SpatialDropout3D
    | keras.layers.AlphaDropout
    | keras.layers.GaussianDropout
)


class SharesError(ValueError):
    """Labels that are shares of several classes, which only training can take."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """A dense layer that can be solved, and what its loss takes.

    Attributes:
        layer: the layer.
        task: ``"classification"`` (softmax), ``"binary"`` (one sigmoid), ``"multi_label"``
            (several) or ``"regression"`` (linear).
        from_logits: whether the loss takes logits.
        one_hot: whether labels of classes are rows of 0 and one 1, not integers.
        missing: whether labels may be missing, as in `heads.Multi(missing=True)`.
        ignore_class: the label whose examples the loss skips.
        class_weight: of the loss, one a class (of sigmoids for 0 and 1); ``None`` for none.
        scale, offset: what a ``Rescaling`` after the layer multiplies by and adds.
    """

    layer: keras.layers.Dense
    task: str
    from_logits: bool = False
    one_hot: bool = False
    missing: bool = False
    ignore_class: int | None = None
    class_weight: tuple[float, ...] | None = None
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)

    def targets(self, y: Any, sample_weight: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Labels and their weights as the solver takes them.

        Args:
            y: labels as the loss takes them.
            sample_weight: one an example, none below 0.

        Returns:
            Integers of shape ``(examples,)`` for ``"classification"``, else numbers of shape
            ``(examples, units)``, those of ``"regression"`` before the rescaling; and weights of
            the same shape (of ``"regression"`` ``(examples,)``), 0 where a label is missing.

        Raises:
            ValueError: if they are not what the loss takes.
        """
        y = np.asarray(y)
        units = self.layer.units
        if y.ndim == 0 or y.dtype.kind not in "biuf":
            raise ValueError(f"labels are numbers, one row an example; given {y.dtype} {y.shape}")
        sparse = self.task == "classification" and not self.one_hot
        wide = 1 if sparse else units
        if y.ndim > 2 or y.size != len(y) * wide:
            raise ValueError(
                f"labels of this loss have shape (examples, {wide})"
                f"{' or (examples,)' if wide == 1 else ''}; given {y.shape}"
            )
        y = y.reshape(len(y), wide).astype("float64")
        known = np.ones(y.shape, bool)
        if self.missing:
            known &= ~np.isnan(y)
            if self.task != "regression":
                known &= ~(y < 0)
        if self.ignore_class is not None:
            known &= y != self.ignore_class
        if self.task == "regression":
            known = known.all(axis=1, keepdims=True)
        y = np.where(known, y, 0.0)
        weight = known * _weights(sample_weight, len(y))[:, None]
        if self.task == "regression":
            if not np.isfinite(y).all():
                raise ValueError("targets are finite numbers; given NaN or infinity: drop the rows")
            return (y - np.asarray(self.offset)) / np.asarray(self.scale), weight[:, 0]
        if self.task == "classification":
            y, weight = self._classes(y), weight[:, 0]
        elif not np.isin(y, (0, 1)).all():
            odd = y[~np.isin(y, (0, 1))][0]
            raise SharesError(f"labels of sigmoids are 0 or 1; given {odd:g}: {_TRAIN}")
        if self.class_weight is not None:
            weight = weight * np.asarray(self.class_weight)[y.astype("int64")]
        return y, weight

    def takes(self, y: Any) -> bool:
        """Whether labels are no shares of several classes, as mixed examples have."""
        try:
            self.targets(y)
        except SharesError:
            return False
        except ValueError:
            pass  # wrong in another way, which the solver tells
        return True

    def _classes(self, y: np.ndarray) -> np.ndarray:
        units = self.layer.units
        if not self.one_hot:
            whole = y[:, 0].astype("int64")
            if (
                (whole != y[:, 0]).any()
                or whole.min(initial=0) < 0
                or whole.max(initial=0) >= units
            ):
                odd = y[(whole != y[:, 0]) | (whole < 0) | (whole >= units), 0][0]
                raise ValueError(
                    f"labels are integers from 0 to {units - 1}; given {odd:g}: "
                    "give the layer more units, or number the classes anew"
                )
            return whole
        if not np.isin(y, (0, 1)).all() or (y.sum(axis=1) != 1).any():
            raise SharesError(
                f"one-hot labels have one 1 a row; a row given is not so: {_TRAIN}, "
                "which takes shares of several classes"
            )
        return y.argmax(axis=1)


def _weights(given: Any, n: int) -> np.ndarray:
    if given is None:
        return np.ones(n)
    weight = np.asarray(given, "float64")
    if weight.size != n or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(
            f"sample_weight is one number an example, {n} in all, none below 0; "
            f"given shape {weight.shape}"
        )
    return weight.reshape(n)


def solvable(suffix: keras.Model, loss: Any) -> Probe:
    """The one dense layer that learns in ``suffix``, if an optimum of its loss can be computed.

    Args:
        suffix: a functional or sequential model from features to the output: ``Identity``,
            dropouts and ``Flatten``, one ``Dense``, and an activation or a ``Rescaling`` after
            it. Dropout is ignored: the optimum is that of the features as they are.
        loss: as in ``model.compile``: the three cross-entropies of Keras or the mean squared
            error, by name or as instance; also within this library's losses for class weights
            and for missing labels. A dict or list of one loss too.

    Returns:
        The probe. Regularisers of the layer are not in it: `solve` chooses a penalty of its own.

    Raises:
        ValueError: if the model is something else, or the loss.

    Examples:
        >>> suffix = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> solvable(suffix, keras.losses.SparseCategoricalCrossentropy(from_logits=True)).task
        'classification'
    """
    layer, after = _dense(suffix)
    while isinstance(loss, dict | list | tuple) and len(loss) == 1:
        loss = next(iter(loss.values())) if isinstance(loss, dict) else loss[0]
    if loss is None:
        raise ValueError("solver= needs the loss, and the model has none: compile it with one")
    if isinstance(loss, dict | list | tuple):
        raise ValueError(f"solver= takes one loss; given {len(loss)}: {_TRAIN}")
    weight, inner = _unwrapped(loss)
    found = outputs.loss_of(inner, (None, layer.units))
    wanted = _LOSSES.get(found.name)
    if wanted is None:
        raise ValueError(
            f"solver= minimises {', '.join(_LOSSES)}; given {found.name}: compile with one of "
            f"them, or {_TRAIN}"
        )
    activation, scale, offset = _end(after)
    _check_activation(found, wanted, activation, layer)
    if wanted != "linear" and after.get("Rescaling"):
        raise ValueError(f"solver= takes no Rescaling under {found.name}: {_TRAIN}")
    kind = "multi_label" if layer.units > 1 else "binary"
    return Probe(
        layer=layer,
        task={"softmax": "classification", "sigmoid": kind, "linear": "regression"}[wanted],
        from_logits=found.from_logits,
        one_hot=found.name == "CategoricalCrossentropy",
        missing=outputs.loss_of(loss).missing,
        ignore_class=found.ignore_class,
        class_weight=weight,
        scale=scale,
        offset=offset,
    )


def _dense(suffix: keras.Model) -> tuple[keras.layers.Dense, dict[str, list]]:
    """The layer, and the activations and rescalings after it."""
    seen = graph.opened(suffix)
    if seen.closed:
        raise ValueError(
            f"solver= takes a functional model; {suffix.name!r} is a subclass: {_TRAIN}"
        )
    for part in ("feature_noise", "feature_brightness"):
        if any(part in c.path.split("/")[0] for c in seen.calls):
            raise ValueError(
                f"solver= does not vary features, and the head has {part}=: replace the head by "
                f"one without, or {_TRAIN}"
            )
    weighted = [c for c in seen.calls if c.units]
    if len(weighted) != 1 or not isinstance(weighted[0].op, keras.layers.Dense):
        names = ", ".join(f"{c.path!r} ({type(c.op).__name__})" for c in weighted) or "none"
        raise ValueError(
            f"solver= takes one dense layer that learns; found {names}: replace the head by one "
            f"without hidden layers and normalization, freeze the rest, or {_TRAIN}"
        )
    if len(seen.inputs) != 1 or len(seen.outputs) != 1:
        raise ValueError(
            f"solver= takes one tensor of features and gives one output; found {len(seen.inputs)} "
            f"and {len(seen.outputs)}: {_TRAIN}"
        )
    place, tensor = seen.calls.index(weighted[0]), seen.inputs[0]
    after: dict[str, list] = {}
    for i, call in enumerate(seen.calls):
        kind = type(call.op).__name__
        own = parts.activation(call.op)
        fits = call.inputs == (tensor,)
        if i < place:
            fits = fits and (isinstance(call.op, _OFF) or _flattens(call.op, seen.shapes[tensor]))
        elif isinstance(call.op, keras.layers.Rescaling):
            after.setdefault("Rescaling", []).append(call.op)
        else:
            plain = keras.layers.Dense | keras.layers.Activation | keras.layers.Softmax
            fits = fits and isinstance(call.op, plain | keras.layers.Identity)
            fits = fits and getattr(call.op, "axis", -1) in (-1, None)
            after.setdefault("activation", []).append(own)
        if not fits:
            where = "before" if i < place else "after"
            raise ValueError(
                f"solver= takes Identity, Dropout and Flatten before the dense layer and an "
                f"activation after it; found {call.path!r} ({kind}) {where}: {_TRAIN}"
            )
        tensor = call.outputs[0]
    if len(seen.shapes[seen.outputs[0]]) != 2:
        raise ValueError(
            f"solver= takes one answer an example; the output has shape "
            f"{seen.shapes[seen.outputs[0]]}: pool or flatten the features first, or {_TRAIN}"
        )
    layer = weighted[0].op
    _check_layer(layer, suffix)
    return layer, after


def _flattens(op: Any, shape: tuple) -> bool:
    # Channels first, Keras flattens in another order.
    last = getattr(op, "data_format", "channels_last") == "channels_last"
    return isinstance(op, keras.layers.Flatten) and (last or len(shape) <= 2)


def _check_layer(layer: keras.layers.Dense, suffix: keras.Model) -> None:
    on = {id(v) for v in suffix.trainable_variables}
    off = [v.name for v in layer.weights if id(v) not in on]
    if off:
        raise ValueError(
            f"solver= takes one dense layer that learns; of {layer.name!r} {' and '.join(off)} is "
            "frozen: thaw it"
        )
    for what in ("kernel_constraint", "bias_constraint"):
        if getattr(layer, what) is not None:
            raise ValueError(f"solver= knows no {what}, and {layer.name!r} has one: {_TRAIN}")
    if type(layer) is not keras.layers.Dense or len(layer.weights) != 1 + layer.use_bias:
        raise ValueError(
            f"solver= takes a plain Dense; {layer.name!r} is a {type(layer).__name__} with "
            f"{len(layer.weights)} variables (LoRA, or quantized): {_TRAIN}"
        )


def _end(after: dict[str, list]) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    found = [a for a in after.get("activation", ()) if a not in ("", "linear")]
    scale, offset = np.ones(1), np.zeros(1)
    for op in after.get("Rescaling", ()):
        scale, offset = scale * op.scale, offset * op.scale + op.offset
    scale, offset = np.atleast_1d(scale), np.atleast_1d(offset)
    if not scale.all():
        raise ValueError(f"solver= cannot undo a Rescaling by 0: {_TRAIN}")
    plain = (tuple(map(float, v)) for v in (scale, offset))
    return " then ".join(found) or "linear", *plain


def _unwrapped(loss: Any) -> tuple[tuple[float, ...] | None, Any]:
    """The class weights of a loss, and the loss of Keras within."""
    weight = None
    smoothing = 0.0
    while isinstance(getattr(loss, "loss", None), keras.losses.Loss):
        if isinstance(loss, WeightedCrossentropy):
            smoothing = loss.label_smoothing
            weight = None if loss.class_weight is None else tuple(loss.class_weight)
        elif not isinstance(loss, KnownLoss):
            raise ValueError(f"solver= cannot minimise {type(loss).__name__}: {_TRAIN}")
        loss = loss.loss
    if isinstance(loss, keras.losses.Loss):
        smoothing = smoothing or loss.get_config().get("label_smoothing", 0.0)
    if smoothing:
        raise ValueError(
            f"solver= takes hard labels, and the loss has label_smoothing={smoothing:g}: compile "
            f"with label_smoothing=0, or {_TRAIN}"
        )
    return weight, loss


def _check_activation(
    found: outputs.Loss, wanted: str, activation: str, layer: keras.layers.Dense
) -> None:
    expected = "linear" if found.from_logits else wanted
    if activation != expected:
        hint = f"end the model in {expected}"
        if {activation, expected} == {"linear", wanted} and wanted != "linear":
            hint = f"compile with {found.name}(from_logits={not found.from_logits})"
        takes = " from logits" if found.from_logits else ""
        raise ValueError(
            f"{found.name}{takes} goes with a {expected} output; the model's is {activation}: "
            f"{hint}"
        )
    if wanted == "softmax" and layer.units < 2:
        raise ValueError(
            f"{found.name} of one unit is 0 whatever it learns: use BinaryCrossentropy, or one "
            "unit a class"
        )
