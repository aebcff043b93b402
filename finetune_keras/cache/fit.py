"""Training that computes what is frozen once."""

from __future__ import annotations

import types
import warnings
from pathlib import Path
from typing import Any

import keras

from finetune_keras import _private, graph, optimizers
from finetune_keras._errors import nearest
from finetune_keras.cache import refuse, solved, source, stages, training
from finetune_keras.cache.augment import augments
from finetune_keras.cache.features import compute
from finetune_keras.cache.shuffled import in_order
from finetune_keras.cache.split import divide
from finetune_keras.callbacks import EMA
from finetune_keras.compile import compile as _compile
from finetune_keras.compile import scope

__all__ = ["fit", "obstacle", "preprocess"]

_OWN = (
    "call",
    "compute_loss",
    "compute_metrics",
    "evaluate",
    "fit",
    "get_metrics_result",
    "make_test_function",
    "make_train_function",
    "test_step",
    "train_step",
)


def fit(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: int | str = "auto",
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = True,
    class_weight: dict | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | list[int] = 1,
    *,
    cache: bool | str | Path = True,
    views: int = 1,
    dtype: str | None = None,
    engine: str = "keras",
    tolerance: float = 0.01,
    key: str | None = None,
    memory: int | None = None,
    solver: str | None = None,
) -> keras.callbacks.History:
    """Trains a model as ``model.fit`` does, but runs what is frozen only once.

    One pass computes what the frozen part makes of each example, of the validation data too; all
    epochs then train the rest on that. The model ends trained, its optimizer where ``model.fit``
    would have left it, and callbacks see the model. With the same order of batches the weights
    are those of ``model.fit`` within the error of floating point, but for two things that are
    meant: dropout inside the frozen part is off (``model.fit`` leaves it on), and augmentation at
    the start of the model gives ``views`` fixed draws of each example in place of a new one at
    each epoch; with ``views=1`` it is off. A data set of ``finetune_keras.data.augmented`` is drawn
    ``views`` times as well, once by default.

    With a `finetune_keras.callbacks.GradualThaw` the frozen part gets shorter on the way: it is
    computed once after each thaw, so that thaws some epochs apart pay off.

    Where nothing is frozen, or the model's graph cannot be read, this is ``model.fit``; it warns
    in the second case.

    Args:
        model: a compiled ``keras.Model``.
        x: as in ``model.fit``, like all that follow up to ``validation_freq``; with two
            differences for data sets and generators, which are read once: their examples are
            shuffled over the whole set at each epoch unless ``shuffle=False``, and a generator
            with ``steps_per_epoch`` is read for one epoch (times ``views``). Training is in
            batches of the size of the first one, should they differ.
        y: labels.
        batch_size: of arrays, 32 by default.
        epochs: number of the last epoch.
        verbose: 0, 1 or 2.
        callbacks: they see ``model``.
        validation_split: the share of arrays to validate on, from their end.
        validation_data: as in ``model.fit``.
        shuffle: whether each epoch has an order of its own.
        class_weight: weights by class number.
        sample_weight: weights by example.
        initial_epoch: number of the first epoch, from 0.
        steps_per_epoch: batches in an epoch.
        validation_steps: batches of the validation data.
        validation_batch_size: of validation arrays.
        validation_freq: epochs from one validation to the next.
        cache: a folder to keep the features in, so that the next run finds them; ``True`` for
            memory; ``False`` for plain ``model.fit``.
        views: draws of each example by the augmentation at the start of the model; with more than
            one, data sets are read as often, and epochs take turns.
        dtype: ``"float16"`` or ``"bfloat16"`` halves what is kept of float32 features.
        engine: what computes the frozen part, ``"keras"`` exactly; see `finetune_keras.features`.
        tolerance: how far another engine may be from Keras.
        key: your name for the data, instead of a fingerprint of them.
        memory: bytes of features in memory; by default a quarter of what is free.
        solver: ``"lbfgs"`` finds the optimum of a single dense layer on the features with
            scikit-learn, in place of epochs of small steps: over a grid of L2 penalties, the best
            by the validation data or else by cross-validation. It reports one epoch, and leaves
            the optimizer as it is; ``history.solution`` tells what was chosen.

    Returns:
        The ``keras.callbacks.History``, also in ``model.history``.

    Raises:
        CacheError: if the folder cannot be used; model and folder are then as they were.
        ValueError: if the data are empty or change shape, or are a generator that plain
            ``model.fit`` would have to read several times; if labels are out of range or not what
            the loss takes, or classes are numbered otherwise in the validation data; if ``solver``
            is given and more than one dense layer learns.

    Examples:
        >>> import numpy as np
        >>> import finetune_keras as ftk
        >>> from finetune_keras import heads, select
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> model = ftk.build(base, heads.Classification(2), freeze=select.backbone())
        >>> x, y = np.random.uniform(0, 255, (20, 24, 24, 3)), np.arange(20) % 2
        >>> history = ftk.fit(model, x, y, epochs=3, validation_split=0.2, verbose=0)
        >>> len(history.history["val_loss"])
        3
    """
    plain = {
        "x": x,
        "y": y,
        "batch_size": batch_size,
        "epochs": epochs,
        "verbose": verbose,
        "callbacks": callbacks,
        "validation_split": validation_split,
        "validation_data": validation_data,
        "shuffle": shuffle,
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "initial_epoch": initial_epoch,
        "steps_per_epoch": steps_per_epoch,
        "validation_steps": validation_steps,
        "validation_batch_size": validation_batch_size,
        "validation_freq": validation_freq,
    }
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    plain["callbacks"] = callbacks = _with_average(model, callbacks)
    held_out = None
    refuse.names(model, x, validation_data)
    refuse.given(model, x, y, sample_weight, "the training data")
    if validation_data is not None:
        held_out = keras.utils.unpack_x_y_sample_weight(validation_data)
        refuse.given(model, *held_out, "the validation data")
    why = obstacle(model) if cache is not False else ""
    if why is None and solver is None and stages.thawing(callbacks):
        given = {"views": views, "dtype": dtype, "engine": engine, "tolerance": tolerance}
        given |= {"key": key, "memory": memory}
        return stages.run(fit, model, plain | given, cache=cache)
    division = divide(model) if why is None else None
    if division is not None and not division.batched:
        why, division = "the frozen part gives tensors without a batch axis", None
    if division is not None and division.prefix.metrics:
        name = division.prefix.metrics[0].name
        why, division = f"a frozen layer reports a metric of its own, {name!r}", None
    _check_solver(solver)
    if division is None or not division.frozen:
        if solver is not None:
            raise ValueError(
                f"solver={solver!r} is for one dense layer on a frozen network; "
                + (why or "nothing is frozen before what learns: freeze=select.backbone()")
            )
        if why:
            warnings.warn(
                f"{model.name!r} is trained by plain model.fit, which computes the frozen part at "
                f"each epoch: {why}",
                stacklevel=2,
            )
        _check_generator(x, epochs - initial_epoch, steps_per_epoch)
        return model.fit(**in_order(model, plain))
    probe = solved.check(model, division.suffix) if solver is not None else None
    if views == 1 and augments(division.prefix):
        warnings.warn(
            "the augmentation at the start of the model is off in this training, since each "
            "example is computed once; views=4, say, trains on four draws of each",
            stacklevel=2,
        )
    elif views == 1 and _varied(x):
        warnings.warn(
            "the data set's augmentation is drawn once for each example in this training, since "
            "each is computed once; views=4, say, trains on four draws of each",
            stacklevel=2,
        )
    given = {"dtype": dtype, "engine": engine, "tolerance": tolerance, "key": key}
    given |= {"memory": memory, "verbose": 1 if verbose == "auto" else verbose}
    prepare = preprocess(model)
    if validation_split and validation_data is None:
        (x, y, sample_weight), held_out = source.split(x, y, sample_weight, validation_split)
    train = _source(x, y, sample_weight, batch_size, steps_per_epoch, prepare, "the training data")
    val = None
    if held_out is not None:
        val = _source(
            *held_out,
            validation_batch_size or batch_size,
            validation_steps,
            prepare,
            "the validation data",
        )
    for data, what in ((train, "the training data"), (val, "the validation data")):
        if data is not None and not data.arrays:
            first = data.first()
            refuse.batch(model, first.x, first.y, first.sample_weight, what)
    folder = None if cache is True else Path(cache)
    found = compute(
        division.prefix, train, views=views, directory=folder and folder / "train", **given
    )
    held = None
    if val is not None:
        held = compute(division.prefix, val, directory=folder and folder / "validation", **given)
    for data, what in ((found, "the training data"), (held, "the validation data")):
        if data is not None:
            refuse.batch(model, (), data.labels, data.sample_weight, what)
    _current(model)  # no earlier: what fails before this leaves the model as it is
    if probe is not None:
        training.compiled(model, division.suffix)
        return solved.run(
            model,
            division.suffix,
            probe,
            found,
            held,
            class_weight=class_weight,
            callbacks=callbacks,
            verbose=given["verbose"],
            epoch=initial_epoch,
        )
    return training.train(
        model,
        division,
        found,
        held,
        {
            **{k: plain[k] for k in ("epochs", "class_weight", "initial_epoch", "validation_freq")},
            "steps_per_epoch": None if _cut_short(train) else steps_per_epoch,
            "validation_steps": None if val is None or _cut_short(val) else validation_steps,
        },
        shuffle=bool(shuffle),
        verbose=given["verbose"],
        callbacks=callbacks,
        memory=memory,
    )


