"""ResNet50, frozen, with global average pooling, a Dense(1024) and a softmax over 200 classes.

    python examples/resnet50_frozen.py

The tutorial's program, then one step further: the head is trained on the frozen network, the
last stage of the network is thawed, and the model is saved to a file that Keras loads alone.

Without flags it is a rehearsal of 20 to 40 seconds on one core: random weights, 32 drawn images
of 64x64 pixels, one epoch. Losses and accuracies mean nothing then. What it shows is which
weights learn when, and at its end, with seed 0 on TensorFlow:

    thawed: 20 variables in 10 layers, resnet50/conv5_block1_1_conv to ...
    left frozen: 40 normalisation variables in 10 layers, resnet50/conv5_block1_1_bn to ...
    learning rate: 0.0001 -> 1e-05
    predictions of the loaded model are equal to the bit: True

At full size, with ImageNet weights (Keras fetches them once, 95 MB) and a folder of images with
one folder for each class, of which a fifth is held out:

    python examples/resnet50_frozen.py --weights imagenet --data FOLDER --size 224 --epochs 10

The tutorial one-hot encodes its labels; here they are integers, which need no 200 columns.
"""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import finetune_keras as ftk
from finetune_keras import heads, select

CLASSES = 200
DRAWN = 8  # classes that the made images show


def stripes(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Striped images, raw RGB from 0 to 255; the label sets their colour and direction."""
    part = (labels / DRAWN)[:, None, None]
    row, column = np.mgrid[:size, :size]
    distance = np.cos(np.pi * part) * row + np.sin(np.pi * part) * column
    wave = 0.5 + 0.5 * np.sin(distance + rng.uniform(0, 2 * np.pi, part.shape))
    colour = 0.5 + 0.5 * np.cos(2 * np.pi * (part + np.array([0, 1 / 3, 2 / 3])))
    return (255 * wave[..., None] * colour[:, None]).astype("float32")


def made_data(size: int, seed: int) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(DRAWN), 4))
    data = tf.data.Dataset.from_tensor_slices((stripes(labels, size, rng), labels))
    return data.skip(8).batch(8), data.take(8).batch(8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="none", help="imagenet, none, or a weights file")
    parser.add_argument("--data", metavar="FOLDER", help="images as FOLDER/class/file.jpg")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--epochs", type=int, default=1, help="of each of the two fits")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the head")
    parser.add_argument("--save", metavar="FILE", help="where to keep the .keras file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    names = None
    if args.data:
        train, val = keras.utils.image_dataset_from_directory(
            args.data,
            image_size=(args.size, args.size),
            validation_split=0.2,
            subset="both",
            seed=args.seed,
        )
        names = train.class_names
    else:
        train, val = made_data(args.size, args.seed)

    base = ftk.backbone(
        "resnet50",
        weights=None if args.weights == "none" else args.weights,
        input_shape=(args.size, args.size, 3),
    )
    model = ftk.build(
        base,
        heads.Classification(len(names) if names else CLASSES, hidden=[1024], class_names=names),
        freeze=select.backbone(),
        optimizer="adam",
        learning_rate=args.learning_rate,
    )

    def fit() -> None:  # shuffle=False: a folder's dataset shuffles itself.
        model.fit(train, validation_data=val, epochs=args.epochs, shuffle=False, verbose=2)

    print("\n1. The head learns, ResNet50 is frozen")
    fit()
    print(f"\n{ftk.describe(model)}")

    print("\n2. What comes after conv4_block6_out learns too")
    print(ftk.thaw(model, select.after("conv4_block6_out")))
    fit()

    print("\n3. Saved, and loaded by Keras alone")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.save or Path(folder, "resnet50.keras"))
        model.save(path)
        loaded = keras.models.load_model(path)
    same = np.array_equal(model.predict(val, verbose=0), loaded.predict(val, verbose=0))
    print(f"predictions of the loaded model are equal to the bit: {same}")
    if args.weights == "none":
        print("(random weights: the losses and accuracies above mean nothing)")


if __name__ == "__main__":
    main()
