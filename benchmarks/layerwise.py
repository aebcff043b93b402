"""What rates by depth, and a moving average with them, change on real photographs.

    python benchmarks/layerwise.py --data DATA [--shots 20] [--seeds 5] [--out layerwise.json]

Fine-tunes MobileNetV2 (alpha 0.35, ImageNet) on a few flowers a class, each way from the same seed
and the same images: the head alone, all but the normalisations at one rate, and with
`finetune_keras.layerwise`. Prints accuracy on the validation images after the last epoch: mean and
standard error over seeds, of the difference to the head alone too. DATA holds flowers5/train,
flowers5/val and weights/mobilenet_v2_0.35. What the ways cost is told by overhead.py.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import few, images, mean, mobilenet

import finetune_keras as ftk
from finetune_keras import heads, select

WAYS = {
    "head, 1e-3": (1e-3, {"freeze": select.backbone()}),
    "all, 1e-5": (1e-5, {}),
    "all, 1e-4": (1e-4, {}),
    "all, 1e-3": (1e-3, {}),
    "decay 0.8, 1e-4": (1e-4, {"layer_decay": 0.8}),
    "decay 0.8, 1e-3": (1e-3, {"layer_decay": 0.8}),
    "decay 0.65, 1e-3": (1e-3, {"layer_decay": 0.65}),
    "decay 0.65, 1e-3, ema 0.9": (1e-3, {"layer_decay": 0.65, "ema_momentum": 0.9}),
}


def accuracy(args: argparse.Namespace) -> list[dict]:
    """Each way to fine-tune, from the same starts."""
    (x, y), val = (images(args.data / "flowers5" / part, args.size) for part in ("train", "val"))
    scores: dict[str, list[float]] = {way: [] for way in args.ways}
    for seed in range(args.seeds):
        rows = few(y, args.shots, seed)
        for way in args.ways:
            rate, options = WAYS[way]
            keras.utils.set_random_seed(seed)
            model = ftk.build(
                mobilenet(args.data, args.size),
                heads.Classification(5),
                optimizer="adamw",
                learning_rate=rate,
                **{"freeze": select.norms(), **options},
            )
            model.fit(x[rows], y[rows], batch_size=16, epochs=args.epochs, verbose=0)
            scores[way].append(model.evaluate(*val, verbose=0, return_dict=True)["accuracy"])
            print(json.dumps({"seed": seed, "way": way, "accuracy": scores[way][-1]}), flush=True)
    first = np.array(scores[args.ways[0]])
    return [
        {"way": way, "accuracy": mean(s), "difference": mean(np.array(s) - first)}
        for way, s in scores.items()
    ]


def main() -> None:
    """Measures and prints, or writes, one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--shots", type=int, default=20, help="images a class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    settings = {k: getattr(args, k) for k in ("shots", "seeds", "epochs", "size")}
    result = {"backend": keras.backend.backend(), "keras": keras.__version__, **settings}
    text = json.dumps(result | {"ways": accuracy(args)}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
