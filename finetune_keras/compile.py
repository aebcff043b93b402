"""Compiling again without losing anything."""

from __future__ import annotations

import contextlib
import numbers
import warnings
from typing import Any

import keras

from finetune_keras import _private, graph, jit, losses, optimizers, parts, record
from finetune_keras._errors import nearest
from finetune_keras.heads import uncertainty

__all__ = ["compile", "learning", "recompile"]


def compile(  # noqa: A001 - Keras' own word for it
    model: keras.Model,
    *,
    optimizer: str | keras.optimizers.Optimizer | None = None,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
    loss: Any = None,
    metrics: Any = None,
    loss_weights: Any = None,
    weighted_metrics: Any = None,
    run_eagerly: bool | None = None,
    steps_per_execution: int | None = None,
    jit_compile: bool | str | None = None,
    clipnorm: float | bool | None = None,
    clipvalue: float | bool | None = None,
    global_clipnorm: float | bool | None = None,
    gradient_accumulation_steps: int | None = None,
    layer_decay: float | bool | None = None,
    ema_momentum: float | bool | None = None,
    label_smoothing: Any = None,
    class_weight: Any = None,
    counts: Any = None,
) -> keras.Model:
    """Compiles a model, keeping all that is not given.

    ``model.compile`` starts from nothing: other defaults, an optimizer without its momenta. Here
    what is ``None`` stays as it was. Without ``optimizer`` the optimizer is rebuilt for what
    learns now and keeps its state and its step count; the old object is no longer
    ``model.optimizer``.

    Args:
        model: a built ``keras.Model``, compiled before or not.
        optimizer: a Keras name or an instance. An instance that was already used is copied by its
            config, since Keras ties an optimizer to the variables it first saw.
        learning_rate: a number or a ``LearningRateSchedule``, whose step 0 is the next step.
            For an optimizer given by name the default is Keras' own (1e-3 for Adam) while only a
            head learns, and a hundredth of it once the backbone does, or a tenth with
            ``layer_decay``.
        loss: as in ``keras.Model.compile``, like all that follow.
        metrics: a list of metrics.
        loss_weights: one weight an output.
        weighted_metrics: metrics that respect ``sample_weight``.
        run_eagerly: whether to run without compiled functions, to debug.
        steps_per_execution: batches for each call of the compiled function.
        jit_compile: whether to use XLA, or ``"auto"``.
        clipnorm: the norm to which the gradient of each variable is clipped, as in Keras'
            optimizers, like the three that follow; ``False`` switches clipping off.
        clipvalue: the value to which each element of the gradients is clipped.
        global_clipnorm: the norm to which all gradients together are clipped.
        gradient_accumulation_steps: batches whose gradients are averaged for one step: the memory
            of one batch, the step of many. 1 switches it off.
        layer_decay: the share of the learning rate that each block of the backbone has of the
            next one's, such as 0.8: the ``decay`` of `finetune_keras.layerwise`. ``False`` switches
            it off.
        ema_momentum: keeps a moving average of the weights, as `finetune_keras.ema` does.
            ``False`` switches it off.
        label_smoothing: share of each label that is spread over all classes, such as 0.1; 0
            switches it off. For several outputs a dict by their names, like the two that follow.
        class_weight: ``"balanced"`` by ``counts``, a dict by class name or number, or a list;
            ``False`` switches it off. The weights are part of the loss, in ``evaluate`` too.
        counts: number of examples of each class, such as ``np.bincount(labels)``.

    With integer labels smoothing, and with any class weights, the loss is one of this library:
    import it before a saved file is loaded to go on training.

    Returns:
        The same model, for chaining.

    Raises:
        ValueError: if the model was never compiled and no loss is given, or nothing learns.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model = compile(model, loss="mse")
        >>> model = compile(model, learning_rate=1e-4)     # keeps the loss
        >>> round(float(model.optimizer.learning_rate), 6)
        0.0001
    """
    given = {
        "loss": loss,
        "metrics": metrics,
        "loss_weights": loss_weights,
        "weighted_metrics": weighted_metrics,
        "run_eagerly": run_eagerly,
        "steps_per_execution": steps_per_execution,
        "jit_compile": jit_compile,
    }
    given = {k: v for k, v in given.items() if v is not None}
    if not isinstance(model, keras.Model):
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"the model {model.name!r} is not built: call it on a batch once, or give it an Input"
        )
    _check(model, given)
    if loss is None and not model.compiled:
        raise ValueError(
            f"the model {model.name!r} was never compiled, so there is no loss to keep: give loss="
        )
    if counts is not None and class_weight is None:
        raise ValueError("counts= goes with class_weight='balanced'")
    if label_smoothing is not None or class_weight is not None:
        was = loss if loss is not None else _private.compile_arguments(model)["loss"]
        given["loss"] = _adjusted(model, was, label_smoothing, class_weight, counts)
    settings = optimizers.settings(
        clipnorm=clipnorm,
        clipvalue=clipvalue,
        global_clipnorm=global_clipnorm,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )
    if not model.trainable_variables:
        raise ValueError(
            f"nothing learns in the model {model.name!r}: thaw something first, for example "
            "finetune_keras.thaw(model, select.head())"
        )

    def wrapped(made: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        if layer_decay is False:
            made = optimizers.without(made, optimizers.LayerwiseOptimizer)
        elif layer_decay is not None:
            made = optimizers.by_decay(made, model, layer_decay)
        if ema_momentum is False:
            made = optimizers.without(made, optimizers.AveragingOptimizer)
        elif ema_momentum is not None:
            made = optimizers.averaged(made, ema_momentum)
        return made

    with scope(model):
        if optimizer is None and model.compiled:
            optimizers.rebind(model)
            carried = optimizers.carry(
                model.optimizer, model.trainable_variables, learning_rate, settings, wrapped
            )
            if carried.restarted:
                kind = type(optimizers.innermost(carried.optimizer)).__name__
                warnings.warn(
                    f"the slots of {kind} could not be carried over and start at zero",
                    stacklevel=2,
                )
            new = carried.optimizer
        else:
            probe = wrapped(optimizers.make(optimizer or "adamw"))
            new = optimizers.make(
                optimizer or "adamw",
                learning_rate,
                default=optimizers.open_rate(probe)
                if backbone_learns(model)
                else optimizers.default_rate(probe),
                settings=settings,
            )
            new = wrapped(new)
            if _in_float16(model):
                new = optimizers.scaled(new)
        recompile(model, new, **given)
    return model


def _in_float16(model: keras.Model) -> bool:
    """Whether gradients would underflow. Keras looks at the policy of the whole model only."""
    return any(x.compute_dtype == "float16" for _, x in graph.opened(model).layers)


def _adjusted(model: keras.Model, loss: Any, smoothing: Any, class_weight: Any, counts: Any) -> Any:
    """The loss, or the losses by output, with the options that were given."""
    found = record.read(model)
    outputs = {o.name: o for o in found.outputs} if found else {}

    def one(name: str, loss: Any, smoothing: Any, class_weight: Any, counts: Any) -> Any:
        if class_weight is not None:
            size = _width(model, name)
            if class_weight is not False and size and size > 1 and losses.is_binary(loss):
                raise ValueError(
                    "class_weight= is for labels of one class an example, and each of the "
                    f"{size} here is 0 or 1 for itself: give sample_weight to fit"
                )
            names = outputs[name].class_names if name in outputs else ()
            if size == 1 and len(names) == 1:  # of the answer yes
                names = (f"not {names[0]}", names[0])
            class_weight = losses.weights(class_weight, counts, 2 if size == 1 else size, names)
        return losses.adjusted(loss, label_smoothing=smoothing, class_weight=class_weight)

    if not isinstance(loss, dict):
        names = getattr(model, "output_names", None) or ()
        if len(names) > 1:
            raise ValueError(
                "label_smoothing= and class_weight= of several outputs need the losses by name: "
                f"loss={{{', '.join(f'{n!r}: ...' for n in names)}}}; given {loss!r}"
            )
        if isinstance(loss, list | tuple) and len(loss) == 1:
            return [one("", loss[0], smoothing, class_weight, counts)]
        return one("", loss, smoothing, class_weight, counts)
    given = {"label_smoothing": smoothing, "class_weight": class_weight, "counts": counts}
    for option, value in given.items():
        known = set(loss) if option != "counts" else set(class_weight or {})
        if value is not None and not (isinstance(value, dict) and set(value) <= known):
            raise ValueError(
                f"{option}= for several outputs is a dict by their names, {', '.join(loss)}; "
                f"given {value!r}"
            )
    changed = set(smoothing or {}) | set(class_weight or {})
    return {
        name: one(name, x, *((v or {}).get(name) for v in given.values())) if name in changed else x
        for name, x in loss.items()
    }


def _width(model: keras.Model, name: str) -> int | None:
    """Number of values in an output, where the model's graph tells."""
    if not graph.is_functional(model):
        return None
    outputs = graph.ends(model)[1]
    if isinstance(outputs, dict):
        return outputs[name].shape[-1] if name in outputs else None
    flat, names = keras.tree.flatten(outputs), getattr(model, "output_names", None) or [""]
    at = names.index(name) if name in names else 0
    return flat[at].shape[-1] if name in names or len(flat) == 1 else None


def _check(model: keras.Model, given: dict[str, Any]) -> None:
    """Keras would find these in the next ``fit`` only."""
    for name in keras.tree.flatten(given.get("loss")):
        if isinstance(name, str):
            keras.losses.get(name)
    for name in keras.tree.flatten([given.get("metrics"), given.get("weighted_metrics")]):
        if isinstance(name, str) and name not in ("accuracy", "acc", "crossentropy", "ce"):
            keras.metrics.get(name)
    names = _output_names(model)
    for option in ("loss", "metrics", "weighted_metrics", "loss_weights"):
        by_name = given.get(option)
        for name in by_name if names and isinstance(by_name, dict) else ():
            if name not in names:
                raise ValueError(
                    f"{option}= has {name!r}, which is no output; {nearest(str(name), names)}"
                )
    steps = given.get("steps_per_execution", 1)
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
        raise ValueError(f"steps_per_execution must be an integer of 1 or more; given {steps!r}")
    xla = given.get("jit_compile", "auto")
    if not isinstance(xla, bool) and xla != "auto":
        raise ValueError(f"jit_compile is True, False or 'auto'; given {xla!r}")


def _output_names(model: keras.Model) -> list[str]:
    """By which losses and metrics are given; none where the graph does not tell."""
    if not graph.is_functional(model):
        return []
    outputs = graph.ends(model)[1]
    return list(
        outputs if isinstance(outputs, dict) else getattr(model, "output_names", None) or ()
    )


def recompile(model: keras.Model, optimizer: keras.optimizers.Optimizer, **given: Any) -> None:
    """Compiles with ``optimizer`` and what the last compile was given, ``given`` on top."""
    before = dict(vars(model))
    allowed = jit.allow(model)
    try:
        kept = _private.compile_arguments(model) if model.compiled else {}
        if allowed and kept and not kept.get("run_eagerly"):
            kept["jit_compile"] = "auto"  # Keras had to answer it by False
        for metric in keras.tree.flatten([kept.get("metrics"), kept.get("weighted_metrics")]):
            if isinstance(metric, keras.metrics.Metric):
                metric.reset_state()  # ``evaluate`` does not, before a first batch has built them
        if {**kept, **given}.get("loss") is not None:
            given["loss"] = uncertainty.bind(model, {**kept, **given}["loss"])
        if model.compiled:
            if model.dtype_policy.name == "mixed_float16":
                given["auto_scale_loss"] = isinstance(
                    model.optimizer, keras.optimizers.LossScaleOptimizer
                )
            # A model's own ``compile`` ran once and left its mark; it may take other arguments.
            keras.Model.compile(model, **{**kept, **given, "optimizer": optimizer})
        else:
            model.compile(**given, optimizer=optimizer)
        if not model.optimizer.built:
            # Keras would do it in ``fit``; now, it cannot be tied to another model before.
            model.optimizer.build(model.trainable_variables)
    except BaseException:
        for layer in allowed:
            layer.supports_jit = False
        vars(model).update(before)
        raise
    record.refresh(model)


def scope(model: keras.Model):
    """The distribution strategy's scope that new variables of a TensorFlow model belong in."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def learning(model: keras.Model, units: tuple[graph.Unit, ...]) -> frozenset[int]:
    """``id``s of the variables among ``units`` that a training step changes by a gradient."""
    on = {id(v) for v in model.trainable_variables}
    return frozenset(id(u.variable) for u in units if id(u.variable) in on)


def backbone_learns(model: keras.Model) -> bool:
    """Whether any variable outside the head learns."""
    divided = parts.parts(model)
    head = {id(u.variable) for u in divided.head_units}
    return any(i not in head for i in learning(model, divided.opened.units))
