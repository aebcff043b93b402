"""What a recipe works with: the model, its data, the planned numbers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import keras

from finetune_keras import _private, flags, graph, parts, select
from finetune_keras.blocks import Block, blocks_of
from finetune_keras.cache.fit import obstacle
from finetune_keras.cache.probe import Probe, solvable
from finetune_keras.cache.split import Division, divide
from finetune_keras.recipes import rate
from finetune_keras.recipes.examples import Examples
from finetune_keras.recipes.phase import Phase
from finetune_keras.recipes.plan import Plan

__all__ = ["Task"]

_STAGES = 4


class Task:
    """One training, as a recipe sees it.

    A recipe is a function of a task that gives phases, all at once or one after another: a
    generator that measures something goes on after the phase it gave has run.

    Attributes:
        model: the model, with the best weights so far whenever the recipe is asked for a phase.
        data: what it learns from.
        plan: the numbers.
        optimizer: each phase has a fresh copy of it.
        notes: what `say` was told.
        measures: what `measured` found, by name.
        told: what was said meanwhile, by name.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Examples,
        plan: Plan,
        optimizer: keras.optimizers.Optimizer,
        *,
        verbose: int = 0,
    ):
        self.model, self.data, self.plan, self.optimizer = model, data, plan, optimizer
        self.notes: list[str] = []
        self.measures: dict[str, Any] = {}
        self.told: dict[str, list[str]] = {}
        self._here: set[str] = set()  # what was measured, or taken up, in this process
        self._verbose = verbose

    def say(self, text: str) -> None:
        """Prints what was measured or decided, and keeps it."""
        self.notes.append(text)
        if self._verbose:
            print(text)

    def measured(self, name: str, measure: Callable[[Task], Any]) -> Any:
        """What ``measure`` finds in the model as it is now; numbers, or a tuple of them.

        It is stored with the run, which decides by it if it goes on in a later process. So what a
        recipe decides by is measured in this way.
        """
        if name not in self.measures:
            first = len(self.notes)
            found = measure(self)
            found = found.tolist() if hasattr(found, "tolist") else found  # of NumPy
            self.measures[name] = json.loads(json.dumps(found))  # as a later process reads it
            self.told[name] = self.notes[first:]
        elif name not in self._here:
            for note in self.told.get(name, ()):
                self.say(note)
        self._here.add(name)
        found = self.measures[name]
        return tuple(found) if isinstance(found, list) else found

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the backbone, from the input on."""
        divided = parts.parts(self.model)
        return blocks_of(divided.opened, divided.head_calls)

    @property
    def stages(self) -> tuple[slice, ...]:
        """The blocks in four groups of about the same number (in fewer where there are fewer)."""
        n = len(self.blocks)
        groups = min(_STAGES, n)
        edges = [round(i * n / groups) for i in range(groups + 1)] if groups else []
        return tuple(slice(a, b) for a, b in itertools.pairwise(edges))

    def divided(self, learn: select.Selector) -> Division | None:
        """The model in two, if only ``learn`` learned; ``None`` where that cannot be done."""
        if obstacle(self.model):
            return None
        before, units = flags.Snapshot(self.model), graph.opened(self.model).units
        try:
            flags.put(self.model, units, self.learned(learn))
            found = divide(self.model, fresh=True)
            return found if found.frozen and found.batched else None
        finally:
            before.restore()

    def learned(self, learn: select.Selector) -> frozenset[int]:
        """What a selector stands for in this model, by the identity of the variables."""
        return frozenset(id(u.variable) for u in select.resolve(self.model, learn))

    def solvable(self) -> Probe | None:
        """The head, if it is one dense layer that can be solved for labels such as these."""
        divided = self.divided(select.head())
        if divided is None:
            return None
        try:
            found = solvable(divided.suffix, _private.compile_arguments(self.model)["loss"])
        except ValueError:
            return None
        takes = functools.partial(_takes, probe=found)
        return found if self.measured("labels of one class", takes) else None

    def probe(self) -> Phase:
        """The head alone on fixed features: solved if it can be, or else trained."""
        own = {"norms": True, "name": "probe", "learn": select.head()}
        if self.plan.solve and self.solvable() is not None:
            return Phase(epochs=1, solver="lbfgs", **own)
        own |= {"epochs": self.plan.epochs, "patience": self.plan.patience}
        return self._rated(Phase(learning_rate=self.plan.head_rate, **own))

    def phase(self, name: str, learn: select.Selector, **changes: Any) -> Phase:
        """A phase with the planned numbers, but for ``changes``; its rate is from a range test
        if it is in neither, and there are steps enough.
        """
        planned = {
            "epochs": self.plan.epochs,
            "learning_rate": self.plan.learning_rate,
            "layer_decay": self.plan.layer_decay,
            "patience": self.plan.patience,
        }
        phase = Phase(name, learn, **{**planned, **changes})
        return phase if "learning_rate" in changes else self._rated(phase)

    def _rated(self, phase: Phase) -> Phase:
        if not self.plan.ranged:
            return phase
        found = self.measured(f"rate of {phase.name}", functools.partial(_rate, phase=phase))
        return dataclasses.replace(phase, learning_rate=found)


def _takes(task: Task, probe: Probe) -> bool:
    taken = all(map(probe.takes, task.data.seen_labels(task.model)))
    if not taken:
        task.say("labels are shares of several classes, so the head is trained, not solved")
    return taken


def _rate(task: Task, phase: Phase) -> float:
    return rate.find(
        task.model,
        task.data,
        phase.learn,
        task.optimizer,
        phase.learning_rate,
        phase.epochs * task.plan.steps,
        norms=phase.norms,
        layer_decay=phase.layer_decay,
        batch_size=task.plan.batch_size,
        say=task.say,
    )
