"""L2-SP: towards the weights that training started from (Li, Grandvalet and Davoine 2018,
"Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
https://arxiv.org/abs/1802.01483, section 3).

    alpha / 2 * ||w - w_start||^2 + beta / 2 * ||v||^2

over the weights `w` that have a start, and the weights `v` of the new head. Each variable gets a
regulariser that holds its own start, so that Keras adds its part to the loss wherever it trains.
"""

from __future__ import annotations

import numbers
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from finetune_keras import graph, parts, select
from finetune_keras._errors import SelectionError, nearest, shown
from finetune_keras.attached import Attached
from finetune_keras.compile import recompile, scope

__all__ = ["L2SP", "attach", "follow", "l2sp", "move", "note", "restart"]

NAME = "ftk_l2sp"  # the attribute of a model, and of its files


class _Pull(keras.regularizers.Regularizer):
    """Half of ``strength`` times the squared distance from the start, or from zero.

    ``before`` is the regulariser that the variable had, which stays in force.
    """

    def __init__(self, strength: float, start: keras.Variable | None, before: Any) -> None:
        self.strength, self.start, self.before = strength, start, before

    def __call__(self, x: Any) -> Any:
        x = keras.ops.cast(x, "float32")  # of a variable in half precision, too
        away = x if self.start is None else x - keras.ops.convert_to_tensor(self.start)
        own = 0.5 * self.strength * keras.ops.sum(keras.ops.square(away))
        return own if self.before is None else own + self.before(x)


class L2SP(Attached):
    """What `l2sp` put on a model; it travels with the weights of its files.

    Attributes:
        anchored: paths of the variables that are drawn to their start, with ``alpha``.
        shrunk: paths of those that are drawn to zero, with ``beta``.
        alpha, beta: the strengths.
    """

    def __init__(self, model: keras.Model, alpha: float, beta: float) -> None:
        super().__init__(self._arrays, self._assign)
        self.alpha, self.beta = alpha, beta
        # Weakly: Keras walks through all that hangs on a model, and would come back to it.
        self._model, self._name = weakref.ref(model), model.name

    @property
    def anchored(self) -> tuple[str, ...]:
        return tuple(u.path for u, p in _pulls(self._owner()) if p.start is not None)

    @property
    def shrunk(self) -> tuple[str, ...]:
        return tuple(u.path for u, p in _pulls(self._owner()) if p.start is None)

    def value(self) -> float:
        """The penalty now, over what learns: the part that it has in the loss."""
        on = {id(v) for v in self._owner().trainable_variables}
        found = ((u.variable, p) for u, p in _pulls(self._owner()) if id(u.variable) in on)
        parts_ = (_Pull(p.strength, p.start, None)(v) for v, p in found)
        return float(sum(float(keras.ops.convert_to_numpy(x)) for x in parts_))

    def remove(self) -> None:
        """Takes all penalties off, and compiles again."""
        l2sp(self._owner(), None)

    def __str__(self) -> str:
        return (
            f"L2-SP: {len(self.anchored)} variables are drawn to their start with "
            f"alpha={self.alpha:g}, {len(self.shrunk)} of the head to zero with beta={self.beta:g}"
        )

    def _owner(self) -> keras.Model:
        model = self._model()
        if model is None:
            raise ValueError(f"the model {self._name!r} of this penalty is gone: keep it")
        return model

    def _arrays(self) -> dict[str, np.ndarray]:
        places = {id(u.variable): i for i, u in enumerate(graph.opened(self._owner()).units)}
        arrays = {"strengths": np.array([self.alpha, self.beta], "float64")}
        shrunk = []
        for unit, pull in _pulls(self._owner()):
            place = places[id(unit.variable)]
            if pull.start is None:
                shrunk.append(place)
            else:
                arrays[f"start_{place}"] = _numpy(pull.start)
        return {**arrays, "shrunk": np.array(shrunk, "int64")}

    def _assign(self, arrays: dict[str, np.ndarray]) -> None:
        own = self._arrays()
        same = own.keys() == arrays.keys() and all(
            np.array_equal(own[k], arrays[k]) for k in ("strengths", "shrunk")
        )
        if not same:
            attach(self._owner(), arrays)
            _compiled_again(self._owner())
            return
        places = {f"start_{i}": u for i, u in enumerate(graph.opened(self._owner()).units)}
        for name in own.keys() & places.keys():  # in place: functions that are traced read them
            places[name].variable.regularizer.start.assign(arrays[name])


