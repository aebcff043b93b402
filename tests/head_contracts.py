"""What holds for every head, on vectors, sequences and maps."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from conftest import moved, snapshot, value
from contracts import RefusedError, asked, assert_close, assert_same, head_of

import finetune_keras as ftk
from finetune_keras import backbone, heads, select
from finetune_keras.heads.pooling import POOLINGS

__all__ = ["CASES", "CONTRACTS", "SHAPES", "Case", "Trial", "trial"]

layers = keras.layers
N = 12
NAMES = ("ash", "beech", "cedar")


@dataclasses.dataclass(frozen=True)
class Case:
    """One head.

    Attributes:
        name: as the page shows it.
        head: the head.
        labels: of twelve examples.
        bad: labels that it does not take.
        outputs: kind and size of each output.
        kind: ``"head"``, ``"pooling"`` or ``"normalization"``.
        ours: whether its loss is this package's own, so that Keras alone loads it for
            predictions only.
    """

    name: str
    head: heads.base.Head
    labels: Any
    bad: Any
    outputs: tuple[tuple[str, int], ...]
    kind: str = "head"
    ours: bool = False


_Y = np.arange(N) % 3
_YES = (np.arange(N) % 2).astype("int32")
_SEVERAL = np.stack([_YES, 1 - _YES, _YES], axis=-1)
_AGES = (40 + 10 * np.cos(np.arange(N))).astype("float32")
_SIZES = np.stack([_AGES, 2 * _AGES], axis=-1)
_REG = {"mean": 40.0, "std": 7.0}


def _classes(**options: Any) -> heads.Classification:
    return heads.Classification(class_names=NAMES, **options)


def _multi(**options: Any) -> heads.Multi:
    return heads.Multi({"tree": _classes(), "age": heads.Regression(**_REG)}, **options)


_CLASS = (_Y, _Y + 1, (("classification", 3),))
_BOTH = ({"tree": _Y, "age": _AGES}, {"tree": _Y + 1, "age": _AGES})
_TWO = (("classification", 3), ("regression", 1))
_GAPS = {"tree": np.where(_YES == 1, _Y, -1), "age": np.where(_YES == 1, np.nan, _AGES)}

CASES: dict[str, Case] = {
    case.name: case
    for case in [
        Case("Classification(3)", _classes(), *_CLASS),
        Case(
            "Classification(3, hidden=[8], dropout=0.1)", _classes(hidden=[8], dropout=0.1), *_CLASS
        ),
        Case("Classification(3, from_logits=True)", _classes(from_logits=True), *_CLASS),
        Case("Classification(1)", heads.Classification(1), _YES, _YES + 1, (("binary", 1),)),
        Case(
            "Classification(1, from_logits=True)",
            heads.Classification(1, from_logits=True),
            _YES,
            _YES + 1,
            (("binary", 1),),
        ),
        Case(
            "Classification(3, multi_label=True)",
            _classes(multi_label=True),
            _SEVERAL,
            _Y,
            (("multi_label", 3),),
        ),
        Case(
            "Regression(mean=, std=)", heads.Regression(**_REG), _AGES, _SIZES, (("regression", 1),)
        ),
        Case(
            "Regression(2, loss='huber')",
            heads.Regression(2, loss="huber"),
            _SIZES / 40,
            _AGES,
            (("regression", 2),),
        ),
        Case("Ordinal(3)", heads.Ordinal(3, class_names=NAMES), _Y, _Y + 1, (("ordinal", 3),)),
        Case("Multi(weights={...})", _multi(weights={"age": 0.5}), *_BOTH, _TWO),
        Case(
            "Multi(weights='uncertainty')", _multi(weights="uncertainty"), *_BOTH, _TWO, ours=True
        ),
        Case("Multi(missing=True)", _multi(missing=True), _GAPS, _BOTH[1], _TWO, ours=True),
        *(
            Case(f"pooling={p!r}", _classes(pooling=p), *_CLASS, kind="pooling")
            for p in (*POOLINGS, None)
        ),
        *(
            Case(f"normalization={n!r}", _classes(normalization=n), *_CLASS, kind="normalization")
            for n in ("batch", "layer")
        ),
    ]
}


def _vectors() -> keras.Model:
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(16, activation="sigmoid", name="wide")], name="vectors"
    )


def _sequences() -> keras.Model:
    return keras.Sequential(
        [keras.Input((5, 4)), layers.Conv1D(16, 3, padding="same", activation="sigmoid", name="c")],
        name="sequences",
    )


def _maps() -> keras.Model:
    return keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(16, 3, activation="sigmoid", name="c")], name="maps"
    )


SHAPES: dict[str, Callable[[], keras.Model]] = {
    "vectors": _vectors,
    "sequences": _sequences,
    "maps": _maps,
}


class Trial:
    """A head on features of one shape, on trial."""

    def __init__(self, case: Case, shape: str):
        self.case = case
        self.broken: Exception | None = None
        self.folder = tempfile.TemporaryDirectory()
        keras.utils.set_random_seed(7)
        self.network = SHAPES[shape]()
        self.x = np.random.default_rng(2).normal(size=(N, *self.network.input_shape[1:]))
        self.x = self.x.astype("float32") * 2
        try:
            with asked():
                self.model = ftk.build(
                    self.network,
                    case.head,
                    freeze=select.backbone(),
                    optimizer="adam",
                    learning_rate=0.05,
                )
        except RefusedError as e:
            self.broken = e
            return
        self.model = ftk.compile(self.model, run_eagerly=keras.backend.backend() == "tensorflow")
        self.first = keras.tree.map_structure(value, self.model(self.x, training=False))


@functools.lru_cache(maxsize=2)
def trial(case: str, shape: str) -> Trial:
    """The trial of a head; the last ones are kept."""
    return Trial(CASES[case], shape)


def _each(t: Trial, given: Any) -> list[Any]:
    """By output, in the order of the record; that of a dict differs by backend."""
    return [given[o.name] for o in t.case.head.outputs] if isinstance(given, dict) else [given]


def guess(t: Trial) -> None:
    """The first prediction is a guess: all classes alike, or the mean."""
    for predicted, output in zip(_each(t, t.first), t.case.head.outputs, strict=True):
        if output.kind == "regression":
            mean, std = (40.0, 7.0) if "mean" in t.case.name or "Multi" in t.case.name else (0, 1)
            off = float(np.abs(predicted - mean).max()) / std
            assert off < 0.2, f"the first predictions are {off:.2g} deviations from the mean"
            continue
        if output.from_logits:
            assert np.abs(predicted).max() < 0.2, f"a logit of {np.abs(predicted).max():.2g}"
            continue
        one = 0.5 if output.kind in ("binary", "multi_label") else 1 / output.size
        off = float(np.abs(predicted - one).max())
        assert off < 0.05, f"the first probabilities are {off:.2g} from {one:.2g}"


def learns(t: Trial) -> None:
    """On one batch the loss is finite and falls, and all of the head's weights move."""
    before = snapshot(t.model)
    losses = []
    for _ in range(20):
        loss = t.model.train_on_batch(t.x, t.case.labels, return_dict=True)["loss"]
        losses.append(float(value(loss)))
    assert np.isfinite(losses).all(), f"losses {losses}"
    assert min(losses[-3:]) < losses[0] - 0.005, (
        f"the loss goes from {losses[0]:.3g} to {losses[-1]:.3g}"
    )
    assert_same(moved(before, t.model) & head_of(t.model), head_of(t.model), "moved")
    assert not {p for p in moved(before, t.model) if not p.startswith("ftk_head")}, "the rest moved"


