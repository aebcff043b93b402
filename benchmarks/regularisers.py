"""Few images a class: a network fine-tuned whole, and with each regulariser made for transfer.

    python benchmarks/regularisers.py --data DATA
    python benchmarks/regularisers.py --data DATA --shots 50 --epochs 20 --seeds 5

DATA holds flowers5/train and flowers5/val, a folder of images a class, and
weights/resnet20_cifar10/resnet20_cifar10_notop.keras, a ResNet-20 trained on CIFAR-10, for images
of 32 x 32 (He et al. 2016). Each seed draws its own training images and its own head, the same for
every method; all methods train as many epochs with Adam.
Prints one JSON line a method: mean and standard error over the seeds of accuracy and loss on all
validation images, and of the difference to plain fine-tuning on the same images.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
from common import few, images, mean

import finetune_keras as ftk
from finetune_keras import heads, select

WEIGHTS = "weights/resnet20_cifar10/resnet20_cifar10_notop.keras"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """As the network takes them."""
    x, y = images(folder, 32)
    return (x / 255.0 - MEAN) / DEVIATION, y


def plain(args, stochastic=None, **given):
    base = ftk.backbone(args.data / WEIGHTS)
    if stochastic is not None:
        base = ftk.stochastic_norm(base, stochastic)
    return ftk.build(
        base, heads.Classification(5), optimizer="adam", learning_rate=args.rate, **given
    )


def frozen(args):
    return plain(args, freeze=select.backbone())


def gradual(args):
    model = frozen(args)
    every = max(1, args.epochs // 4)  # three stages, each for a quarter
    rate = [args.rate]
    return model, [ftk.callbacks.GradualThaw("stage", every=every, learning_rate=rate, norms=True)]


def l2sp(args, alpha):
    model = plain(args)
    ftk.l2sp(model, alpha=alpha, beta=0.01)
    return model


def reinit(args, blocks):
    model = plain(args)
    ftk.reinit(model, select.blocks(slice(-blocks, None)))
    return model


METHODS = {
    "fine-tuned": plain,
    "head alone": frozen,
    "gradual thawing": gradual,
    "l2sp alpha=0.01": lambda args: l2sp(args, 0.01),
    "l2sp alpha=0.1": lambda args: l2sp(args, 0.1),
    "reinit 1 block": lambda args: reinit(args, 1),
    "reinit 3 blocks": lambda args: reinit(args, 3),
    "stochastic norm p=0.5": lambda args: plain(args, stochastic=0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=20, help="images a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    x, y = normalised(args.data / "flowers5/train")
    held = normalised(args.data / "flowers5/val")
    base = None
    for name in args.methods:
        scores, began = [], time.perf_counter()
        for seed in range(args.seeds):
            keras.utils.set_random_seed(seed)
            rows = few(y, args.shots, seed)
            made = METHODS[name](args)
            model, callbacks = made if isinstance(made, tuple) else (made, [])
            given = {"epochs": args.epochs, "batch_size": args.batch, "verbose": 0}
            model.fit(x[rows], y[rows], callbacks=callbacks, **given)
            ftk.l2sp(model, None)  # the loss of the labels alone is compared
            logs = model.evaluate(*held, batch_size=100, verbose=0, return_dict=True)
            scores.append([logs["accuracy"], logs["loss"]])
            keras.backend.clear_session()
        scores = np.array(scores)
        base = scores if base is None else base
        line = {"method": name, "shots": args.shots, "seeds": args.seeds}
        for i, what in enumerate(("accuracy", "loss")):
            line[what] = mean(scores[:, i])
            line[f"{what}_difference"] = mean((scores - base)[:, i])
        seconds = (time.perf_counter() - began) / args.seeds
        print(json.dumps(line | {"seconds": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    main()
