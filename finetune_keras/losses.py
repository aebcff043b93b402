"""Cross-entropies with smoothed labels and weighted classes.

Keras has ``label_smoothing`` for one-hot and binary labels, but not for integers, and weights for
classes in ``fit`` alone. `adjusted` puts both into a loss, of any of the cross-entropies.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from finetune_keras._errors import nearest

__all__ = ["WeightedCrossentropy", "adjusted", "balanced", "is_binary", "takes_weights", "weights"]

_KINDS = {
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
}


@keras.saving.register_keras_serializable("finetune_keras")
class WeightedCrossentropy(keras.losses.Loss):
    """A cross-entropy with smoothed labels and a weight for each class.

    Args:
        loss: ``SparseCategoricalCrossentropy``, ``CategoricalCrossentropy`` or
            ``BinaryCrossentropy`` of Keras, as instance.
        label_smoothing: share of each integer label that is spread over all classes (Szegedy et
            al. 2016, arXiv:1512.00567, section 7), from 0 and below 1. The other two losses have
            this themselves.
        class_weight: one number a class; of a yes-or-no loss for 0 and 1. An example's loss is
            multiplied by that of its class, and the mean is over the number of examples, as with
            ``class_weight`` in ``fit``; but here it also holds in ``evaluate``.
        name: of the loss.

    Examples:
        >>> plain = keras.losses.SparseCategoricalCrossentropy()
        >>> loss = WeightedCrossentropy(plain, class_weight=[1.0, 3.0])
        >>> half = ops.full((2, 2), 0.5)
        >>> round(float(loss(ops.array([0, 1]), half) / plain(ops.array([0, 1]), half)), 3)
        2.0
    """

    def __init__(
        self,
        loss: keras.losses.Loss,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        name: str = "weighted_crossentropy",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.class_weight = None if class_weight is None else [float(w) for w in class_weight]

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each example, or of each label where they are several."""
        y_pred = ops.convert_to_tensor(y_pred)
        smooth = self.label_smoothing
        if isinstance(self.loss, keras.losses.BinaryCrossentropy):
            hard = ops.reshape(ops.cast(y_true, y_pred.dtype), ops.shape(y_pred))
            # Keras means over the last axis, and each label here has a weight of its own.
            values = self.loss.call(ops.expand_dims(hard, -1), ops.expand_dims(y_pred, -1))
            if self.class_weight is not None:
                no, yes = self.class_weight
                values = values * (hard * yes + (1.0 - hard) * no)
            return ops.mean(values, axis=-1)
        values = self.loss.call(y_true, y_pred)
        weight = ops.convert_to_tensor(self.class_weight or [1.0], dtype=values.dtype)
        if not isinstance(self.loss, keras.losses.SparseCategoricalCrossentropy):
            return values * ops.sum(ops.cast(y_true, values.dtype) * weight, axis=-1)
        labels = ops.cast(ops.reshape(y_true, ops.shape(values)), "int32")
        config = self.loss.get_config()
        if smooth:
            # (1 - e) times the loss of the label, e times the mean of the losses of all.
            uniform = ops.ones_like(y_pred) / y_pred.shape[-1]
            spread = keras.losses.categorical_crossentropy(
                uniform, y_pred, from_logits=config["from_logits"]
            )
            values = (1.0 - smooth) * values + smooth * spread
        if self.class_weight is not None:
            values = values * ops.take(weight, ops.clip(labels, 0, len(self.class_weight) - 1))
        if config["ignore_class"] is None:
            return values
        known = ops.cast(labels != config["ignore_class"], values.dtype)
        values = ops.where(known > 0, values, 0.0)
        if self.reduction == "sum":
            return values
        # The mean is over the labels that count, as in Keras, whose mask on ``values`` is lost.
        return values * ops.sum(ops.ones_like(known)) / ops.maximum(ops.sum(known), 1.0)

    def get_config(self) -> dict[str, Any]:
        """The loss within, smoothing and weights, beside Keras' own."""
        own = {
            "loss": keras.saving.serialize_keras_object(self.loss),
            "label_smoothing": self.label_smoothing,
            "class_weight": self.class_weight,
        }
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightedCrossentropy:
        """The loss that `get_config` described."""
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})


