"""Gradual thawing, from the top of a network down (Howard and Ruder 2018, ULMFiT, section 3.3)."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from finetune_keras import _private, flags, graph, optimizers, select
from finetune_keras._errors import nearest, shown
from finetune_keras.attached import Attached
from finetune_keras.callbacks import checks
from finetune_keras.callbacks.steps import Step, steps
from finetune_keras.freeze import thaw
from finetune_keras.optimizers import newcomers

__all__ = ["GradualThaw", "Thawed"]

Schedule = keras.optimizers.schedules.LearningRateSchedule
_NAME = "ftk_gradual_thaw"  # the attribute of a model that training leaves its state in


class Thawed(NamedTuple):
    """What was thawed: at the start of which epoch, from 0; which blocks; the rate from then on."""

    epoch: int
    blocks: tuple[str, ...]
    learning_rate: float


class GradualThaw(keras.callbacks.Callback):
    """Thaws a frozen network during training, from the top down.

    Freeze the backbone first: the head learns alone until the first thaw. Each thaw happens at
    the start of an epoch and is a `finetune_keras.thaw`: what learns already keeps the
    optimizer's state, what joins starts with steps of about the learning rate, normalisations
    stay frozen.

    How far the model is follows from the epoch and from what is frozen, and from nothing that the
    callback remembers. So training goes on at the right place with
    ``fit(initial_epoch=...)`` and a fresh callback, after `finetune_keras.load`, and with
    ``keras.callbacks.BackupAndRestore`` (put it behind this one; its files also hold how far the
    thaw is). ``finetune_keras.fit`` computes each stage's frozen part once.

    Args:
        by: ``"block"`` thaws a block at a time, ``"stage"`` all blocks of one stride.
        every: epochs from one thaw to the next. The first is at epoch ``every``, counted from 0;
            1 by default, as in the paper.
        at: the epochs at whose start to thaw, from 0, in place of ``every``.
        patience: epochs without improvement of ``monitor`` after which to thaw, in place of
            ``every``; they are counted anew after each thaw and in each ``fit``.
        monitor: name of a metric, as in ``keras.callbacks.EarlyStopping``, like ``min_delta`` and
            ``mode``.
        min_delta: the least change that counts as an improvement.
        mode: ``"min"``, ``"max"`` or ``"auto"``.
        learning_rate: the rate from the first thaw on; or one for each thaw, as a list (its last
            for all that follow) or as a function of the number of the thaw, from 1. A schedule
            begins at the first thaw, and one in a list at its own. ``None`` follows
            `finetune_keras.thaw`: it falls to a hundredth of the optimizer's default, unless it is
            lower.
        decay: factor on the rate at each thaw but the first.
        thaws: how many thaws at most.
        norms: whether normalisation layers are thawed too.
        verbose: 1 prints a line for each thaw.

    Attributes:
        history: a `Thawed` for each thaw so far: epoch, blocks, learning rate.

    Raises:
        ValueError: for arguments out of range. When training begins, if ``by="stage"`` and the
            model has no stages.

    Examples:
        >>> import finetune_keras as ftk
        >>> from finetune_keras import heads, select
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> model = ftk.build(base, heads.Classification(2), freeze=select.backbone())
        >>> x, y = np.random.uniform(0, 255, (8, 24, 24, 3)), np.arange(8) % 2
        >>> thawing = ftk.callbacks.GradualThaw(by="stage", decay=0.5)
        >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[thawing])
        >>> [(t.epoch, t.blocks, f"{t.learning_rate:.0e}") for t in thawing.history]
        [(1, ('stage3_block1_out',), '1e-05')]
    """

    def __init__(
        self,
        by: str = "block",
        *,
        every: int | None = None,
        at: Sequence[int] | None = None,
        patience: int | None = None,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        mode: str = "auto",
        learning_rate: float | Schedule | Sequence | Callable[[int], Any] | None = None,
        decay: float = 1.0,
        thaws: int | None = None,
        norms: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(by, str) or by not in ("block", "stage"):
            raise ValueError(f"by is 'block' or 'stage'; given {shown(by)}")
        if sum(x is not None for x in (every, at, patience)) > 1:
            raise ValueError("a thaw is due every= n epochs, at= given epochs, or after patience=")
        if every is None and at is None and patience is None:
            every = 1
        self.by, self.norms, self.verbose = by, bool(norms), verbose
        self.every = None if every is None else checks.count("every", every)
        self.at = None if at is None else checks.epochs("at", at)
        self.patience = None if patience is None else checks.count("patience", patience)
        self.thaws = None if thaws is None else checks.count("thaws", thaws)
        self.learning_rate, self.decay = checks.rates(learning_rate, decay)
        self.monitor, min_delta = checks.change(monitor, min_delta)
        self._plateau = None
        if patience is not None:
            if mode not in ("auto", "min", "max"):
                raise ValueError(f"mode is 'auto', 'min' or 'max'; given {mode!r}")
            # Keras' own way to tell a plateau, on a stand-in for the model that it would stop.
            self._plateau = keras.callbacks.EarlyStopping(
                monitor, min_delta, self.patience, 0, mode
            )
        self.history: list[Thawed] = []
        self._steps: tuple[Step, ...] = ()
        self._units: tuple[graph.Unit, ...] = ()

    def set_model(self, model: keras.Model) -> None:
        """Called by Keras before training, and before other callbacks load a backup."""
        super().set_model(model)
        self._steps = ()
        setattr(model, _NAME, Attached(self._state, self._restore))
        if self._plateau is not None:
            self._plateau.set_model(types.SimpleNamespace(stop_training=False))
            self._plateau.on_train_begin()

    def on_train_begin(self, logs: Any = None) -> None:
        """Reads the steps off the model, so that a mistake shows before any training."""
        self._read()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Thaws what is due."""
        self.advance(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks for a plateau."""
        if self._plateau is None:
            return
        logs = logs or {}
        if self.monitor not in logs:
            warnings.warn(
                f"GradualThaw waits for a plateau of {self.monitor!r}, which is not reported; "
                + nearest(self.monitor, logs),
                stacklevel=2,
            )
            return
        self._plateau.model.metrics = self.model.metrics
        self._plateau.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the model as other files expect it."""
        if hasattr(self.model, _NAME):
            delattr(self.model, _NAME)

    def due(self, epoch: int) -> tuple[Step, ...]:
        """What is to be thawed at the start of ``epoch`` and is not yet."""
        opened = self._opened()
        if self.every is not None:
            stage = epoch // self.every
        elif self.at is not None:
            stage = sum(a <= epoch for a in self.at)
        elif self._plateau.model.stop_training:
            stage = (opened.index(False) if False in opened else len(opened)) + 1
        else:
            stage = 0
        stage = stage if self.thaws is None else min(stage, self.thaws)
        return tuple(s for s, o in zip(self._steps[:stage], opened[:stage], strict=True) if not o)

    def advance(self, epoch: int) -> None:
        """Thaws what is due at the start of ``epoch``; a second call does nothing."""
        due = self.due(epoch)
        if not due:
            self._warn(epoch)
            return
        rate = self._thaw(due)
        names = tuple(name for step in due for name in step.blocks)
        self.history.append(Thawed(epoch, names, rate))
        if self._plateau is not None:
            self._plateau.model.stop_training, self._plateau.wait = False, 0
        if self.verbose:
            shown = names[0] if len(names) == 1 else f"{names[0]} down to {names[-1]}"
            print(f"Epoch {epoch + 1}: thawed {shown}, learning rate {rate:.3g}")

    def _thaw(self, due: tuple[Step, ...]) -> float:
        chosen = frozenset().union(*(s.variables for s in due))
        number = self._steps.index(due[-1]) + 1
        rate = checks.rate_at(
            self.learning_rate, self.decay, number, len(due), self.model.optimizer
        )
        with _private.compiled_in_fit(self.model):
            thaw(
                self.model,
                select.where(lambda path, layer, variable: id(variable) in chosen),
                learning_rate=rate,
                norms=self.norms,
            )
        return optimizers.rate(self.model.optimizer)

    @property
    def stage(self) -> int:
        """How many steps learn already, as the flags of the model stand."""
        return sum(self._opened())

    def _opened(self) -> list[bool]:
        self._read()
        on = flags.on(self._units, self.model)
        return [s.variables <= on for s in self._steps]

    def _read(self) -> None:
        if self.model is None:
            raise ValueError("GradualThaw has no model yet: pass it to fit(callbacks=[...])")
        if not self._steps:
            self._steps = steps(self.model, self.by, norms=self.norms)
            self._units = graph.opened(self.model).units

    def _warn(self, epoch: int) -> None:
        if epoch == 0 and all(self._opened()):
            warnings.warn(
                f"GradualThaw has nothing to thaw in {self.model.name!r}, where all blocks learn "
                "already: finetune_keras.freeze(model, select.backbone()) first",
                stacklevel=2,
            )

    def _state(self) -> dict[str, np.ndarray]:
        """What a backup needs beside weights and optimizer."""
        opened = self._opened()
        places = {id(u.variable): i for i, u in enumerate(self._units)}
        groups = newcomers.groups(optimizers.innermost(self.model.optimizer))
        state = {"opened": np.array(opened, bool)}
        for i, group in enumerate(groups):
            found = [places[id(v)] for v in group.variables if id(v) in places]
            state[f"joined_{i}"] = np.array([group.since, *found], "int64")
        if self._plateau is not None and self._plateau.best is not None:
            state["plateau"] = np.array([self._plateau.best, self._plateau.wait], "float64")
            state["reached"] = np.array(self._plateau.model.stop_training)
        return state

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        """Thaws what the file's model had thawed, before Keras loads the optimizer's state."""
        now = self._opened()
        stages = zip(self._steps, state["opened"], now, strict=True)
        due = tuple(s for s, was, is_ in stages if was and not is_)
        if due:
            self._thaw(due)
        inner = optimizers.innermost(self.model.optimizer)
        joined = [a for name, a in sorted(state.items()) if name.startswith("joined_")]
        if joined and not newcomers.groups(inner):
            variables = [u.variable for u in self._units]
            newcomers.attach(
                inner,
                [newcomers.Group(int(n), tuple(variables[i] for i in p)) for n, *p in joined],
            )
        if self._plateau is not None and "plateau" in state:
            best, wait = state["plateau"]
            self._plateau.best, self._plateau.wait = float(best), int(wait)
            self._plateau.model.stop_training = bool(state["reached"])
