"""A probe solved, against a head trained by Adam and then everything at a low rate, on real images.

    python benchmarks/probe.py --data DATA --images 10 --seeds 3
    python benchmarks/probe.py --data DATA --images 150 --seeds 1

DATA has ``flowers5/{train,val}/<class>/*.jpg`` and ``weights/mobilenet_v2_1.0/*.weights.h5``, a
MobileNetV2 pretrained on ImageNet, without its top. ``trained`` is what tutorials do: five epochs
of a new head at 1e-3 on the frozen network, then three of everything at 1e-5, by ``model.fit``.
``probe`` is the first half of it by ``ftk.fit``, and ``solved`` is ``ftk.fit(solver="lbfgs")``, the
penalty chosen by cross-validation. Accuracy on all validation images, wall and CPU seconds,
compilation included. Prints one JSON line a seed, then means.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import images, mean

import finetune_keras as ftk
from finetune_keras import heads, select

SIZE = 160


def chosen(y: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` rows of each class, shuffled."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(y == c))[:count] for c in np.unique(y)]
    return rng.permutation(np.concatenate(rows))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10, help="of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=["trained", "probe", "solved"])
    args = parser.parse_args()
    x, y = images(args.data / "flowers5" / "train", SIZE)
    x_val, y_val = images(args.data / "flowers5" / "val", SIZE)
    path = next((args.data / "weights" / "mobilenet_v2_1.0").glob("*.h5"))
    found: dict[str, list] = {way: [] for way in args.ways}
    for seed in range(args.seeds):
        rows = chosen(y, args.images, seed)
        for way in args.ways:
            keras.utils.set_random_seed(seed)
            base = ftk.backbone("mobilenetv2", weights=path, input_shape=(SIZE, SIZE, 3))
            model = ftk.build(
                ftk.backbone(base),
                heads.Classification(5),
                freeze=select.backbone(),
                optimizer="adam",
            )
            wall, cpu = time.perf_counter(), time.process_time()
            if way == "trained":
                model.fit(x[rows], y[rows], epochs=5, verbose=0)
                ftk.thaw(model, select.backbone(), learning_rate=1e-5)
                model.fit(x[rows], y[rows], epochs=3, verbose=0)
            elif way == "probe":
                ftk.fit(model, x[rows], y[rows], epochs=5, verbose=0)
            else:
                ftk.fit(model, x[rows], y[rows], verbose=0, solver="lbfgs")
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            accuracy = float((model.predict(x_val, verbose=0).argmax(-1) == y_val).mean())
            found[way].append((accuracy, wall, cpu))
            row = {"seed": seed, "way": way, "images": args.images, "accuracy": round(accuracy, 4)}
            print(json.dumps(row | {"wall": round(wall, 1), "cpu": round(cpu, 1)}), flush=True)
    for way, rows in found.items():
        accuracy, wall, cpu = (mean(values) for values in zip(*rows, strict=True))
        print(
            f"{way:8} accuracy {accuracy[0]:.3f} ± {accuracy[1]}, "
            f"{wall[0]:.1f} s wall, {cpu[0]:.1f} s CPU"
        )


if __name__ == "__main__":
    main()
