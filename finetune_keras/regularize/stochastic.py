"""Stochastic normalisation in place of a network's batch normalisations, and back."""

from __future__ import annotations

import dataclasses
import warnings

import keras

from finetune_keras import _private, graph, optimizers
from finetune_keras._errors import SelectionError
from finetune_keras.backbones.base import Backbone
from finetune_keras.compile import recompile, scope
from finetune_keras.normalization import StochasticNormalization, checked_seed, probability
from finetune_keras.regularize import l2sp

__all__ = ["stochastic_norm"]

_Plain = keras.layers.BatchNormalization


def stochastic_norm(
    target: keras.Model | Backbone, p: float | None = 0.5, *, seed: int | None = None
) -> keras.Model | Backbone:
    """The network with its batch normalisations made stochastic, their weights kept.

    In training each then uses its moving statistics in place of the batch's with probability
    ``p`` for each channel (Kou et al. 2020); see `finetune_keras.StochasticNormalization`. Outputs
    in inference stay the same to the bit. It acts where normalisations learn:
    `finetune_keras.thaw` leaves them frozen unless it is called with ``norms=True``.

    The new layers have variables of their own. All other layers, their variables and flags are
    shared with ``target``, which stays as it was: go on with one of the two.

    A file with such layers needs ``import finetune_keras`` before ``keras.models.load_model``.
    After training ``stochastic_norm(model, None)`` puts Keras' own layers back, and a file that
    is saved then needs Keras alone.

    Args:
        target: a backbone, or a functional or sequential ``keras.Model``, compiled or not. A model
            that is compiled is compiled again, its optimizer's state kept for what is shared.
        p: probability of the moving statistics, from 0 to 1; ``None`` puts
            ``keras.layers.BatchNormalization`` back.
        seed: of the draws; each layer gets one of its own from it.

    Returns:
        Another one of the kind that was given.

    Raises:
        SelectionError: if there is no batch normalisation, or one inside a layer, which cannot be
            replaced singly.
        ValueError: for a ``p`` outside 0 and 1.

    Examples:
        >>> import finetune_keras as ftk
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> stochastic = ftk.stochastic_norm(base, p=0.3)
        >>> type(stochastic.network.get_layer("stem_bn")).__name__
        'StochasticNormalization'
    """
    p, seed = None if p is None else probability(p), checked_seed(seed)
    if isinstance(target, Backbone):
        return dataclasses.replace(target, network=_replaced(target.network, p, seed))
    if not isinstance(target, keras.Model):
        raise TypeError(
            f"stochastic_norm takes a backbone or a keras.Model; given a {type(target).__name__}"
        )
    made = _replaced(target, p, seed)
    l2sp.move(target, made)
    if target.compiled and target.optimizer is not None:
        given = _private.compile_arguments(target)
        given = {k: v for k, v in given.items() if k != "optimizer" and v is not None}
        with scope(target):
            optimizers.rebind(target)
            pairs = zip(*(graph.opened(m).units for m in (made, target)), strict=True)
            like = {id(new.variable): old.variable for new, old in pairs}
            carried = optimizers.carry(
                target.optimizer,
                made.trainable_variables,
                change=lambda new: optimizers.retargeted(new, made, like),
            )
            recompile(made, carried.optimizer, **given)
    return made


def _replaced(network: keras.Model, p: float | None, seed: int | None) -> keras.Model:
    wanted = StochasticNormalization if p is None else _Plain
    seen = graph.opened(network, chains=False)
    found = {call.path: call.op for call in seen.calls if _is(call.op, wanted)}
    held = [
        path
        for path, layer in seen.layers
        if isinstance(layer, _Plain) and not any(layer is c.op for c in seen.calls)
    ]
    if held:
        raise SelectionError(
            f"{held[0]!r} in {network.name!r} is inside a layer, whose parts cannot be replaced "
            "singly: make the layer itself with a StochasticNormalization"
        )
    if not found:
        kind = "stochastic" if p is None else "batch"
        raise SelectionError(f"there is no {kind} normalisation in {network.name!r} to replace")
    if p is not None and not any(op.trainable for op in found.values()):
        warnings.warn(
            f"all {len(found)} batch normalisations of {network.name!r} are frozen, and a frozen "
            "one always uses its moving statistics: finetune_keras.thaw(model, ..., norms=True)",
            stacklevel=3,
        )
    new: dict[int, keras.layers.Layer] = {}
    for i, op in enumerate({id(op): op for op in found.values()}.values()):
        new[id(op)] = _like(op, p, None if seed is None else (seed + i) % 2**32)
    with scope(network):
        made = graph.rebuild(
            network, {tuple(path.split("/")): new[id(op)] for path, op in found.items()}
        )
    for op in found.values():
        new[id(op)].set_weights(op.get_weights())
        for mine, theirs in zip(new[id(op)].weights, op.weights, strict=True):
            mine.trainable = theirs.trainable
    return made


def _is(op: keras.Operation, wanted: type) -> bool:
    """Of the class and with its ``call``: others compute something else."""
    return isinstance(op, _Plain) and type(op).call is wanted.call


def _like(op: keras.layers.Layer, p: float | None, seed: int | None) -> keras.layers.Layer:
    config = op.get_config()
    if p is None:
        return _Plain.from_config({k: v for k, v in config.items() if k not in ("p", "seed")})
    return StochasticNormalization.from_config({**config, "p": p, "seed": seed})