def adjusted(
    loss: Any, *, label_smoothing: float | None = None, class_weight: Any = None
) -> keras.losses.Loss:
    """``loss`` with smoothed labels, weighted classes or both; what is ``None`` stays.

    Args:
        loss: a cross-entropy of Keras by name, as function or as instance, or a loss of this
            library around one.
        label_smoothing: from 0, which switches it off, and below 1.
        class_weight: one number a class, in the order of the labels; ``False`` switches it off.

    Returns:
        A loss; ``loss`` itself is not changed.

    Raises:
        ValueError: if the loss is no cross-entropy, or the numbers do not fit.
    """
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
    if name in _KINDS and (isinstance(loss, str) or loss is getattr(keras.losses, name)):
        loss = _KINDS[name]()
    inner = getattr(loss, "loss", None)
    own = type(loss).__module__.split(".")[0] == "finetune_keras"
    if own and isinstance(inner, keras.losses.Loss) and not isinstance(loss, WeightedCrossentropy):
        # A loss around it, for missing labels or for one learned weight.
        changed = adjusted(inner, label_smoothing=label_smoothing, class_weight=class_weight)
        made = type(loss).from_config(loss.get_config())
        made.loss = changed
        return made
    smooth, weight = 0.0, None
    if isinstance(loss, WeightedCrossentropy):
        smooth, weight, loss = loss.label_smoothing, loss.class_weight, loss.loss
    if not isinstance(loss, tuple(_KINDS.values())):
        given = loss if isinstance(loss, str) else getattr(loss, "name", None)
        given = given or getattr(loss, "__name__", repr(loss))
        raise ValueError(
            "label_smoothing= and class_weight= are for a cross-entropy; this model's loss is "
            f"{given!r}: {nearest(str(given), _KINDS)}"
        )
    if label_smoothing is not None:
        number = isinstance(label_smoothing, numbers.Real) and not isinstance(label_smoothing, bool)
        if not number or not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be from 0 and below 1; given {label_smoothing!r}"
            )
        smooth = float(label_smoothing)
        if "label_smoothing" in loss.get_config():
            loss = type(loss).from_config({**loss.get_config(), "label_smoothing": smooth})
            smooth = 0.0  # Keras' own does it
    if class_weight is not None:
        weight = None if class_weight is False else class_weight
    if smooth == 0.0 and weight is None:
        return loss
    return WeightedCrossentropy(loss, smooth, weight, reduction=loss.reduction)


def takes_weights(loss: Any) -> bool:
    """Whether `adjusted` can weigh the classes of a loss.

    Examples:
        >>> takes_weights("binary_crossentropy"), takes_weights("binary_focal_crossentropy")
        (True, False)
    """
    try:
        adjusted(loss, class_weight=False)
    except ValueError:
        return False
    return True


def weights(class_weight: Any, counts: Any, classes: int | None, names: Sequence[str] = ()) -> Any:
    """What `adjusted` takes, from what a user gives.

    Args:
        class_weight: ``"balanced"``, a dict by class name or number (1 for those left out), a
            list, or ``False``.
        counts: of the examples of each class, for ``"balanced"``: a list, or a dict by class name
            or number.
        classes: their number, ``None`` where nobody knows (a list then says it).
        names: of the classes, if they have any.

    Raises:
        ValueError: if they do not fit.
    """
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(
                f"class_weight= takes 'balanced', a dict or a list; given {class_weight!r}"
            )
        if counts is None:
            raise ValueError(
                "class_weight='balanced' needs counts=, the number of examples of each class, "
                "such as np.bincount(labels)"
            )
        return balanced(_by_class("counts=", counts, classes, names, 0), names)
    if counts is not None:
        raise ValueError(
            f"counts= goes with class_weight='balanced'; given class_weight={class_weight!r}"
        )
    if class_weight is False:
        return False
    return _by_class("class_weight=", class_weight, classes, names, 1)


def _by_class(
    what: str, given: Any, classes: int | None, names: Sequence[str], default: int
) -> list[float]:
    """Numbers in the order of the classes; ``default`` for those that a dict leaves out."""
    found: Any = given
    if isinstance(given, Mapping):
        if classes is None:
            numbered = [key for key in given if isinstance(key, numbers.Integral)]
            classes = 1 + max(map(int, numbered), default=0)
        found = [default] * classes
        for key, value in given.items():
            place = names.index(key) if key in names else key
            # ``numpy.unique`` gives NumPy's integers.
            number = isinstance(place, numbers.Integral) and not isinstance(place, bool)
            if not number or not 0 <= place < classes:
                known = nearest(str(key), names) if names else f"there are 0 to {classes - 1}"
                raise ValueError(f"{what} has no class {key!r}; {known}")
            found[place] = value
    takes = f"{what} takes {classes or 'some'} numbers, one a class, none below 0"
    try:
        array = np.asarray(found)
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not len(array):
        raise ValueError(f"{takes}; given {given!r}")
    if len(array) != (classes or len(array)):
        raise ValueError(f"{takes}; given {len(array)}")
    if not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"{takes}; given {given!r}")
    return array.astype("float64").tolist()


def balanced(counts: Sequence[float], names: Sequence[str] = ()) -> list[float]:
    """Weights that make every class count the same: ``n / (classes * n_class)``.

    With them the mean weight of an example is 1 (King and Zeng 2001; scikit-learn's
    ``class_weight="balanced"``).

    Args:
        counts: number of examples of each class in the order of the labels, as
            ``np.bincount(labels)`` gives.
        names: of the classes, for the error.

    Raises:
        ValueError: if a class has no example.

    Examples:
        >>> balanced([30, 10])
        [0.6666666666666666, 2.0]
    """
    array = np.asarray(counts, dtype="float64")
    if (array == 0).any():
        empty = int(np.argmin(array))
        name = names[empty] if len(names) == len(array) else empty
        raise ValueError(f"class {name!r} has no example, so no weight balances it")
    return (array.sum() / (len(array) * array)).tolist()


def is_binary(loss: Any) -> bool:
    """Whether a loss, or the one within it, takes 0 or 1 for each output.

    Examples:
        >>> is_binary("binary_crossentropy"), is_binary(keras.losses.MeanSquaredError())
        (True, False)
    """
    while isinstance(getattr(loss, "loss", None), keras.losses.Loss):
        loss = loss.loss
    kind = _KINDS["binary_crossentropy"]
    plain = loss == "binary_crossentropy" or loss is keras.losses.binary_crossentropy
    return plain or isinstance(loss, kind)
