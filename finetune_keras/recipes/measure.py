"""What recipes ask of a model before they decide: probes by depth, and gradients by block."""

from __future__ import annotations

import dataclasses
import itertools

import keras
import numpy as np

from finetune_keras import graph, select
from finetune_keras.cache.features import compute
from finetune_keras.cache.featureset import FeatureSet
from finetune_keras.cache.fit import preprocess
from finetune_keras.cache.solver import solve
from finetune_keras.cache.source import source
from finetune_keras.compile import compile as _compile
from finetune_keras.freeze import thaw
from finetune_keras.recipes.best import Values
from finetune_keras.recipes.examples import Examples
from finetune_keras.recipes.task import Task

__all__ = ["features", "gradient_norms", "probe_losses", "training"]

_BATCHES = 16  # whose gradients are averaged


def probe_losses(task: Task) -> tuple[float, ...] | None:
    """The loss on the validation data of a linear probe on the end of each stage.

    Features of maps and sequences are averaged over their positions. One pass of the network
    gives them all.

    Returns:
        The loss without any features, then one for each stage of ``task.stages``; ``None`` if the
        head cannot be solved, or a stage cannot be computed apart.
    """
    head = task.solvable()
    network = None if head is None else _stages(task)
    if network is None:
        return None
    train, held = features(task, network)
    none = [np.zeros((len(each), 1), "float32") for each in (train, held)]
    found, known = [], [each.view()[1:] for each in (train, held)]
    for x, other in [none, *zip(train.features, held.features, strict=True)]:
        layer = keras.layers.Dense(head.layer.units, use_bias=head.layer.use_bias)
        layer.build((None, x.shape[-1]))
        probe = dataclasses.replace(head, layer=layer)
        y, weights = known[0]
        solution = solve(probe, x, y, sample_weight=weights, validation=(other, *known[1]))
        found.append(dict(solution.scores)[solution.l2])
    return tuple(found)


def gradient_norms(task: Task) -> tuple[float, ...]:
    """The norm of each block's gradient, relative to that of its weights.

    Of the mean gradient of some batches, normalisation layers left out (Lee et al. 2022,
    arXiv:2210.11466, section 4.2). It is what a step of plain gradient descent at a rate of 1
    changes; the weights are as before afterwards.
    """
    model, data, plan = task.model, task.data, task.plan
    before = Values(model)
    steps = min(_BATCHES, plan.steps)
    thaw(model, select.everything(), only=True)
    sgd = keras.optimizers.SGD(
        1.0, gradient_accumulation_steps=steps if steps > 1 else None, clipnorm=None
    )
    _compile(model, optimizer=sgd, layer_decay=False, ema_momentum=False)
    blocks = task.blocks
    learning = [[u.variable for u in b.units if u.variable.trainable] for b in blocks]
    start = [[_array(v) for v in variables] for variables in learning]
    try:
        x, y, weights = data.train
        read = source(
            x,
            y,
            weights,
            batch_size=plan.batch_size if data.arrays else None,
            preprocess=preprocess(model),
        )
        for batch in itertools.islice(read.read(), steps):
            keras.Model.train_on_batch(model, batch.x, batch.y, batch.sample_weight)
        return tuple(
            _norm([_array(v) - a for v, a in zip(variables, arrays, strict=True)])
            / max(_norm(arrays), 1e-12)
            for variables, arrays in zip(learning, start, strict=True)
        )
    finally:
        before.restore()


def _stages(task: Task) -> keras.Model | None:
    """The network up to its last stage, with a vector an example for each one."""
    model, blocks = task.model, task.blocks
    ends = [stage.stop - 1 for stage in task.stages]
    # Blocks inside a layer that cannot be opened end where it does.
    if any(i + 1 < len(blocks) and blocks[i].calls == blocks[i + 1].calls for i in ends):
        return None
    inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name) for t in model.inputs]
    tensors = graph.replay(model, inputs)
    pooled = [_pooled(tensors[blocks[i].output]) for i in ends]
    if any(t is None for t in pooled):
        return None
    structure = keras.tree.pack_sequence_as(graph.ends(model)[0], inputs)
    return keras.Model(structure, pooled)


def _pooled(t: keras.KerasTensor) -> keras.KerasTensor | None:
    """One vector an example; ``None`` of what is no features, such as a mask."""
    if not keras.backend.is_float_dtype(t.dtype) or len(t.shape) < 2:
        return None
    if len(t.shape) == 2:
        return keras.layers.Identity()(t)  # two stages may end in one tensor
    if len(t.shape) == 4:
        return keras.layers.GlobalAveragePooling2D()(t)
    if len(t.shape) == 3:
        return keras.layers.GlobalAveragePooling1D(data_format="channels_last")(t)
    return None


def features(task: Task, network: keras.Model) -> tuple[FeatureSet, FeatureSet]:
    """What a network makes of the examples to learn from, and of those to validate on, in the
    batches that `finetune_keras.fit` makes of them.
    """
    validation = task.data.validation
    held = (validation, None, None)
    if isinstance(validation, tuple):
        held = keras.utils.unpack_x_y_sample_weight(validation)
    return training(task, network, task.data), _features(task, network, held)


def training(task: Task, network: keras.Model, data: Examples) -> FeatureSet:
    """Likewise of what is learned from in ``data``."""
    return _features(task, network, data.train)


def _features(task: Task, network: keras.Model, data: tuple) -> FeatureSet:
    size = task.plan.batch_size if data[1] is not None else None
    read = source(*data, batch_size=size, preprocess=preprocess(task.model))
    return compute(network, read, verbose=0)


def _array(variable: keras.Variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable), dtype="float64")


def _norm(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(a).sum() for a in arrays)))
