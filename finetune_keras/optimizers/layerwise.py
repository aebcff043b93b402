"""A learning rate for each depth, with one optimizer and one ``learning_rate``.

The layers near the input of a pretrained network hold what is general, and should move less than
those near the head (Howard and Ruder 2018, arXiv:1801.06146, section 3.1). With a decay `d` and
`n` blocks, block `i` (0 at the input) learns at `rate * d ** (n - i)` and the head at `rate`
(layer-wise learning rate decay as in Clark et al. 2020, arXiv:2003.10555).

The inner optimizer makes its step as always; then each variable goes only a part `m` of the way,

    w = w_old + m * (w_new - w_old)

For a step that is linear in the learning rate (SGD, Adam and their kin) that is the optimizer at
`m` times the rate, decoupled weight decay included, and it needs nothing of the optimizer's
insides: clipping, accumulation and loss scaling are what they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from finetune_keras import _private, blocks, graph, parts, select
from finetune_keras._errors import SelectionError
from finetune_keras.optimizers import moves, state
from finetune_keras.optimizers.wrapper import Optimizer, Wrapper, chain

__all__ = [
    "LayerwiseOptimizer",
    "Rule",
    "by_decay",
    "layerwise",
    "layerwise_of",
    "rebind",
    "retargeted",
]

_DECAY = 0.8
# Their step is not a move from where the weights are, so no part of it can be taken.
_WHOLE = ("Ftrl", "ScheduleFreeAdamW", "MultiOptimizer")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What holds for one variable.

    Attributes:
        path: of the variable, from the model down; unique in the model.
        multiplier: of the learning rate; 0 holds the variable to the bit.
        decays: whether weight decay, if the optimizer has it, applies.
    """

    path: str
    multiplier: float
    decays: bool = True


class _Bound:
    """Which variable has which rule. Not a list or dict: an optimizer tracks what is in those."""

    def __init__(self):
        self.rules: dict[int, Rule] = {}
        self.variables: list[keras.Variable] = []  # keeps the ids alive
        self.buffers: dict[int, Any] = {}

    def put(self, variables: Sequence[keras.Variable], rules: Sequence[Rule]) -> None:
        self.variables.extend(variables)
        self.rules.update((id(v), r) for v, r in zip(variables, rules, strict=True))


