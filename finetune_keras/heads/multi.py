"""Several heads on one backbone."""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Mapping

import keras

from finetune_keras import record
from finetune_keras._errors import HeadError, nearest
from finetune_keras.heads import base
from finetune_keras.heads.missing import KnownLoss, KnownMetric
from finetune_keras.heads.uncertainty import UncertainLoss, log_variance

__all__ = ["Multi"]

_NONE = {"regression": "NaN where there is none"}


@dataclasses.dataclass(frozen=True)
class Multi(base.Head):
    """Several heads on the same features; the model's output is a dict by your keys.

    Labels are a dict by the same keys, so that ``model.fit(x, {"species": s, "age": a})`` and a
    ``tf.data`` dataset of such pairs work as in plain Keras. (Spell the keys the same: for one
    that is wrong Keras raises a bare ``KeyError: 'age'``, or a ``TypeError`` about a ``str``.)

    Attributes:
        heads: a head for each key, such as ``{"species": Classification(3), "age": Regression()}``.
        weights: of the losses in their sum: a number for each key (1 where one is left out),
            ``None`` for all alike, or ``"uncertainty"`` to learn them (Kendall, Gal and Cipolla
            2018, arXiv:1705.07115; see `finetune_keras.heads.uncertainty`).
        missing: whether examples may lack some labels: -1 (or NaN) for classes, single labels of
            several too, NaN for numbers. They add nothing to the loss, its gradient and the
            metrics, which are means over the labels that there are; a batch without any has loss 0.

    With ``missing=True`` or ``weights="uncertainty"`` the losses are this package's own: Keras
    alone still loads the model for predictions (``compile=False``), and `finetune_keras.load` to
    go on training. Otherwise all is plain Keras.

    Raises:
        HeadError: for keys that are no names, values that are no heads, weights that do
            not fit, and when called on features that do not fit.

    Examples:
        >>> from finetune_keras.heads import Classification, Regression
        >>> head = Multi({"species": Classification(3), "age": Regression()})
        >>> head.labels
        'species: integers from 0 to 2, shape (batch,); age: numbers, shape (batch,)'
        >>> {k: v.shape for k, v in head(keras.Input((7, 7, 16))).items()}
        {'species': (None, 3), 'age': (None, 1)}
    """

    heads: Mapping[str, base.Head]
    _: dataclasses.KW_ONLY
    weights: Mapping[str, float] | str | None = None
    missing: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.heads, Mapping) or not self.heads:
            raise HeadError(
                "Multi takes a dict of heads, such as {'species': Classification(3)}; "
                f"given {self.heads!r}"
            )
        for key, head in self.heads.items():
            _check(key, head)
        object.__setattr__(self, "heads", dict(self.heads))
        if not isinstance(self.missing, bool):
            raise HeadError(f"missing is True or False; given {self.missing!r}")
        if isinstance(self.weights, Mapping):
            for key, weight in self.weights.items():
                if key not in self.heads:
                    raise HeadError(
                        f"weights has {key!r}, which is no head; {nearest(str(key), self.heads)}"
                    )
                base.check_number(f"the weight of {key!r}", weight, 0)
            object.__setattr__(self, "weights", dict(self.weights))
        elif self.weights not in (None, "uncertainty"):
            raise HeadError(
                "weights is a dict with a number for each head, 'uncertainty' or None; "
                f"given {self.weights!r}"
            )

    def connect(
        self,
        features: keras.KerasTensor,
        *,
        mask: keras.KerasTensor | None = None,
        carrier: keras.layers.Layer | None = None,
        prefix: str = "",
    ) -> dict[str, keras.KerasTensor]:
        """Adds the layers; see `Head.connect`. The record goes before all heads."""
        x = features if carrier is None else carrier(features)
        outputs = {}
        for key, head in self.heads.items():
            output = head.connect(x, mask=mask, prefix=f"{prefix}{key}_")
            outputs[key] = log_variance(output, key) if self._learned else output
        return outputs

    @property
    def _learned(self) -> bool:
        return isinstance(self.weights, str)

    @property
    def loss(self) -> dict[str, keras.losses.Loss]:
        """The loss of each head by its key."""
        return {key: self._loss(key, head) for key, head in self.heads.items()}

    def _loss(self, key: str, head: base.Head) -> keras.losses.Loss:
        arguments = head.compile_arguments()
        loss, kind = arguments["loss"], head.outputs[0].kind
        if self._learned:
            half = 0.5 if kind == "regression" else 1.0
            loss = UncertainLoss(loss, key, half * (arguments["loss_weights"] or 1.0))
        return KnownLoss(loss, kind) if self.missing else loss

    @property
    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """The metrics of each head by its key; Keras shows them as ``species_accuracy``."""
        if not self.missing:
            return {key: head.metrics for key, head in self.heads.items()}
        return {
            key: [KnownMetric(m, head.outputs[0].kind) for m in head.metrics]
            for key, head in self.heads.items()
        }

    @property
    def loss_weights(self) -> dict[str, float] | None:
        """The weight of each loss by its key: as given, times that of a regression's ``std``."""
        if self._learned:
            return None
        given = self.weights or {}
        weights = {
            key: float(given.get(key, 1.0)) * (head.compile_arguments()["loss_weights"] or 1.0)
            for key, head in self.heads.items()
        }
        return weights if any(w != 1.0 for w in weights.values()) else None

    @property
    def outputs(self) -> tuple[record.Output, ...]:
        """One output a head."""
        outputs = []
        for key, head in self.heads.items():
            (one,) = head.outputs
            none = _NONE.get(one.kind, "-1 where there is none") if self.missing else ""
            labels = f"{one.labels}, {none}" if none else one.labels
            outputs.append(dataclasses.replace(one, name=key, labels=labels))
        return tuple(outputs)


def _check(key: object, head: object) -> None:
    if not isinstance(key, str) or not key.isidentifier() or keyword.iskeyword(key):
        raise HeadError(f"a key of Multi is a name such as 'species'; given {key!r}")
    if not isinstance(head, base.Head) or isinstance(head, Multi):
        raise HeadError(
            f"the value of {key!r} is a head such as Classification(3); given "
            f"{'another Multi' if isinstance(head, Multi) else repr(head)}"
        )
    if f"{key}_".startswith("record_"):  # as the layer does that carries the record
        raise HeadError(f"keys that begin with 'record' are taken; given {key!r}: use another")
