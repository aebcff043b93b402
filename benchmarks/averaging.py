"""What WiSE-FT and soups change on real photographs, as they are and shifted.

    python benchmarks/averaging.py --data DATA [--norms] [--seeds 0 1 2] [--out rows.jsonl]

DATA has ``flowers5/{train,val}/<class>/*.jpg`` and a MobileNetV2 of width 0.35, pretrained on
ImageNet, in ``weights/mobilenet_v2_0.35/*.weights.h5``. Each seed draws images of each class to
train on and others to validate on; the test set is ``flowers5/val``. ``shifted`` is the mean
accuracy on it under noise, blur and low contrast, by which nothing was chosen.

``probe`` is a solved linear probe, ``tuned`` all layers from there at a rate of 1e-4, ``wise`` the
mix of both that validation chose. ``single`` is the best on validation of three such trainings at
rates of 3e-5, 1e-4 and 3e-4, ``greedy`` and ``uniform`` are their soups (the uniform one is
reported whether it would have been adopted or not). With ``--norms`` the batch normalisations learn
too, and ``wise refreshed`` and ``greedy refreshed`` take their statistics from the training images.
Prints one JSON line a seed, then means with standard errors of all, and of the difference to
``tuned`` or ``single``. With ``--out`` the lines are added to a file, and the means are of all
seeds in it that were run in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import images, mean, mobilenet

import finetune_keras as ftk
from finetune_keras import heads, select

RATES = (3e-5, 1e-4, 3e-4)


def shifted(x: np.ndarray) -> list[np.ndarray]:
    """The images with noise, blurred, and with less contrast."""
    noise = np.random.default_rng(0).normal(0, 40, x.shape).astype("float32")
    blurred = x
    for axis in (1, 2):
        blurred = sum(np.roll(blurred, k, axis) for k in (-2, -1, 0, 1, 2)) / 5
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    return [np.clip(v, 0, 255) for v in (x + noise, blurred, mean + 0.3 * (x - mean))]


def drawn(y: np.ndarray, train: int, val: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train and to validate on, so many of each class."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y)]
    first = np.concatenate([r[:train] for r in rows])
    return rng.permutation(first), np.concatenate([r[train : train + val] for r in rows])


class Trial:
    """One seed."""

    def __init__(self, args: argparse.Namespace, sets: dict, model: keras.Model, seed: int):
        x, y = sets["train"]
        train, val = drawn(y, args.images, args.validation, seed)
        self.args, self.sets, self.model = args, sets, model
        self.train, self.val = (x[train], y[train]), (x[val], y[val])
        self.result: dict[str, dict[str, float]] = {}

    def run(self) -> dict[str, dict[str, float]]:
        """Trains and averages; accuracies by the name of the way."""
        model, norms = self.model, self.args.norms
        ftk.freeze(model, select.backbone())
        ftk.fit(model, *self.train, solver="lbfgs", verbose=0)
        probe = self.taken("probe")
        ftk.thaw(model, select.everything(), norms=norms, learning_rate=1e-4)
        runs = [self.tuned(probe, rate) for rate in RATES]
        rows, again = {"verbose": 0}, {"refresh": self.train[0], "verbose": 0}
        ways = {"wise": rows, "wise refreshed": again} if norms else {"wise": rows}
        runs[1].restore(model)
        self.taken("tuned")
        for name, settings in ways.items():
            runs[1].restore(model)
            mix = ftk.wise_ft(model, probe, self.val, **settings).chosen
            self.taken(name)
            self.result[name]["mix"] = mix
        probe.restore(model)
        found = ftk.soup(model, runs, self.val, **rows)
        runs[max(range(len(runs)), key=lambda i: found.scores[i])].restore(model)
        self.taken("single")
        for name, settings in ways.items():
            name = name.replace("wise", "greedy")
            probe.restore(model)
            kept = ftk.soup(model, runs, self.val, **settings).kept
            self.taken(name)
            self.result[name]["kept"] = len(kept)
        mean = {p: np.mean([r.weights[p] for r in runs], axis=0) for p in probe.weights}
        ftk.Snapshot("uniform", mean).restore(model)
        self.taken("uniform")
        return self.result

    def tuned(self, probe: ftk.Snapshot, rate: float) -> ftk.Snapshot:
        """Weights trained from the probe, by an optimizer that begins anew."""
        probe.restore(self.model)
        optimizer = self.model.optimizer
        for v in optimizer.variables:
            v.assign(np.zeros(v.shape))
        optimizer.learning_rate = rate
        self.model.fit(*self.train, epochs=self.args.epochs, verbose=0)
        return ftk.snapshot(self.model)

    def taken(self, name: str) -> ftk.Snapshot:
        """Notes what the model is worth as it is."""

        def accuracy(x: np.ndarray) -> float:
            right = self.model.predict(x, batch_size=64, verbose=0).argmax(-1) == self.sets["y"]
            return float(right.mean())

        self.result[name] = {
            "test": accuracy(self.sets["test"]),
            "shifted": statistics.mean(map(accuracy, self.sets["shifted"])),
        }
        return ftk.snapshot(self.model)


def table(found: list[dict]) -> dict[str, dict]:
    """Means and standard errors over seeds."""
    result = {}
    for name in found[0]:
        base = "tuned" if name.startswith("wise") else "single"
        result[name] = {k: mean([f[name][k] for f in found]) for k in ("test", "shifted")}
        if name not in ("probe", "tuned", "single"):
            for k in ("test", "shifted"):
                result[name][f"{k} - {base}"] = mean([f[name][k] - f[base][k] for f in found])
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20, help="of each class, to train on")
    parser.add_argument("--validation", type=int, default=40, help="of each class")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--norms", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    x, y = images(args.data / "flowers5" / "val", args.size)
    sets = {"train": images(args.data / "flowers5" / "train", args.size)}
    sets |= {"test": x, "y": y, "shifted": shifted(x)}
    keras.utils.set_random_seed(0)
    model = ftk.build(mobilenet(args.data, args.size), heads.Classification(5), optimizer="adam")
    start = ftk.snapshot(model)
    settings = ("images", "validation", "epochs", "size", "norms")
    settings = {name: getattr(args, name) for name in settings}
    settings |= {"backend": keras.backend.backend(), "keras": keras.__version__}
    rows = []
    if args.out and args.out.exists():
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    for seed in args.seeds:
        began = time.process_time()
        keras.utils.set_random_seed(seed)
        start.restore(model)
        found = Trial(args, sets, model, seed).run()
        cpu = round(time.process_time() - began)
        rows.append({"seed": seed, "cpu": cpu, "settings": settings, "found": found})
        print(json.dumps(rows[-1]), flush=True)
        if args.out:
            args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {row["seed"]: row["found"] for row in rows if row["settings"] == settings}
    print(f"{len(found)} seeds")
    for name, row in table(list(found.values())).items():
        cells = (f"{key} {value:.4f} ± {error}" for key, (value, error) in row.items())
        print(f"{name:16} {', '.join(cells)}")


if __name__ == "__main__":
    main()