@keras.saving.register_keras_serializable(package="finetune_keras")
class LayerwiseOptimizer(Wrapper):
    """An optimizer that takes a part of each variable's step. Made by `layerwise`.

    Args:
        inner_optimizer: the optimizer that makes the step.
        rules: rows ``[path, multiplier, decays]`` for every variable of the model that may
            learn, in the order of its graph.
        learning: which of the rows the optimizer was built for, in its order.
        name: of this optimizer.
    """

    order = 1  # next to the optimizer itself
    # Its rate is the head's, and falls with depth: between a new head's and an open backbone's.
    open_share = 0.1

    def __init__(
        self,
        inner_optimizer: Optimizer,
        rules: Sequence[Sequence] = (),
        learning: Sequence[int] = (),
        name: str | None = None,
    ):
        super().__init__(inner_optimizer, name=name)
        self._rules = tuple(Rule(str(p), float(m), bool(d)) for p, m, d in rules)
        self._learning = tuple(map(int, learning))
        self._bound = _Bound()

    @property
    def multipliers(self) -> dict[str, float]:
        """The multiplier of each variable that may learn, by its path in the model."""
        return {rule.path: rule.multiplier for rule in self._rules}

    def rule(self, variable: keras.Variable) -> Rule | None:
        """What holds for one variable; ``None`` if it is of another model."""
        return self._bound.rules.get(id(variable))

    def multiplier(self, variable: keras.Variable) -> float:
        """The multiplier of one variable; 1 for one of another model."""
        rule = self.rule(variable)
        return 1.0 if rule is None else rule.multiplier

    @property
    def tied(self) -> bool:
        """Whether each rule has its variable."""
        return len(self._bound.rules) >= len(self._rules)

    def bind(self, variables: Sequence[keras.Variable]) -> None:
        """Ties the rules to the variables of the model that may learn, in the order of its graph.

        Raises:
            ValueError: if there are more or fewer than rules.
        """
        if len(variables) != len(self._rules):
            raise ValueError(
                f"this optimizer has multipliers of {len(self._rules)} variables and the model has "
                f"{len(variables)} that may learn: call finetune_keras.layerwise for this model"
            )
        self._bound.put(variables, self._rules)

    def inherit(self, old: LayerwiseOptimizer) -> None:
        """Takes over which variable has which rule."""
        self._bound = old._bound

    def build(self, variables: list[keras.Variable]) -> None:
        """Builds it for variables of the model that it was made for.

        Raises:
            ValueError: if it was loaded from a file and is built for other variables than those
                that learned when it was saved.
        """
        if not self._bound.rules:  # loaded from a file
            if len(variables) != len(self._learning):
                raise ValueError(
                    f"this optimizer was saved for {len(self._learning)} variables that learn, and "
                    f"{len(variables)} do now: load the model with finetune_keras.load, which "
                    "brings the flags of single variables back, or with compile=False"
                )
            self._bound.put(variables, [self._rules[i] for i in self._learning])
        else:
            strange = [v for v in variables if id(v) not in self._bound.rules]
            if strange:
                raise ValueError(
                    f"{len(strange)} variables such as {strange[0].path!r} are not of the model "
                    "that this optimizer was made for: call finetune_keras.layerwise again"
                )
        spared = [v for v in variables if not self._bound.rules[id(v)].decays]
        _private.exclude_from_decay(self.inner_optimizer, spared)
        super().build(variables)

    def wrapped(self, grads: list, variables: list[keras.Variable]) -> None:
        """The inner optimizer's step, then back by what is too much of it."""
        part = [(v, m) for v in variables if (m := self.multiplier(v)) != 1.0]
        old = [moves.kept(v, self._bound.buffers) for v, _ in part]
        with self._decay_of_some(variables):
            self.inner_optimizer.apply(grads, variables)
        for (v, m), was in zip(part, old, strict=True):
            moves.part_way(v, was, m)

    @contextlib.contextmanager
    def _decay_of_some(self, variables: list[keras.Variable]) -> Iterator[None]:
        """No weight decay at all where every variable is excluded: on PyTorch Keras hands it an
        empty list, which is an error there.
        """
        inner = self.inner_optimizer
        decay = inner.weight_decay
        if not any(self._bound.rules[id(v)].decays for v in variables):
            inner.weight_decay = None
        try:
            yield
        finally:
            inner.weight_decay = decay

    def get_config(self) -> dict[str, Any]:
        """The config; paths are those of the model that it was made for."""
        at = {rule.path: i for i, rule in enumerate(self._rules)}
        built = _private.built_on(self)
        learning = [at[self._bound.rules[id(v)].path] for v in built] if built else self._learning
        return {
            **super().get_config(),
            "rules": [[r.path, r.multiplier, r.decays] for r in self._rules],
            "learning": list(learning),
        }


