"""What freezing, thawing and the correction of newcomers cost, and a gradual thaw as a whole.

    python benchmarks/thaw.py [--model resnet50 --size 96] [--repeats 5] [--out thaw.json]

Prints seconds for `describe`, `freeze` and `thaw` on a model that was just fitted, and the time of
a training step with the correction of newly thawed variables over the time without it (the same
model, the two in turn, the ratio pair by pair). Everything learns and the images are small, which
is the worst case for the ratio: the correction's work grows with the weights, the step's with the
images too.

``gradual`` is one ``fit`` with `finetune_keras.callbacks.GradualThaw`, a stage at each epoch: its
CPU seconds over those of the same by hand, which is to set ``trainable``, to compile with a new
optimizer and to fit one epoch, stage after stage. Both trace the training function at each stage.
``open`` is the same epochs with everything open from the first on, over by hand too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import ratio, timed

import finetune_keras as ftk
from finetune_keras import heads, select
from finetune_keras.callbacks.steps import steps


def main() -> None:
    """Measures the networks and prints, or writes, one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["mobilenetv2", "resnet50"])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict = {"backend": keras.backend.backend(), "keras": keras.__version__}
    for name in args.model:
        result[name] = measure(name, args.size, args.repeats)
        result[name]["gradual"] = gradual(name, args.size, args.repeats)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def made(name: str, size: int, batch: int = 16, batches: int = 4) -> tuple:
    """A frozen network with a new head, images and labels."""
    x = np.random.default_rng(0).integers(0, 256, (batch * batches, size, size, 3))
    base = ftk.backbone(name, weights=None, input_shape=(size, size, 3))
    model = ftk.build(base, heads.Classification(10), freeze=select.backbone(), optimizer="adam")
    return model, x.astype("float32"), np.arange(len(x)) % 10, {"batch_size": batch, "verbose": 0}


def measure(name: str, size: int, repeats: int) -> dict:
    """Medians over repeats for one network."""
    model, x, y, settings = made(name, size)
    model.fit(x, y, **settings)
    seconds = {
        "describe": median(lambda: ftk.describe(model), repeats),
        "thaw": median(lambda: ftk.thaw(model, select.everything()), repeats),
        "freeze": median(lambda: ftk.freeze(model, select.norms()), repeats),
    }

    def fit() -> None:
        model.fit(x, y, **settings)

    corrected, plain = model.optimizer.apply, type(model.optimizer).apply
    functions = []
    for way in (corrected, plain.__get__(model.optimizer)):
        model.optimizer.apply = way
        model.train_function = None
        fit()
        functions.append((way, model.train_function))
    times: tuple[list, list] = [], []
    for _ in range(repeats):
        for (way, function), took in zip(functions, times, strict=True):
            model.optimizer.apply, model.train_function = way, function
            took.append(timed(fit)[1])
    return {"seconds": seconds, "step_with_correction_over_without": ratio(*times)}


def gradual(name: str, size: int, repeats: int) -> dict:
    """A gradual thaw as a whole, against the same by hand."""
    took: dict = {by_callback: [], by_hand: [], all_open: []}
    for _ in range(repeats):
        for way, times in took.items():
            model, x, y, settings = made(name, size)
            found = steps(model, "stage")
            times.append(timed(way, model, found, x, y, settings)[1])
            keras.backend.clear_session()
    hand = took[by_hand]
    return {
        "stages": len(found),
        "by_hand_cpu_s": round(statistics.median(hand), 2),
        "callback": ratio(took[by_callback], hand),
        "open": ratio(took[all_open], hand),
    }


def by_callback(model: keras.Model, found: tuple, x, y, settings: dict) -> None:
    """One ``fit``."""
    thawing = ftk.callbacks.GradualThaw(by="stage", every=1)
    model.fit(x, y, epochs=len(found) + 1, callbacks=[thawing], **settings)


def by_hand(model: keras.Model, found: tuple, x, y, settings: dict) -> None:
    """With plain Keras, a new optimizer for each stage."""
    model.fit(x, y, **settings)
    network = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    on: set[int] = set()
    for step in found:
        on |= step.variables
        network.trainable = True
        for layer in network.layers:
            layer.trainable = any(id(v) in on for v in layer.weights)
        model.compile(keras.optimizers.Adam(1e-5), model.loss, metrics=["accuracy"])
        model.fit(x, y, **settings)


def all_open(model: keras.Model, found: tuple, x, y, settings: dict) -> None:
    """Everything but normalisations from the first epoch on."""
    ftk.thaw(model, select.everything())
    model.fit(x, y, epochs=len(found) + 1, **settings)


def median(call, repeats: int) -> float:
    """Median wall seconds of a call."""
    return round(statistics.median(timed(call)[0] for _ in range(repeats)), 3)


if __name__ == "__main__":
    main()
