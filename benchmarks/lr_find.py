"""What a learning-rate range test costs, and what its suggestion is worth, on real images.

    python benchmarks/lr_find.py --data DATA --case frozen --rules --out frozen.json
    python benchmarks/lr_find.py --data DATA --case open --epochs 1 --out open.json

DATA has ``flowers5/{train,val}/<class>/*.jpg`` and ``weights/mobilenet_v2_1.0/*.weights.h5``, a
MobileNetV2 pretrained on ImageNet, without its top. ``frozen`` trains a head on it by ``ftk.fit``,
``open`` trains all but the normalisations by ``model.fit``. Images are of 96 pixels, in batches of
32. For each seed: 100 steps of ``lr_find``, then training from the same start at 0.1, 1 and 10
times the suggestion, with ``--rules`` at that of the other rules and at the default of
``ftk.build``, and the accuracy on the validation images. ``cost`` is CPU seconds of ``lr_find``
over those of one epoch, both warm, and beside it how many steps were made. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from common import images, mean

import finetune_keras as ftk
from finetune_keras import heads, select

SIZE = 96


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--case", choices=["frozen", "open"], required=True)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rules", action="store_true", help="the other rules and the default too")
    parser.add_argument("--repeats", type=int, default=3, help="of the timing")
    parser.add_argument("--out")
    args = parser.parse_args()
    train, val = (images(args.data / "flowers5" / part, SIZE) for part in ("train", "val"))
    result = {
        "case": args.case,
        "optimizer": args.optimizer,
        "backend": keras.backend.backend(),
        "images": len(train[0]),
        "epochs": args.epochs,
    }
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if seeds:
        with tempfile.TemporaryDirectory() as folder:  # features, which all seeds share
            rows = [of_seed(seed, args, train, val, folder) for seed in seeds]
        result["suggestions"] = [row["suggestions"] for row in rows]
        result["accuracy"] = {
            way: mean([row["accuracy"][way] for row in rows]) for way in rows[0]["accuracy"]
        }
    if args.repeats:
        result["cost"] = cost(args, train)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


def made(args: argparse.Namespace, seed: int, rate: float | None = None) -> keras.Model:
    """The network, with a new head."""
    keras.utils.set_random_seed(seed)
    path = next((args.data / "weights" / "mobilenet_v2_1.0").glob("*.h5"))
    return ftk.build(
        ftk.backbone("mobilenetv2", weights=path, input_shape=(SIZE, SIZE, 3)),
        heads.Classification(5),
        freeze=select.backbone() if args.case == "frozen" else select.norms(),
        optimizer=args.optimizer,
        learning_rate=rate,
    )


def of_seed(seed: int, args: argparse.Namespace, train: tuple, val: tuple, folder: str) -> dict:
    """The suggestions, and what training at them gives."""
    model = made(args, seed)
    found = ftk.lr_find(model, train, verbose=0)
    if found.suggestion is None:
        sys.exit(f"seed {seed}: no rate to suggest, {found}")
    rates = {f"{factor} x suggestion": factor * found.suggestion for factor in (0.1, 1, 10)}
    if args.rules:
        rates |= {k: v for k, v in found.suggestions.items() if v != found.suggestion}
        rates["default"] = float(model.optimizer.learning_rate)
    start, accuracy = model.get_weights(), {}
    for way, rate in rates.items():
        model.set_weights(start)
        ftk.compile(model, optimizer=args.optimizer, learning_rate=rate)
        keras.utils.set_random_seed(seed)
        if args.case == "frozen":
            ftk.fit(model, *train, epochs=args.epochs, cache=folder, verbose=0)
        else:
            model.fit(*train, epochs=args.epochs, verbose=0)
        predicted = model.predict(val[0], verbose=0).argmax(-1)
        accuracy[way] = float((predicted == val[1]).mean())
        print(json.dumps({"seed": seed, "way": way, "rate": rate, "accuracy": accuracy[way]}),
              file=sys.stderr, flush=True)  # fmt: skip
    return {"suggestions": found.suggestions, "accuracy": accuracy}


def cost(args: argparse.Namespace, train: tuple) -> dict:
    """CPU seconds of a range test over those of an epoch, pair by pair."""
    model = made(args, 0)
    fit = ftk.fit if args.case == "frozen" else keras.Model.fit
    ways = {
        "lr_find": lambda: ftk.lr_find(model, train, verbose=0),
        "epoch": lambda: fit(model, *train, epochs=1, verbose=0),
    }
    ways["epoch"]()  # compiles
    ratios, seconds = [], []
    for _ in range(args.repeats):
        took = {}
        for name, way in ways.items():
            begun = time.process_time()
            done = way()
            took[name] = time.process_time() - begun
            if name == "lr_find":
                took["steps"] = len(done.losses)
        ratios.append(round(took["lr_find"] / took["epoch"], 2))
        seconds.append({k: round(v, 2) for k, v in took.items()})
    return {
        "of_an_epoch": statistics.median(ratios),
        "ratios": ratios,
        "seconds": seconds,
        "steps_in_an_epoch": -(-len(train[0]) // 32),
    }


if __name__ == "__main__":
    main()
