"""Few images a class: a linear probe trained, trained on varied features, and solved.

    python benchmarks/feature_augmentation.py --data DATA
    python benchmarks/feature_augmentation.py --data DATA --shots 5 --noise 1 --brightness 0.3

DATA holds flowers5/train and flowers5/val, a folder of images a class, and
weights/mobilenet_v2_0.35/mobilenet_v2_0.35_224_no_top.weights.h5, the weights of
``keras.applications.MobileNetV2(alpha=0.35, include_top=False)``. Each seed draws its own training
images, the same for every method; what is reported is on all validation images. Prints one JSON
line a method and number of shots: mean and standard error over the seeds, and of the difference to
the plain probe on the same images.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
from common import few, images, mean

from finetune_keras import heads
from finetune_keras.cache.solver import solvable, solve

WEIGHTS = "weights/mobilenet_v2_0.35/mobilenet_v2_0.35_224_no_top.weights.h5"


def features(data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of all images, once."""
    network = keras.applications.MobileNetV2(
        (224, 224, 3), alpha=0.35, include_top=False, pooling="avg", weights=data / WEIGHTS
    )
    found = {}
    for part in ("train", "val"):
        x, y = images(data / "flowers5" / part, 224)
        found[part] = network.predict(x / 127.5 - 1.0, verbose=0), y
    return found


def trained(head: heads.Classification, x, y, steps: int, batch: int, seed: int) -> keras.Model:
    """By Adam at 1e-3, in batches drawn without replacement."""
    model = fresh(head, x.shape[1], seed)
    rng = np.random.default_rng(seed)
    batch = min(batch, len(x))
    rows = np.concatenate([rng.permutation(len(x)) for _ in range(1 + steps * batch // len(x))])
    rows = rows[: steps * batch]
    model.fit(x[rows], y[rows], batch_size=batch, shuffle=False, verbose=0)
    return model


def solved(head: heads.Classification, x, y, seed: int) -> keras.Model:
    """With the penalty chosen by cross-validation on the training images."""
    model = fresh(head, x.shape[1], seed)
    probe = solvable(model, head.loss)
    solve(probe, x, y, seed=seed).put(probe)
    return model


def fresh(head: heads.Classification, width: int, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    given = keras.Input((width,))
    model = keras.Model(given, head(given))
    model.compile(keras.optimizers.Adam(1e-3), head.loss, metrics=head.metrics)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10], help="images a class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--noise", type=float, nargs="*", default=[0.3, 1.0])
    parser.add_argument("--brightness", type=float, nargs="*", default=[0.1, 0.5])
    args = parser.parse_args()
    found = features(args.data)
    (x, y), (val_x, val_y) = found["train"], found["val"]
    classes = int(y.max()) + 1
    methods = {"trained": {}}
    methods |= {f"feature_noise={a:g}": {"feature_noise": a} for a in args.noise}
    methods |= {f"feature_brightness={a:g}": {"feature_brightness": a} for a in args.brightness}
    methods["solved"] = None
    for shots in args.shots:
        base = None
        for name, options in methods.items():
            scores, seconds = [], 0.0
            for seed in range(args.seeds):
                rows = few(y, shots, seed)
                began = time.perf_counter()
                if options is None:
                    model = solved(heads.Classification(classes), x[rows], y[rows], seed)
                else:
                    head = heads.Classification(classes, **options)
                    model = trained(head, x[rows], y[rows], args.steps, args.batch, seed)
                seconds += time.perf_counter() - began
                logs = model.evaluate(val_x, val_y, verbose=0, return_dict=True)
                scores.append([logs["accuracy"], logs["loss"]])
            scores = np.array(scores)
            base = scores if base is None else base
            line = {"shots": shots, "method": name}
            for i, what in enumerate(("accuracy", "loss")):
                line[what] = mean(scores[:, i])
                line[f"{what}_difference"] = mean((scores - base)[:, i])
            print(json.dumps(line | {"seconds": round(seconds / args.seeds, 1)}), flush=True)


if __name__ == "__main__":
    main()