def layerwise(
    optimizer: str | Optimizer,
    model: keras.Model,
    *,
    decay: float | None = None,
    rates: Sequence[tuple[select.Selector, float | None]] | None = None,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
    exclude_from_weight_decay: select.Selector | None = None,
) -> Optimizer:
    """An optimizer whose steps are scaled by depth, or by selectors.

    The result is a Keras optimizer for ``model.compile`` with one ``learning_rate``, a number or
    a schedule that callbacks may set: the head's rate. It knows every variable of the model,
    frozen ones too, so `finetune_keras.freeze` and `finetune_keras.thaw` keep it, its state and
    the multipliers. A ``.keras`` file that has it needs ``import finetune_keras`` to be loaded
    with its optimizer, and nothing with ``compile=False``.

    Args:
        optimizer: a Keras name such as ``"adamw"``, or an instance, which is copied.
        model: a built ``keras.Model``. It is not changed.
        decay: from one block to the next below it, above 0 and at most 1; 0.8 if there are no
            ``rates``. The head has the whole rate, the last block ``decay`` times that.
        rates: pairs of a selector and a multiplier instead; the first that matches a variable
            holds. ``None``, like 0, holds variables to the bit; to save their gradients as well,
            freeze them. Every variable must be matched: end with
            ``(select.everything(), 1.0)``.
        learning_rate: a number or a schedule. ``None`` keeps an instance's own; for a name it is
            a tenth of Keras' default (1e-4 for Adam).
        exclude_from_weight_decay: what no weight decay pulls on, by default
            ``select.norms() | select.biases()``; ``select.nothing()`` lets it pull on all.

    Returns:
        A `LayerwiseOptimizer`, inside a ``LossScaleOptimizer`` if one was given.

    Raises:
        SelectionError: if a selector matches nothing, or a variable is matched by none.
        ValueError: for a multiplier or decay out of range, or an optimizer whose step cannot be
            scaled (FTRL, the schedule-free AdamW) or averages weights itself (``use_ema=True``).

    Examples:
        >>> import finetune_keras as ftk
        >>> from finetune_keras import heads, select
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> model = ftk.build(base, heads.Classification(10))
        >>> model.compile(layerwise("adamw", model, decay=0.8), loss="mse")
        >>> [round(row.rate, 8) for row in ftk.describe(model).rows[-3:]]
        [6.4e-05, 8e-05, 0.0001]
    """
    if isinstance(optimizer, keras.Model):
        raise TypeError("the optimizer comes first: layerwise('adamw', model)")
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    if rates is not None and decay is not None:
        raise ValueError("give decay= or rates=, not both: a selector can choose blocks too")
    divided = parts.parts(model)
    made = state.make(optimizer)
    made = state.copied(made) if made is optimizer else made
    made = _ruled(made, divided, decay, rates, exclude_from_weight_decay)
    if isinstance(optimizer, str) and learning_rate is None:
        head = {id(u.variable) for u in divided.head_units}
        opened = any(id(v) not in head for v in model.trainable_variables)
        learning_rate = state.open_rate(made) if opened else state.default_rate(made)
    return made if learning_rate is None else state.make(made, learning_rate)


def by_decay(made: Optimizer, model: keras.Model, decay: float) -> Optimizer:
    """An optimizer not yet built, with the rates of ``decay`` in place of others."""
    return _ruled(made, parts.parts(model), decay)


def retargeted(
    optimizer: Optimizer, model: keras.Model, like: Mapping[int, keras.Variable] | None = None
) -> Optimizer:
    """A fresh optimizer for a model that shares layers with the one that it was made for; as it is
    if it has no rates by depth. ``like`` tells by the ``id`` of a new variable whose rule it gets;
    others, as of a new head, learn at the whole rate.
    """
    found = layerwise_of(optimizer)
    if found is None:
        return optimizer
    divided = parts.parts(model)
    spared = _spared(divided, None)
    units = [u for u in divided.opened.units if u.learnable]
    rules = []
    for u in units:
        was = found.rule((like or {}).get(id(u.variable), u.variable))
        new = Rule(u.path, 1.0, id(u.variable) not in spared)
        rules.append(new if was is None else dataclasses.replace(was, path=u.path))
    return _wrapped(state.copied(optimizer), rules, [u.variable for u in units])


def _ruled(
    made: Optimizer,
    divided: parts.Parts,
    decay: float | None = None,
    rates: Any = None,
    exclude_from_weight_decay: select.Selector | None = None,
) -> Optimizer:
    units = [u for u in divided.opened.units if u.learnable]
    if rates is None:
        multipliers = _by_depth(divided, _DECAY if decay is None else _checked_decay(decay))
    else:
        multipliers = _by_table(divided, units, rates)
    spared = _spared(divided, exclude_from_weight_decay)
    rules = [Rule(u.path, multipliers[id(u.variable)], id(u.variable) not in spared) for u in units]
    return _wrapped(made, rules, [u.variable for u in units])


