"""Another head on a backbone that was fine-tuned already."""

from __future__ import annotations

import math
from typing import Any

import keras

from finetune_keras import _private, graph, optimizers, record, select
from finetune_keras._errors import HeadError
from finetune_keras.backbones import models
from finetune_keras.backbones.base import Backbone
from finetune_keras.build import attach, check_head, finish
from finetune_keras.compile import backbone_learns
from finetune_keras.heads.base import Head
from finetune_keras.regularize import l2sp

__all__ = ["replace_head"]

_KEPT = ("run_eagerly", "steps_per_execution", "jit_compile")


def replace_head(
    model: keras.Model,
    head: Head,
    *,
    freeze: select.Selector | None = None,
    optimizer: str | keras.optimizers.Optimizer | None = None,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
    name: str | None = None,
) -> keras.Model:
    """A new compiled model: the backbone of ``model`` as it is now, under another head.

    For a second task, for other classes, or for another kind of head. What ``select.head()``
    chooses in ``model`` is left behind; augmentation, preprocessing and backbone are shared with
    ``model``, which goes on working: the two have one set of backbone weights and flags between
    them, like two models that were built on one backbone. A ``freeze`` here is one for both:
    call `finetune_keras.compile` on the other before it goes on training.

    Args:
        model: from `finetune_keras.build`, or any functional ``keras.Model`` with a head.
        head: the new head, such as ``heads.Classification(5)``.
        freeze: what shall not learn, such as ``select.backbone()``. ``None`` leaves the flags of
            the backbone as they are.
        optimizer: a Keras name or an instance. By default a fresh one of the kind and settings of
            ``model``'s, or AdamW.
        learning_rate: a number or a schedule. By default that of the old optimizer; but where that
            was the default of `finetune_keras.build` for what learned, the default for what
            learns now.
        name: of the new model; by default that of ``model``.

    Returns:
        A compiled ``keras.Model``.

    Raises:
        HeadError: if ``model`` has no head, or the new one does not fit the features.
        ValueError: if nothing would learn. The flags are then as they were.

    Examples:
        >>> import finetune_keras as ftk
        >>> from finetune_keras import heads
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> digits = ftk.build(base, heads.Classification(10))
        >>> parity = ftk.replace_head(digits, heads.Classification(1), freeze=select.backbone())
        >>> parity.output_shape, digits.output_shape
        ((None, 1), (None, 10))
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"replace_head takes a keras.Model; given a {type(model).__name__}")
    check_head(head, "replace_head")
    short = models.without_head(model)
    if short is None:
        raise HeadError(
            f"no head found in the model {model.name!r}: put one on with "
            "finetune_keras.build(model, head)"
        )
    found = record.read(model)
    origin = found.origin if found else f"keras.Model {model.name!r}"
    inputs, features = graph.ends(short)
    if not _ends_nested(short):
        # ``build`` nests the network, and all that counts layers relies on it.
        backbone = Backbone(short, (), origin)
        inputs = backbone.inputs()
        features = backbone(inputs)
        name = name or f"{model.name}_fine_tuned"
    new = attach(inputs, features, head, origin=origin, name=name or model.name)
    settings, default = _settings(model, optimizer, learning_rate)
    if isinstance(settings["optimizer"], keras.optimizers.Optimizer):
        optimizers.rebind(model)
        settings["optimizer"] = optimizers.retargeted(settings["optimizer"], new)
    finish(new, head, freeze, **settings)
    l2sp.follow(model, new)
    if default:
        optimizers.innermost(new.optimizer).learning_rate = _default_rate(new)
    return new


def _ends_nested(model: keras.Model) -> bool:
    """Whether the features come straight from a nested network."""
    this = graph.tape(model)
    made = {id(t): s.op for s in this.steps for t in keras.tree.flatten(s.outputs)}
    return isinstance(made.get(id(keras.tree.flatten(this.outputs)[0])), keras.Model)


def _settings(model: keras.Model, optimizer: Any, rate: Any) -> tuple[dict[str, Any], bool]:
    """The arguments for ``compile``: what is given, or else what ``model`` has; and whether the
    rate is the default for what learns in ``model``, which need not be what learns in the new one.
    """
    if not model.compiled or model.optimizer is None:
        return {"optimizer": optimizer or "adamw", "learning_rate": rate}, False
    before = _private.compile_arguments(model)
    kept = {k: before[k] for k in _KEPT if before.get(k) is not None}
    default = False
    if optimizer is None:
        optimizer = model.optimizer
        if rate is None and optimizers.scheduled(optimizer):
            rate = _private.rate_object(optimizers.innermost(optimizer))
        elif rate is None:
            # Always given, since a rate makes ``compile`` copy the optimizer.
            rate = optimizers.rate(optimizer)
            default = math.isclose(rate, _default_rate(model), rel_tol=1e-5)
    return {**kept, "optimizer": optimizer, "learning_rate": rate}, default


def _default_rate(model: keras.Model) -> float:
    """The rate that `finetune_keras.build` would give for what learns in ``model``."""
    rate = optimizers.open_rate if backbone_learns(model) else optimizers.default_rate
    return rate(model.optimizer)