def precision(t: Trial) -> None:
    """On features in bfloat16 the output is float32 and finite."""
    model = ftk.build(backbone(t.network, dtype="mixed_bfloat16"), t.case.head)
    for predicted in _each(t, model(t.x, training=False)):
        dtype = keras.backend.standardize_dtype(predicted.dtype)
        assert dtype == "float32", f"the output is {dtype}"
        assert np.isfinite(value(predicted)).all(), "the output is not finite"


def file(t: Trial) -> None:
    """The file is loaded by Keras alone, and predicts the same."""
    path = Path(t.folder.name) / "model.keras"
    t.model.save(path)
    config = zipfile.ZipFile(path).read("config.json")
    if not t.case.ours:
        assert b"finetune_keras" not in config, "the file needs finetune_keras to go on training"
    again = keras.models.load_model(path, compile=False)
    keras.tree.map_structure(
        lambda a, b: assert_close(value(a), value(b), "the predictions", 1e-5),
        again(t.x, training=False),
        t.model(t.x, training=False),
    )
    resumed = ftk.load(path)
    loss = resumed.train_on_batch(t.x, t.case.labels, return_dict=True)["loss"]
    assert np.isfinite(float(value(loss))), f"the loss is {loss} after loading"


def predict(t: Trial) -> None:
    """`ftk.predict` reads the output."""
    found = ftk.predict(t.model, t.x)
    found = list(found.values()) if isinstance(found, dict) else [found]
    for one, (kind, size) in zip(found, t.case.outputs, strict=True):
        assert one.kind == kind, f"{one.kind} in place of {kind}"
        assert one.values.shape == (N, 2 if kind == "binary" else size), f"{one.values.shape}"
        if kind == "regression":
            continue
        if kind in ("classification", "ordinal"):
            assert np.allclose(one.probabilities.sum(axis=-1), 1, atol=1e-4), "no probabilities"
            assert set(one.names) <= set(NAMES), f"names {one.names}"
        assert ((one.probabilities >= 0) & (one.probabilities <= 1)).all(), "no probabilities"


def record(t: Trial) -> None:
    """The record in the model says kind and size of each output."""
    found = ftk.record.read(t.model)
    assert found is not None, "there is no record"
    said = tuple((o.kind, o.size) for o in found.outputs)
    assert said == t.case.outputs, f"it says {said}"


def check(t: Trial) -> None:
    """`ftk.check` finds labels that do not fit, and nothing in those that do."""
    good = [f for f in ftk.check(t.model, (t.x, t.case.labels)) if f.code == "labels"]
    assert not good, f"good labels are found: {good[0]}"
    found = ftk.check(t.model, (t.x, t.case.bad))
    assert any(f.code == "labels" for f in found), f"bad labels are not found: {found}"


CONTRACTS: dict[str, Callable[[Trial], None]] = {
    "first guess": guess,
    "learns": learns,
    "bfloat16": precision,
    "file": file,
    "predict": predict,
    "record": record,
    "check": check,
}