def l2sp(
    model: keras.Model,
    selector: select.Selector | None = select.backbone(),  # noqa: B008 - a description, immutable
    *,
    alpha: float = 0.01,
    beta: float = 0.01,
    start: keras.Model | None = None,
) -> L2SP | None:
    """Draws weights to where training started, and those of the head to zero.

    Adds ``alpha / 2 * ||w - w_start||^2`` over the chosen variables and ``beta / 2 * ||v||^2``
    over the other variables of the head to the loss, as Keras' own regularisers are added: in
    ``fit`` and in ``evaluate``, under `finetune_keras.fit` too, and for what learns only, so that
    it follows `finetune_keras.freeze` and `finetune_keras.thaw`. Regularisers that layers have
    stay. If the model is compiled it is compiled again, with its optimizer.

    The starts are held beside the weights, which takes their memory once more, and saved in
    ``.keras`` and ``.weights.h5`` files. `finetune_keras.load` brings them back;
    ``keras.models.load_model`` reads such a file and drops them.

    Args:
        model: a built ``keras.Model``.
        selector: what is drawn to its start; statistics in it are left out. ``None`` takes all
            penalties of this function off again.
        alpha: strength of the pull to the start, 0 or more. Useful values go from 0.001 to 1.
        beta: strength of the pull of the head to zero; 0 for none.
        start: a model with the same layers that has the starting weights, such as the pretrained
            one loaded again. By default the weights are taken as they are now; in a second call
            those that have a start keep it.

    Returns:
        An `L2SP` that tells what is drawn where, how large the penalty is now (``.value()``), and
        takes it off (``.remove()``); ``None`` for ``selector=None``.

    Raises:
        SelectionError: if the selector matches nothing that can learn.
        ValueError: for strengths below zero, or a ``start`` that lacks a variable. The model is
            then as it was.

    Examples:
        >>> import finetune_keras as ftk
        >>> from finetune_keras import heads
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> model = ftk.build(base, heads.Classification(10))
        >>> print(ftk.l2sp(model, alpha=0.1))
        L2-SP: 27 variables are drawn to their start with alpha=0.1, 2 of the head to zero ...
    """
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    if selector is None:
        _detach(model)
        _compiled_again(model)
        return None
    alpha, beta = _strength("alpha", alpha), _strength("beta", beta)
    divided = parts.parts(model)
    chosen = [u for u in select.resolve_parts(divided, selector) if u.learnable]
    if not chosen:
        raise SelectionError(f"{selector} matches nothing in {model.name!r} that can learn")
    mine = {id(u.variable) for u in chosen}
    head = [u for u in divided.head_units if u.learnable and id(u.variable) not in mine]
    kept = {id(u.variable): p.start for u, p in _pulls(model) if p.start is not None}
    values = _values(start, chosen) if start is not None else {}
    _detach(model)
    with scope(model):
        for unit in chosen:
            held = kept.get(id(unit.variable))
            if start is not None or held is None:
                held = _held(values.get(id(unit.variable), unit.variable))
            _put(unit, alpha, held)
    for unit in head if beta else ():
        _put(unit, beta, None)
    found = L2SP(model, alpha, beta)
    setattr(model, NAME, found)
    _compiled_again(model)
    return found


