"""What a schedule of the learning rate changes on real images, against a constant rate.

    python benchmarks/schedules.py --data DATA [--shots 20] [--epochs 15] [--out schedules.json]
    python benchmarks/schedules.py --data DATA --shots 150 --epochs 3 --batch 30

Fine-tunes all of MobileNetV2 (alpha 0.35, ImageNet) but its normalisations by AdamW on some flowers
a class, at several rates: constant, and as the highest rate of each schedule, whose length is that
of the training. For one seed all ways have the same images, the same new head and the same order of
batches. Prints accuracy and loss on the validation images after the last epoch, mean and standard
error over seeds, and those of the difference to the constant rate. DATA holds flowers5/train,
flowers5/val and weights/mobilenet_v2_0.35.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import few, images, mean, mobilenet

import finetune_keras as ftk
from finetune_keras import heads, schedules, select

WAYS = {
    "constant": lambda rate, steps: rate,
    "WarmupCosine": schedules.WarmupCosine,
    "OneCycle": schedules.OneCycle,
    "SlantedTriangular": schedules.SlantedTriangular,
}


def main() -> None:
    """Measures and prints, or writes, one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=20, help="images a class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    train, val = (images(args.data / "flowers5" / part, args.size) for part in ("train", "val"))
    steps = args.epochs * -(-5 * args.shots // args.batch)
    starts = [ftk.snapshot(made(args, seed, 1e-3)) for seed in range(args.seeds)]
    rows = []
    for rate in args.rates:
        constant = None
        for way, schedule in WAYS.items():
            scores = trained(args, schedule(rate, steps), starts, train, val)
            constant = scores if constant is None else constant
            row = {"way": way, "rate": rate}
            for i, what in enumerate(("accuracy", "loss")):
                row[what] = mean(scores[:, i])
                row[f"{what}_difference"] = mean((scores - constant)[:, i])
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row | {"accuracies": [round(a, 3) for a in scores[:, 0].tolist()]})
    settings = {k: getattr(args, k) for k in ("shots", "seeds", "epochs", "batch", "size")}
    result = {"backend": keras.backend.backend(), **settings, "steps": steps, "rows": rows}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def made(args: argparse.Namespace, seed: int, rate: float | schedules.LearningRateSchedule):
    """The network with a new head."""
    keras.utils.set_random_seed(seed)
    model = ftk.build(
        mobilenet(args.data, args.size),
        heads.Classification(5),
        freeze=select.norms(),
        optimizer="adamw",
        learning_rate=rate,
    )
    if keras.backend.backend() == "tensorflow":  # XLA would take longer than all of the training
        model.jit_compile = False
    return model


def trained(
    args: argparse.Namespace,
    rate: float | schedules.LearningRateSchedule,
    starts: list[ftk.Snapshot],
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Accuracy and loss of each seed, by one model, so that it is traced once."""
    x, y = train
    model = made(args, 0, rate)
    model.optimizer.build(model.trainable_variables)
    fresh = [keras.ops.convert_to_numpy(v).copy() for v in model.optimizer.variables]
    scores = []
    for seed, start in enumerate(starts):
        start.restore(model)
        for v, value in zip(model.optimizer.variables, fresh, strict=True):
            v.assign(value)
        keras.utils.set_random_seed(seed)
        rows = few(y, args.shots, seed)
        model.fit(x[rows], y[rows], batch_size=args.batch, epochs=args.epochs, verbose=0)
        logs = model.evaluate(*val, batch_size=100, verbose=0, return_dict=True)
        scores.append([logs["accuracy"], logs["loss"]])
    return np.array(scores)


if __name__ == "__main__":
    main()