def _wrapped(made: Optimizer, rules: list[Rule], variables: list[keras.Variable]) -> Optimizer:
    """Puts ``rules`` around the innermost of an optimizer not yet built, in place of others."""
    inner = chain(made)[-1]
    kind = type(inner).__name__
    if kind in _WHOLE:
        raise ValueError(
            f"the step of {kind} is no move from where the weights are, so no part of it can be "
            "taken: use another optimizer, such as 'adamw'"
        )
    if inner.use_ema:
        raise ValueError(
            f"{kind} has use_ema=True, which would average the steps before they are scaled: leave "
            "it out, and put finetune_keras.ema around layerwise"
        )
    new = LayerwiseOptimizer(inner, [(r.path, r.multiplier, r.decays) for r in rules])
    new.bind(variables)
    return state.nested(made, new)


def layerwise_of(optimizer: Optimizer | None) -> LayerwiseOptimizer | None:
    """The part of an optimizer that scales by depth, if it has one."""
    links = chain(optimizer) if isinstance(optimizer, Optimizer) else ()
    return next((o for o in links if isinstance(o, LayerwiseOptimizer)), None)


def rebind(model: keras.Model) -> None:
    """Ties the multipliers of a model to its frozen variables too, for a later thaw, where Keras
    made its optimizer from a config: in a file, or a clone.
    """
    found = layerwise_of(model.optimizer) if model.compiled else None
    if found is not None and not found.tied:
        found.bind([u.variable for u in graph.opened(model).units if u.learnable])


def _checked_decay(decay: Any) -> float:
    number = isinstance(decay, numbers.Real) and not isinstance(decay, bool)
    if not number or not 0 < decay <= 1:
        raise ValueError(f"decay is a number above 0 and at most 1; given {decay!r}")
    return float(decay)


def _by_depth(divided: parts.Parts, decay: float) -> dict[int, float]:
    found = blocks.blocks_of(divided.opened, divided.head_calls)
    result = {id(u.variable): 1.0 for u in divided.opened.units}
    for block in found:
        for unit in block.units:
            result[id(unit.variable)] = decay ** (len(found) - block.index)
    return result


def _by_table(divided: parts.Parts, units: list[graph.Unit], rates: Any) -> dict[int, float]:
    result: dict[int, float] = {}
    for row in _rows(rates):
        selector, multiplier = row
        for unit in select.resolve_parts(divided, selector):
            result.setdefault(id(unit.variable), multiplier)
    left = [u.path for u in units if id(u.variable) not in result]
    if left:
        raise SelectionError(
            f"{len(left)} variables match no selector in rates=, the first {left[0]!r}: end the "
            "table with (select.everything(), 1.0)"
        )
    return result


def _rows(rates: Any) -> list[tuple[select.Selector, float]]:
    if not isinstance(rates, list | tuple) or not rates:
        raise TypeError(
            "rates is a list of pairs such as [(select.head(), 1.0), (select.backbone(), 0.1)]; "
            f"given {rates!r}"
        )
    rows = []
    for row in rates:
        if not isinstance(row, list | tuple) or len(row) != 2:
            raise TypeError(f"rates has pairs of a selector and a multiplier; given {row!r}")
        selector, multiplier = row
        number = isinstance(multiplier, numbers.Real) and not isinstance(multiplier, bool)
        if multiplier is not None and (not number or not 0 <= multiplier < float("inf")):
            raise ValueError(
                "a multiplier in rates= is a number of 0 or more, or None for frozen; "
                f"given {multiplier!r} for {selector}"
            )
        rows.append((selector, 0.0 if multiplier is None else float(multiplier)))
    return rows


def _spared(divided: parts.Parts, selector: select.Selector | None) -> set[int]:
    if selector is not None:
        return {id(u.variable) for u in select.resolve_parts(divided, selector)}
    # A network may well have neither.
    usual = (select.norms() | select.biases()) & select.everything()
    return {id(u.variable) for u in select.resolve_parts(divided, usual)}