def attach(model: keras.Model, arrays: dict[str, np.ndarray]) -> None:
    """Puts penalties on as a file of `L2SP` has them; nothing if there are none in it."""
    if "strengths" not in arrays:
        return
    alpha, beta = map(float, arrays["strengths"])
    units = graph.opened(model).units
    _detach(model)
    with scope(model):
        for name, value in arrays.items():
            if name.startswith("start_"):
                _put(units[int(name.removeprefix("start_"))], alpha, _held(value))
    for place in arrays["shrunk"]:
        _put(units[int(place)], beta, None)
    setattr(model, NAME, L2SP(model, alpha, beta))


def move(old: keras.Model, new: keras.Model) -> None:
    """Puts the penalties of a model on another of the same variables; nothing if it has none."""
    found = getattr(old, NAME, None)
    if isinstance(found, L2SP):
        attach(new, found._arrays())


def follow(old: keras.Model, new: keras.Model) -> None:
    """Goes on in a model that has another head on the variables of ``old``: its head is drawn to
    zero. Nothing if ``old`` has no such penalty.
    """
    found = getattr(old, NAME, None)
    if not isinstance(found, L2SP):
        return
    for unit in parts.parts(new).head_units if found.beta else ():
        if unit.learnable and not isinstance(unit.variable.regularizer, _Pull):
            _put(unit, found.beta, None)
    setattr(new, NAME, L2SP(new, found.alpha, found.beta))


def restart(units: Sequence[graph.Unit]) -> None:
    """Makes the values that variables have now those that they are drawn to."""
    for unit in units:
        pull = unit.variable.regularizer
        if isinstance(pull, _Pull) and pull.start is not None:
            pull.start.assign(_numpy(unit.variable))


def note(model: keras.Model) -> str:
    """A line for `finetune_keras.describe`; empty if the model has no such penalty."""
    found = getattr(model, NAME, None)
    return str(found) if isinstance(found, L2SP) else ""


def _strength(what: str, value: Any) -> float:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 <= float(value) < float("inf"):
        raise ValueError(f"{what} is a number of 0 or more; given {shown(value)}")
    return float(value)


def _pulls(model: keras.Model) -> list[tuple[graph.Unit, _Pull]]:
    units = graph.opened(model).units
    return [(u, u.variable.regularizer) for u in units if isinstance(u.variable.regularizer, _Pull)]


def _put(unit: graph.Unit, strength: float, start: keras.Variable | None) -> None:
    unit.variable.regularizer = _Pull(strength, start, unit.variable.regularizer)


def _detach(model: keras.Model) -> None:
    for unit, pull in _pulls(model):
        unit.variable.regularizer = pull.before
    if hasattr(model, NAME):
        delattr(model, NAME)


def _held(value: Any) -> keras.Variable:
    """A copy: on JAX a variable that shared the buffer would lose it in the next step."""
    return keras.Variable(_numpy(value), trainable=False, dtype="float32", name="start")


def _numpy(value: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value), "float32")


def _values(start: Any, chosen: list[graph.Unit]) -> dict[int, keras.Variable]:
    """Variables of ``start`` by ``id`` of those of the model; a backbone's paths lack its name."""
    if not isinstance(start, keras.Model):
        raise TypeError(f"start is a keras.Model; given a {type(start).__name__}")
    theirs = {u.path: u.variable for u in graph.opened(start).units}
    found = {}
    for unit in chosen:
        path = unit.path if unit.path in theirs else unit.path.partition("/")[2]
        if path not in theirs:
            raise ValueError(f"start has no {unit.path!r}; {nearest(unit.path, theirs)}")
        if tuple(theirs[path].shape) != tuple(unit.variable.shape):
            raise ValueError(
                f"start has {path!r} of shape {tuple(theirs[path].shape)}, and the model of "
                f"shape {tuple(unit.variable.shape)}"
            )
        found[id(unit.variable)] = theirs[path]
    return found


def _compiled_again(model: keras.Model) -> None:
    """Losses are traced with the training function."""
    if model.compiled and model.optimizer is not None:
        recompile(model, model.optimizer)
