"""What freezing, thawing and the correction of newcomers cost, on ResNet50 and on MobileNetV2.

    python benchmarks/thaw.py [--repeats 5] [--out thaw.json]

Prints seconds for `describe`, `freeze` and `thaw` on a model that was just fitted, and the time of
a training step with the correction of newly thawed variables over the time without it (the same
model, the two in turn, the ratio pair by pair). Everything learns and the images are small, which
is the worst case for the ratio: the correction's work grows with the weights, the step's with the
images too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import finetune_keras as ftk
from finetune_keras import heads, select


def main() -> None:
    """Measures both networks and prints, or writes, one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    args = parser.parse_args()
    result = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        **{
            name: measure(name, size, args.repeats)
            for name, size in (("mobilenetv2", 96), ("resnet50", 96))
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")


def measure(name: str, size: int, repeats: int, batch: int = 16) -> dict:
    """Medians over repeats for one network."""
    x = np.random.default_rng(0).integers(0, 256, (batch * 4, size, size, 3)).astype("float32")
    y = np.arange(len(x)) % 10
    base = ftk.backbone(name, weights=None, input_shape=(size, size, 3))
    model = ftk.build(base, heads.Classification(10), freeze=select.backbone())
    model.fit(x, y, batch_size=batch, verbose=0)
    seconds = {
        "describe": timed(lambda: ftk.describe(model), repeats),
        "thaw": timed(lambda: ftk.thaw(model, select.everything()), repeats),
        "freeze": timed(lambda: ftk.freeze(model, select.norms()), repeats),
    }

    def fit() -> float:
        start = time.perf_counter()
        model.fit(x, y, batch_size=batch, verbose=0)
        return time.perf_counter() - start

    corrected, plain = model.optimizer.apply, type(model.optimizer).apply
    ratios = []
    functions = {}
    for way in (corrected, plain.__get__(model.optimizer)):
        model.optimizer.apply = way
        model.train_function = None
        fit()
        functions[way] = model.train_function
    for _ in range(repeats):
        times = []
        for function in functions.values():
            model.train_function = function
            times.append(fit())
        ratios.append(times[0] / times[1])
    return {
        "seconds": seconds,
        "step_with_correction_over_without": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
    }


def timed(call, repeats: int) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times), 3)


if __name__ == "__main__":
    main()
