"""What rates by depth and a moving average cost in time, and what they change in accuracy.

    python benchmarks/layerwise.py overhead [--model resnet50] [--repeats 7] [--out overhead.json]
    python benchmarks/layerwise.py accuracy --data DATA [--shots 20] [--seeds 5] [--out acc.json]

``overhead`` trains one network, all of it, on one batch, with AdamW, with
`finetune_keras.layerwise` around it, and with `finetune_keras.ema` around that, the three in turn;
it prints the medians of the ratios of CPU seconds and of wall seconds to plain AdamW of the same
turn.

``accuracy`` fine-tunes all of MobileNetV2 (alpha 0.35, ImageNet) on a few flowers a class, each
way from the same seed and the same images, and prints accuracy on the validation images after the
last epoch: mean and standard error over seeds, of the difference to the first way too. DATA holds
flowers5/train, flowers5/val and
weights/mobilenet_v2_0.35/mobilenet_v2_0.35_224_no_top.weights.h5.
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

import finetune_keras as ftk
from finetune_keras import heads, select

WEIGHTS = "weights/mobilenet_v2_0.35/mobilenet_v2_0.35_224_no_top.weights.h5"


def resnet50(batch: int):
    """All of ResNet50 at 224."""
    base = ftk.backbone("resnet50", weights=None, input_shape=(224, 224, 3))
    model = ftk.build(base, heads.Classification(10))
    x = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3)).astype("float32")
    return model, x, np.arange(batch) % 10


def bert(batch: int):
    """A BERT of MiniLM's size (22.7 million parameters), 128 tokens."""
    import keras_hub

    network = keras_hub.models.BertBackbone(
        vocabulary_size=30522, num_layers=6, num_heads=12, hidden_dim=384, intermediate_dim=1536
    )
    base = ftk.backbone(network, cut_at="pooled_output")
    model = ftk.build(base, heads.Classification(10))
    tokens = np.random.default_rng(0).integers(0, 30522, (batch, 128))
    x = {
        "token_ids": tokens,
        "segment_ids": np.zeros_like(tokens),
        "padding_mask": np.ones_like(tokens),
    }
    return model, x, np.arange(batch) % 10


MODELS = {"resnet50": resnet50, "bert": bert}


def overhead(name: str, batch: int, repeats: int) -> dict:
    """Ratios of a training step, three optimizers in turn."""
    model, x, y = MODELS[name](batch)
    ways = {}
    for way, options in (
        ("plain", {}),
        ("layerwise", {"layer_decay": 0.8}),
        ("layerwise and ema", {"layer_decay": 0.8, "ema_momentum": 0.99}),
    ):
        ftk.compile(model, optimizer="adamw", learning_rate=1e-6, **options)
        model.train_on_batch(x, y)  # traces and warms up
        ways[way] = model.optimizer, model.train_function

    def step(way: str) -> tuple[float, float]:
        model.optimizer, model.train_function = ways[way]
        cpu, wall = time.process_time(), time.perf_counter()
        model.train_on_batch(x, y)
        return time.process_time() - cpu, time.perf_counter() - wall

    times = [{way: step(way) for way in ways} for _ in range(repeats)]

    def ratio(way: str, which: int) -> dict:
        found = sorted(t[way][which] / t["plain"][which] for t in times)
        return {"median": round(statistics.median(found), 4), "all": [round(r, 3) for r in found]}

    return {
        "model": name,
        "batch": batch,
        "plain_step_cpu_s": round(statistics.median(t["plain"][0] for t in times), 3),
        "cpu": {way: ratio(way, 0) for way in list(ways)[1:]},
        "wall": {way: ratio(way, 1) for way in list(ways)[1:]},
    }


def accuracy(data: Path, shots: int, seeds: int, epochs: int, size: int) -> list[dict]:
    """Each way to fine-tune everything, from the same starts."""
    found = {}
    for part in ("train", "val"):
        images = keras.utils.image_dataset_from_directory(
            data / "flowers5" / part, image_size=(size, size), shuffle=False, verbose=False
        )
        found[part] = [np.concatenate(v) for v in zip(*((a, b) for a, b in images), strict=True)]
    (x, y), val = found["train"], found["val"]
    depth = {f"decay {d:g}": {"layer_decay": d} for d in (1.0, 0.9, 0.8, 0.65)}
    ways = {
        "all at 1e-5": (1e-5, {}),
        **{f"{name}, 1e-3": (1e-3, options) for name, options in depth.items()},
        "decay 0.8, 1e-3, ema 0.9": (1e-3, {"layer_decay": 0.8, "ema_momentum": 0.9}),
        "decay 0.8, 1e-3, ema 0.99": (1e-3, {"layer_decay": 0.8, "ema_momentum": 0.99}),
    }
    scores: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        rows = np.concatenate([rng.choice(np.flatnonzero(y == c), shots, False) for c in range(5)])
        for way, (rate, options) in ways.items():
            keras.utils.set_random_seed(seed)
            network = keras.applications.MobileNetV2(
                (size, size, 3), alpha=0.35, include_top=False, weights=None
            )
            network.load_weights(data / WEIGHTS)
            base = ftk.backbone(network, preprocessing="mobilenetv2")
            model = ftk.build(
                base,
                heads.Classification(5),
                freeze=select.norms(),
                optimizer="adamw",
                learning_rate=rate,
                **options,
            )
            model.fit(x[rows], y[rows], batch_size=16, epochs=epochs, verbose=0)
            scores[way].append(model.evaluate(*val, verbose=0, return_dict=True)["accuracy"])
            print(json.dumps({"seed": seed, "way": way, "accuracy": scores[way][-1]}), flush=True)
    first = np.array(scores[next(iter(ways))])
    return [
        {
            "way": way,
            "shots": shots,
            "epochs": epochs,
            "accuracy": mean(np.array(s)),
            "difference": mean(np.array(s) - first),
        }
        for way, s in scores.items()
    ]


def mean(values: np.ndarray) -> list[float]:
    """Mean and standard error."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return [round(float(values.mean()), 4), round(float(error), 4)]


def main() -> None:
    """Measures and prints, or writes, one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("overhead", "accuracy"))
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--shots", type=int, default=20, help="images a class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--out")
    args = parser.parse_args()
    result = {"backend": keras.backend.backend(), "keras": keras.__version__}
    if args.what == "overhead":
        result["models"] = [overhead(m, args.batch, args.repeats) for m in args.model or MODELS]
    else:
        if args.data is None:
            parser.error("accuracy needs --data")
        result["ways"] = accuracy(args.data, args.shots, args.seeds, args.epochs, args.size)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