def _with_average(model: keras.Model, callbacks: Any) -> Any:
    """The callbacks, with the one that evaluates averages where the optimizer keeps them."""
    given = getattr(callbacks, "callbacks", callbacks)
    given = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    averages = model.compiled and optimizers.averaging_of(model.optimizer) is not None
    if not averages or any(isinstance(c, EMA) for c in given):
        return callbacks
    return [EMA(), *given]


def _check_solver(solver: str | None) -> None:
    if solver is not None and solver not in solved.SOLVERS:
        raise ValueError(f"there is no solver {solver!r}: {nearest(str(solver), solved.SOLVERS)}")


def obstacle(model: keras.Model) -> str | None:
    """Why the frozen part of a model cannot be computed apart; ``""`` if there is nothing to say,
    ``None`` if it can.
    """
    if not model.compiled or not model.trainable_variables:
        return ""  # ``fit`` says it, or trains nothing
    if not graph.is_functional(model):
        return f"the graph of a {type(model).__name__} with a call of its own cannot be read"
    for cls in type(model).__mro__:
        if cls.__module__.split(".")[0] in ("keras", "keras_hub"):
            continue
        own = [name for name in _OWN if name in vars(cls)]
        if own:
            return f"{cls.__name__} has a {own[0]} of its own"
    losses = [x.name for _, x in graph.opened(model).layers if _adds_loss(x)]
    if losses:
        return f"the layer {losses[0]!r} adds a loss of its activations"
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is not None and strategy.num_replicas_in_sync > 1:
        return "it is distributed over several devices"
    return None


