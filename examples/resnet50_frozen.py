"""ResNet50, frozen, under global average pooling, a Dense(1024) and a softmax over 200 classes.

TODO
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import finetune_keras as ftk
from finetune_keras import heads, select

NUM_CLASSES = 200
DRAWN = 8  # classes that the made data has images of


def stripes(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Images of stripes, raw RGB from 0 to 255; the class sets their colour and direction."""
    part = (labels / DRAWN)[:, None, None]
    angle, phase = np.pi * part, rng.uniform(0, 2 * np.pi, part.shape)
    row, column = np.mgrid[:size, :size]
    wave = 0.5 + 0.5 * np.sin(np.cos(angle) * row + np.sin(angle) * column + phase)
    colour = 0.5 + 0.5 * np.cos(2 * np.pi * (part + np.array([0, 1 / 3, 2 / 3])))
    return (255 * wave[..., None] * colour[:, None]).astype("float32")


def made_data(size: int, batch: int, seed: int) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(DRAWN), 12))
    images = stripes(labels, size, rng)
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    return data.skip(32).batch(batch), data.take(32).batch(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="none", help="imagenet, none, or a weights file")
    parser.add_argument("--data", metavar="FOLDER", help="images as FOLDER/class/file.jpg")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--epochs", type=int, default=2, help="frozen, and again thawed")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", metavar="FILE", help="where to save; by default a temporary file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    names, num_classes = None, NUM_CLASSES
    if args.data:
        train, val = keras.utils.image_dataset_from_directory(
            args.data,
            image_size=(args.size, args.size),
            batch_size=args.batch,
            validation_split=0.2,
            subset="both",
            seed=args.seed,
        )
        names, num_classes = train.class_names, len(train.class_names)
    else:
        train, val = made_data(args.size, args.batch, args.seed)

    base = ftk.backbone(
        "resnet50",
        weights=None if args.weights == "none" else args.weights,
        input_shape=(args.size, args.size, 3),
    )
    model = ftk.build(
        base,
        heads.Classification(num_classes, hidden=[1024], class_names=names),
        freeze=select.backbone(),
        optimizer="adam",
    )
    print("\n1. The head learns, ResNet50 is frozen.")
    model.fit(train, validation_data=val, epochs=args.epochs, verbose=2)
    print(ftk.describe(model))

    print("\n2. What comes after conv4_block6_out learns too.")
    print(ftk.thaw(model, select.after("conv4_block6_out")))
    model.fit(train, validation_data=val, epochs=args.epochs, verbose=2)

    print("\n3. Saved, and loaded by Keras alone.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.out or f"{folder}/resnet50.keras")
        model.save(path)
        size = path.stat().st_size
        loaded = keras.models.load_model(path)
    ours, theirs = (m.predict(val, verbose=0) for m in (model, loaded))
    print(f"{path.name}, {size / 1e6:.0f} MB")
    print(f"largest difference {np.abs(ours - theirs).max()}")
    if args.weights == "none":
        print("random weights")


if __name__ == "__main__":
    main()
