"""Starting the top of a network anew (Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning",
https://arxiv.org/abs/2006.05987, section 5).

What a network learned last is the most tied to the task that it was trained on. A layer is made
again from its own config, and built for the shapes that it was built for; its first weights are
what its own initialisers give.
"""

from __future__ import annotations

import dataclasses
import numbers
import random
from collections.abc import Sequence

import keras
import numpy as np

from finetune_keras import _private, flags, graph, optimizers, parts, record, select
from finetune_keras._errors import SelectionError, sentence
from finetune_keras.compile import recompile, scope
from finetune_keras.regularize import l2sp

__all__ = ["Reinit", "reinit"]


@dataclasses.dataclass(frozen=True)
class Reinit:
    """What `reinit` did.

    Attributes:
        variables: paths of the variables that have new values, statistics included.
        layers: paths of their layers.
        frozen: paths of those among ``variables`` that do not learn as the flags stand.
        seed: what it was called with.
    """

    variables: tuple[str, ...]
    layers: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    seed: int | None = None

    def __str__(self) -> str:
        first, last = self.layers[0], self.layers[-1]
        where = first if first == last else f"{len(self.layers)} layers, {first} to {last}"
        lines = [f"initialised anew: {len(self.variables)} variables in {where}"]
        if self.frozen:
            lines.append(
                f"{len(self.frozen)} of them are frozen, so they stay at random: "
                "finetune_keras.thaw them, with norms=True for normalisation layers"
            )
        return "\n".join(lines)


def reinit(model: keras.Model, selector: select.Selector, *, seed: int | None = None) -> Reinit:
    """Gives variables new values by the initialisers of their own layers.

    Kernels and biases, gamma and beta, moving statistics, whatever the selector chooses; flags
    stay as they are. The optimizer's slots of these variables start again, and their first steps
    are corrected as after `finetune_keras.thaw`; `finetune_keras.l2sp` draws them to their new
    values from then on. What ``keras.layers.Normalization`` learned by
    ``adapt`` stays.

    Args:
        model: a built ``keras.Model``, compiled or not, trained or not.
        selector: what to start anew, such as ``select.blocks(slice(-2, None))``.
        seed: makes the values the same each time on one backend; initialisers that have a seed of
            their own keep it. ``None`` draws from Python's ``random``, which
            ``keras.utils.set_random_seed`` seeds.

    Returns:
        A `Reinit` that lists what has new values, and what of it is frozen.

    Raises:
        SelectionError: if the selector matches nothing with an initialiser.
        ValueError: if a layer cannot be made again from its own config. The model is then as it
            was.

    Examples:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((4,)), dense(8, name="a"), dense(2, name="b")])
        >>> print(reinit(model, select.after("a"), seed=0))
        initialised anew: 2 variables in b
    """
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    if seed is not None and (
        isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0
    ):
        raise ValueError(f"seed is an integer of 0 or more, or None; given {seed!r}")
    divided = parts.parts(model)
    units = select.resolve_parts(divided, selector)
    units = tuple(u for u in units if not isinstance(u.layer, keras.layers.Normalization))
    if not units:
        raise SelectionError(f"{selector} matches nothing in {model.name!r} to initialise")
    _put(model, units, _drawn(units, seed))
    record.refresh(model)
    on = flags.on(divided.opened.units, model)
    learn = {id(u.layer) for u in units if id(u.variable) in on}
    return Reinit(
        variables=tuple(u.path for u in units),
        layers=tuple(dict.fromkeys(u.path.rpartition("/")[0] for u in units)),
        frozen=tuple(
            u.path
            for u in units
            if (id(u.variable) not in on if u.learnable else id(u.layer) not in learn)
        ),
        seed=None if seed is None else int(seed),
    )


def _put(model: keras.Model, units: Sequence[graph.Unit], values: list[np.ndarray]) -> None:
    """Assigns, and lets the optimizer start again for these; all of it or nothing."""
    before = [np.array(keras.ops.convert_to_numpy(u.variable)) for u in units]
    try:
        for unit, value in zip(units, values, strict=True):
            unit.variable.assign(value)
        if model.compiled and model.optimizer is not None and model.optimizer.built:
            with scope(model):
                carried = optimizers.carry(
                    model.optimizer,
                    _private.built_on(model.optimizer),
                    restart=frozenset(id(u.variable) for u in units),
                )
                recompile(model, carried.optimizer)
    except BaseException:
        for unit, value in zip(units, before, strict=True):
            unit.variable.assign(value)
        raise
    l2sp.restart(units)  # after all that can fail


def _drawn(units: Sequence[graph.Unit], seed: int | None) -> list[np.ndarray]:
    """New values, each layer drawing in the order of the graph."""
    layers = {id(u.layer): u for u in units}
    values: dict[int, np.ndarray] = {}
    failed: dict[str, str] = {}
    state = random.getstate()
    try:
        if seed is not None:
            random.seed(int(seed))  # Keras seeds initialisers without a seed from here
        for unit in layers.values():
            try:
                values |= _fresh(unit.layer)
            except Exception as e:  # each layer may fail in its own way
                failed[unit.path.rpartition("/")[0]] = f"{type(unit.layer).__name__}: {sentence(e)}"
    finally:
        if seed is not None:
            random.setstate(state)
    if failed:
        names = ", ".join(map(repr, failed))
        raise ValueError(
            f"the initialisers of {names} are not known, since a layer of the kind cannot be made "
            f"again from its config ({next(iter(failed.values()))}): leave it out of the selector"
        )
    return [values[id(u.variable)] for u in units]


def _fresh(layer: keras.layers.Layer) -> dict[int, np.ndarray]:
    """First values of a layer like this one, by ``id`` of this one's variables."""
    if hasattr(type(layer), "ftk_stages"):
        raise TypeError("its variables are those of a SavedModel, which has no initialisers")
    with _private.known_code():  # it runs here already
        made = type(layer).from_config(layer.get_config())
    made.build_from_config(layer.get_build_config())
    old = [v for group in _private.own_weights(layer) for v in group]
    new = [v for group in _private.own_weights(made) for v in group]
    if [(v.name, tuple(v.shape)) for v in old] != [(v.name, tuple(v.shape)) for v in new]:
        raise ValueError("another one has other variables")
    return {id(o): np.array(keras.ops.convert_to_numpy(n)) for o, n in zip(old, new, strict=True)}
