"""A classifier from a whole-model .h5 file learns a yes-or-no question, its first layers frozen.

TODO
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import finetune_keras as ftk
from finetune_keras import heads, select


def digits(*wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of these digits, 8x8x1 from 0 to 16, and which of them each one is, shuffled."""
    data = load_digits()
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(data.target, wanted)))
    return data.images[chosen, ..., None].astype("float32"), data.target[chosen] - min(wanted)


def pretrain(path: Path) -> None:
    """Stands in for a file of your own: a network that knows the digits 0 to 7."""
    inputs = x = keras.Input((8, 8, 1))
    for i, width in enumerate((16, 16, 32, 32), 1):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv_{i}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm_{i}")(x)
        x = layers.ReLU(name=f"relu_{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(8, activation="softmax", name="digit")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*digits(*range(8)), epochs=6, validation_split=0.2, verbose=2)
    model.save(path)


def folder_data(folder: str, shape: tuple[int | None, ...], seed: int) -> tuple:
    """Train, validation and test images of two class folders, and the names of the classes."""
    height, width, channels = (known or 224 for known in shape[1:3]) , shape[3]
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="FILE", help="a .h5 or .keras file of your own")
    parser.add_argument("--data", metavar="FOLDER", help="FOLDER/no/*.jpg and FOLDER/yes/*.jpg")
    parser.add_argument("--preprocessing", metavar="NAME", help="what --model needs: mobilenetv2")
    parser.add_argument("--first", type=int, default=10, help="how many layers are frozen")
    parser.add_argument("--epochs", type=int, default=30, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together")
    keras.utils.set_random_seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.model or f"{folder}/pretrained_model.h5")
        if not args.model:
            print("1. Pretraining on the digits 0 to 7.")
            pretrain(path)
        run(path, args)


def run(path: Path, args: argparse.Namespace) -> None:
    base = ftk.backbone(path, preprocessing=args.preprocessing)
    print(f"\n2. {base}")
    if args.data:
        _, height, width, channels = base.network.input_shape
        ...


if __name__ == "__main__":
    main()
