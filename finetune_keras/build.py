"""A backbone and a head become a compiled ``keras.Model``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from finetune_keras import backbones as _backbones
from finetune_keras import flags, graph, parts, select
from finetune_keras._errors import HeadError
from finetune_keras.backbones.base import Backbone
from finetune_keras.compile import compile as _compile
from finetune_keras.heads.base import Head

__all__ = ["attach", "build", "check_head", "finish"]


def build(
    backbone: Backbone | keras.Model,
    head: Head,
    *,
    freeze: select.Selector | None = None,
    augment: keras.layers.Layer | Sequence[keras.layers.Layer] | None = None,
    optimizer: str | keras.optimizers.Optimizer = "adamw",
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
    name: str | None = None,
    **settings: Any,
) -> keras.Model:
    """Puts a head on a backbone and compiles the model for ``model.fit``.

    The result is a plain functional ``keras.Model``: augmentation, preprocessing, the network as
    one nested layer, the head. It is saved by ``model.save`` and loaded by Keras alone.

    Args:
        backbone: from `finetune_keras.backbone`, or a ``keras.Model`` of your own. Its
            variables and flags are shared by all models built on it; ``backbone.copy()`` gives
            another.
        head: such as ``heads.Classification(10)``.
        freeze: what shall not learn, such as ``select.backbone()``. ``None`` leaves the flags as
            they are.
        augment: a Keras layer such as ``keras.layers.RandomFlip()``, or a list of them, for the
            raw inputs; active in training only.
        optimizer: a Keras name or an instance.
        learning_rate: a number or a schedule. By default, for an optimizer given by name, Keras'
            own default (1e-3 for AdamW) if only the head learns and a hundredth of it if the
            backbone does; an instance keeps its own.
        name: of the model.
        **settings: further arguments of `finetune_keras.compile`, such as ``clipnorm=1.0``,
            ``label_smoothing=0.1``, or ``class_weight="balanced", counts=np.bincount(labels)``.

    Returns:
        A compiled ``keras.Model``.

    Raises:
        HeadError: if the head does not fit the features, or there is a head already.
        ValueError: if nothing would learn. The backbone's flags are then as they were.

    Examples:
        >>> import finetune_keras as ftk
        >>> from finetune_keras import heads, select
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> model = ftk.build(base, heads.Classification(10), freeze=select.backbone())
        >>> model.output_shape, len(model.trainable_variables)
        ((None, 10), 2)
    """
    if isinstance(backbone, str):
        raise TypeError(
            f"build takes a backbone; given the name {backbone!r}: write "
            f"build(backbone({backbone!r}), ...)"
        )
    check_head(head, "build")
    backbone = _backbones.backbone(backbone)
    taken = [x.name for x in _all_layers(backbone.network) if x.name.startswith(parts.HEAD)]
    if taken:
        raise HeadError(
            f"the backbone {backbone.network.name!r} has a layer {taken[0]!r}; names that begin "
            f"with {parts.HEAD!r} are kept for heads: rename it, or cut before it with "
            "backbone(..., cut_at=...)"
        )
    inputs = backbone.inputs()
    if augment is not None and not isinstance(inputs, keras.KerasTensor):
        raise ValueError(
            f"augment= is for a backbone with one input; {backbone.network.name!r} has "
            f"{len(backbone.network.inputs)}: augment in the data pipeline"
        )
    x = inputs
    for layer in _augmenters(augment):
        x = layer(x)
    name = name or f"{backbone.network.name}_fine_tuned"
    model = attach(inputs, backbone(x), head, origin=backbone.source, name=name)
    finish(model, head, freeze, optimizer=optimizer, learning_rate=learning_rate, **settings)
    _warn_of_frozen_random(backbone)
    return model


def _warn_of_frozen_random(backbone: Backbone) -> None:
    """Says so if part of a pretrained network is at random and will stay so."""
    random = set(backbone.edits.random)
    frozen = [
        u
        for u in graph.opened(backbone.network).units
        if u.path in random and not u.variable.trainable
    ]
    if frozen:
        names = list(dict.fromkeys(u.layer.name for u in frozen))
        warnings.warn(
            f"the new {', '.join(map(repr, names))} of {backbone.network.name!r} is at random and "
            "frozen, so it never learns: add "
            f"& ~select.named({names[0]!r}) to freeze=, or thaw it",
            stacklevel=3,
        )


def check_head(head: Any, function: str) -> None:
    """Raises ``TypeError`` unless ``head`` is one."""
    if not isinstance(head, Head):
        hint = ": write heads.Multi({...})" if isinstance(head, dict) else ""
        raise TypeError(
            f"{function} takes a head such as heads.Classification(10); given {head!r}{hint}"
        )


def attach(inputs: Any, features: Any, head: Head, *, origin: str, name: str) -> keras.Model:
    """The model from ``inputs`` to the head's outputs, with the padding mask where there is one.

    Args:
        inputs: symbolic inputs, in any structure.
        features: the tensor that they become.
        head: what goes on it.
        origin: of the features, for the record.
        name: of the model.
    """
    mask = _mask(inputs, features)
    return keras.Model(inputs, head(features, origin=origin, mask=mask), name=name)


def _mask(inputs: Any, features: Any) -> keras.KerasTensor | None:
    """The input that says which steps of a sequence are tokens: KerasHub's ``padding_mask``, TF
    Hub's ``input_mask``.
    """
    if not isinstance(features, keras.KerasTensor) or len(features.shape) != 3:
        return None
    for t in keras.tree.flatten(inputs):
        named = t.name.endswith(("padding_mask", "input_mask")) and len(t.shape) == 2
        if named and len({t.shape[1], features.shape[1]} - {None}) < 2:
            return t
    return None


def finish(
    model: keras.Model,
    head: Head,
    freeze: select.Selector | None,
    **settings: Any,
) -> None:
    """Freezes and compiles a model with a new head; the flags are as they were if that fails.

    Args:
        model: the model.
        head: its head, for loss and metrics.
        freeze: what shall not learn.
        **settings: for `finetune_keras.compile`.
    """
    before = flags.Snapshot(model)
    try:
        if freeze is not None:
            divided = parts.parts(model)
            off = {id(u.variable) for u in select.resolve_parts(divided, freeze)}
            units = divided.opened.units
            flags.put(model, units, flags.on(units, model) - off)
        if not model.trainable_variables:
            raise ValueError(
                f"nothing would learn: freeze={freeze} covers the whole model, the head too; "
                "freeze=select.backbone() leaves the head"
            )
        _compile(model, **{**head.compile_arguments(), **settings})
    except BaseException:
        before.restore()
        raise


def _augmenters(augment: Any) -> Sequence[keras.layers.Layer]:
    layers = [] if augment is None else augment
    layers = layers if isinstance(layers, list | tuple) else [layers]
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                f"augment takes Keras layers such as keras.layers.RandomFlip(); given {layer!r}"
            )
        try:
            type(layer).from_config(layer.get_config())
        except Exception:
            # keras.layers.RandomShear refuses its own config in Keras 3.15, for one.
            warnings.warn(
                f"{type(layer).__name__} cannot be made again from its own config, so a file of "
                "this model could not be loaded: augment in the data pipeline instead",
                stacklevel=3,
            )
    return layers


def _all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for _, layer in graph.opened(model).layers]