def _varied(x: Any) -> bool:
    """Whether it is a data set of finetune_keras.data that changes its examples at random."""
    return bool(getattr(getattr(x, "plan", None), "transforms", ()))


def _adds_loss(layer: keras.layers.Layer) -> bool:
    if getattr(layer, "activity_regularizer", None) is not None:
        return True
    code = getattr(type(layer).call, "__code__", None)
    return isinstance(layer, keras.layers.ActivityRegularization) or (
        code is not None and "add_loss" in code.co_names
    )


def _check_generator(x: Any, epochs: int, steps: int | None) -> None:
    """Keras would train one epoch, and then find the generator empty."""
    if isinstance(x, types.GeneratorType) and epochs > 1 and steps is None:
        raise ValueError(
            f"{epochs} epochs need the data {epochs} times, and a generator can be read once: make "
            "it a tf.data.Dataset or a keras.utils.PyDataset, or give steps_per_epoch if it does "
            "not end"
        )


def _current(model: keras.Model) -> None:
    """Compiles again if flags were changed by hand since the last time."""
    built = _private.built_on(model.optimizer)
    if built and {id(v) for v in built} != {id(v) for v in model.trainable_variables}:
        warnings.warn(
            f"flags of {model.name!r} were changed since it was compiled: it is compiled again, "
            "with the optimizer's state",
            stacklevel=3,
        )
        _compile(model)
    if not model.optimizer.built:
        with scope(model):
            model.optimizer.build(model.trainable_variables)


def preprocess(model: keras.Model) -> Any:
    """What a KerasHub task does to each batch before it trains on it."""
    if getattr(model, "preprocessor", None) is None:
        return None
    return getattr(model, "preprocess_samples", None)


def _source(
    x: Any,
    y: Any,
    sample_weight: Any,
    batch_size: int | None,
    steps: int | None,
    preprocess: Any,
    what: str,
) -> source.Source:
    """The data; the first ``steps`` batches where there is no end, or no second reading."""
    settings = {"batch_size": batch_size, "preprocess": preprocess, "what": what}
    if steps is not None:
        first = source.source(x, y, sample_weight, steps=steps, **settings)
        if not first.arrays and (not first.again or first.endless):
            return first
        if first.arrays:  # all of them, in batches of the size that the steps make
            settings["batch_size"] = first.batch_size
    return source.source(x, y, sample_weight, **settings)


def _cut_short(data: source.Source) -> bool:
    """Whether an epoch is all that was read."""
    return not data.arrays and (not data.again or data.endless)
