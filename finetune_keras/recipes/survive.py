"""A run that is stored after each epoch, and goes on from there in a later process.

A later process makes the same model and data, and asks the recipe for the same phases: what the
recipe measured is stored, so that it decides the same without measuring. In the phase that was
under way, all that ``fit`` prepares is prepared again from the random states at its start; then,
where the first epoch would begin, weights, optimizer and random states become the stored ones.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import keras
import numpy as np

from finetune_keras import optimizers, select
from finetune_keras._errors import CacheError
from finetune_keras.averaging.scoring import Score
from finetune_keras.compile import scope
from finetune_keras.recipes import chance
from finetune_keras.recipes.best import Best, Values, Watch
from finetune_keras.recipes.folder import Folder
from finetune_keras.recipes.identity import exact
from finetune_keras.recipes.phase import Phase
from finetune_keras.recipes.task import Task

__all__ = ["Survival"]

_PLAIN = (bool, int, float, str, type(None))
# No counter, though it changes: Keras turns its sign, once in a process.
_SIGNED = "min_delta"


class Survival(keras.callbacks.Callback):
    """Stores a run, and takes a stored one up.

    Args:
        folder: where; locked.
        task: the run.
        watch: what keeps the best weights.
        told: the History of all phases but the one that runs.
        given: the callbacks of the user, whose counters are stored too.

    Attributes:
        resumed: what is going on, in words; empty for a new run.
    """

    def __init__(
        self,
        folder: Folder,
        task: Task,
        watch: Watch,
        told: keras.callbacks.History,
        given: list[keras.callbacks.Callback],
    ):
        super().__init__()
        self.resumed = ""
        self._folder, self._task, self._watch, self._told = folder, task, watch, told
        self._given = given
        self._changed: list[set[str]] = [set() for _ in given]
        self._number, self._phases = -1, []
        self._stored: dict[str, Any] | None = None
        self._arrays: dict[str, np.ndarray] = {}
        self._now: keras.callbacks.History | None = None
        self._begun: dict[str, np.ndarray] = {}
        self._begin()

    def _begin(self) -> None:
        model, data = self._task.model, self._task.data
        start = self._folder.start()
        if start is None:
            arrays = {f"v{i}": a for i, a in enumerate(self._watch.values.arrays)}
            arrays |= _named("chance", chance.take(model, data))
            self._folder.write_start(arrays, {})
            self._start = list(self._watch.start.arrays)
            return
        arrays = start[0]
        self._start = _typed(
            [arrays[f"v{i}"] for i in range(len(model.variables))], model.variables
        )
        values = Values(model, arrays=self._start)
        values.restore()
        chance.put(_part("chance", arrays), model, data)
        self._watch.values = self._watch.start = values
        found = self._folder.state()
        if found is None:
            return
        self._arrays, self._stored = found
        state = self._stored
        self._number, self._phases = state["phase"], state["phases"]
        self._task.measures.update(state["measures"])
        self._task.told.update(state["told"])
        self._told.epoch, self._told.history = state["history"]["epoch"], state["history"]["logs"]
        watch = self._watch
        watch.values = self._values("best")
        watch.best = Best(**state["best"]) if state["best"] else None
        watch.score = Score(*state["score"]) if state["score"] else None
        watch.probe = Score(*state["probe"]) if state["probe"] else None
        watch.path = tuple(map(tuple, state["path"]))
        watch.kept = self._values("kept") if state["kept"] else None
        watch.refitted = state["refitted"]
        done = len(state["now"]["epoch"])
        where = f"epoch {len(self._told.epoch) + done}, phase {self._phases[-1]['name']!r}"
        self.resumed = f"goes on after {where}, from {self._folder.path}"
        if not exact(data):
            warnings.warn(
                "the data are batches in an order that is not stored: the run goes on, but not to "
                "the bit as one without a break; arrays and data sets of finetune_keras.data do",
                RuntimeWarning,
                stacklevel=5,
            )

    def past(self, number: int, phase: Phase) -> bool:
        """Whether a phase is over; if it is the last one that is, the model has the best weights
        then.

        Raises:
            CacheError: if the stored run had another phase there.
        """
        described = self._described(phase)
        if number < len(self._phases):
            if self._phases[number] != described:
                before = self._phases[number]
                other = [k for k in described if described[k] != before.get(k)]
                raise CacheError(
                    f"the run in {self._folder.path} had another phase {number + 1}, "
                    f"{before['name']!r}: {', '.join(other)} differ. Give another directory; a "
                    "recipe that measures has to do so by task.measured"
                )
            return number < self._number or self._stored["done"]
        self._phases.append(described)
        return False

    def take_up(self, number: int, told: keras.callbacks.History) -> None:
        """Puts the end of a phase that is over: its History, the random states and best weights."""
        if number == self._number:
            self._recall(told)
            self._count_on()
            self._watch.lost = self._stored["lost"]
            chance.put(_part("chance", self._arrays), self._task.model, self._task.data)
            self._watch.values.restore()

    def enter(self, number: int, told: keras.callbacks.History) -> int:
        """A phase begins, or goes on; how many of its epochs are over."""
        self._now, model = told, self._task.model
        self._going_on = number == self._number and self._stored is not None
        if self._going_on:
            self._watch.values.restore()
            self._begun = _part("begun", self._arrays)
            chance.put(self._begun, model, self._task.data)
            return len(self._stored["now"]["epoch"])
        self._number = number
        self._begun = chance.take(model, self._task.data)
        return 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts what was stored, where the first epoch would begin."""
        self._counters = [_numbers(c) for c in self._given]
        if not self._going_on:
            return
        model, state, watch = self._task.model, self._stored, self._watch
        self._build()
        self._values("now" if state["apart"] else "best").restore()
        variables = optimizers.variables(model.optimizer)
        arrays = [self._arrays[f"o{i}"] for i in range(len(variables))]
        for variable, array in zip(variables, _typed(arrays, variables), strict=True):
            variable.assign(array)
        self._recall(self._now)
        watch.own, watch.since = Score(*state["own"]) if state["own"] else None, state["since"]
        self._count_on()
        chance.put(_part("chance", self._arrays), model, self._task.data)
        self._going_on, self._stored, self._arrays = False, None, {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores."""
        model, watch = self.model, self._watch  # on JAX this fetches the variables
        self._build()
        apart = not watch.improved
        arrays = self._moved("best", watch.values)
        if apart:
            arrays |= self._moved("now", Values(model, watch.values))
        if watch.kept is not None:
            arrays |= self._moved("kept", watch.kept)
        slots = optimizers.variables(model.optimizer)
        arrays |= {f"o{i}": _array(v) for i, v in enumerate(slots)}
        arrays |= _named("chance", chance.take(model, self._task.data))
        arrays |= _named("begun", self._begun)
        last = self._phases[self._number]["epochs"]
        done = model.stop_training or len(self._now.epoch) >= last
        self._folder.write_state(
            arrays,
            {
                "phase": self._number,
                "phases": self._phases[: self._number + 1],
                "done": bool(done),
                "apart": apart,
                "history": {"epoch": self._told.epoch, "logs": _floats(self._told.history)},
                "now": {"epoch": self._now.epoch, "logs": _floats(self._now.history)},
                "params": {k: v for k, v in self._now.params.items() if isinstance(v, _PLAIN)},
                "lost": watch.lost,
                "best": dataclasses.asdict(watch.best) if watch.best else None,
                "score": dataclasses.astuple(watch.score) if watch.score else None,
                "own": dataclasses.astuple(watch.own) if watch.own else None,
                "since": watch.since,
                "probe": dataclasses.astuple(watch.probe) if watch.probe else None,
                "path": watch.path,
                "kept": watch.kept is not None,
                "refitted": watch.refitted,
                "measures": self._task.measures,
                "told": self._task.told,
                "callbacks": self._counted(),
            },
        )

    def _build(self) -> None:
        model = self._task.model
        if not model.optimizer.built:
            with scope(model):
                model.optimizer.build(model.trainable_variables)

    def _counted(self) -> list[tuple[str, dict[str, Any]]]:
        """The counters of the callbacks: what has changed in the epochs of any phase."""
        found = []
        for c, begun, changed in zip(self._given, self._counters, self._changed, strict=True):
            now = _numbers(c)
            changed |= {k for k, v in now.items() if k not in begun or v != begun[k]}
            counted = {k: v for k, v in now.items() if k in changed}
            found.append((type(c).__qualname__, counted))
        return found

    def _count_on(self) -> None:
        """Puts the counters, of each kind of callback in turn."""
        left = list(self._stored["callbacks"])
        for callback, changed in zip(self._given, self._changed, strict=True):
            kind = type(callback).__qualname__
            at = next((i for i, (name, _) in enumerate(left) if name == kind), None)
            if at is not None:
                counted = left.pop(at)[1]
                vars(callback).update(counted)
                changed |= counted.keys()

    def _recall(self, told: keras.callbacks.History) -> None:
        told.epoch = list(self._stored["now"]["epoch"])
        told.history = {k: list(v) for k, v in self._stored["now"]["logs"].items()}
        told.params = self._stored["params"]

    def _moved(self, name: str, values: Values) -> dict[str, np.ndarray]:
        """What is not as it was at the start of the run."""
        pairs = enumerate(zip(values.arrays, self._start, strict=True))
        return {f"{name}/v{i}": a for i, (a, b) in pairs if a is not b}

    def _values(self, name: str) -> Values:
        variables = self._task.model.variables
        arrays = [self._arrays.get(f"{name}/v{i}", a) for i, a in enumerate(self._start)]
        return Values(self._task.model, arrays=_typed(arrays, variables))

    def _described(self, phase: Phase) -> dict[str, Any]:
        """A phase as JSON; what learns by number, since names count what a process has made."""
        model = self._task.model
        learning = {id(unit.variable) for unit in select.resolve(model, phase.learn)}
        number = [i for i, v in enumerate(model.variables) if id(v) in learning]
        found = dataclasses.asdict(dataclasses.replace(phase, learn=None)) | {"learn": number}
        rate = phase.learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            found["learning_rate"] = repr(keras.saving.serialize_keras_object(rate)["config"])
        elif callable(rate):
            found["learning_rate"] = getattr(rate, "__qualname__", type(rate).__qualname__)
        return json.loads(json.dumps(found, default=_number))


def _array(variable: keras.Variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))


def _typed(arrays: list[np.ndarray], variables: list[keras.Variable]) -> list[np.ndarray]:
    """Arrays as stored; NumPy's files forget the names of types that are not its own."""
    types = [_array(v).dtype for v in variables]
    return [a if a.dtype == t else a.view(t) for a, t in zip(arrays, types, strict=True)]


def _named(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}/{k}": v for k, v in arrays.items()}


def _part(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}


def _floats(logs: dict[str, list]) -> dict[str, list]:
    """Numbers of a History as JSON has them, to the bit."""
    return {
        k: [v if isinstance(v, str) else _number(v) for v in values] for k, values in logs.items()
    }


def _number(value: Any) -> Any:
    value = np.asarray(value)
    return value.item() if value.ndim == 0 else value.tolist()


def _numbers(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Counters and the like; those that change in training are stored."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in vars(callback).items()}
    return {k: v for k, v in plain.items() if isinstance(v, _PLAIN) and k != _SIGNED}
