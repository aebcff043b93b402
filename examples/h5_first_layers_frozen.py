"""A network from a whole-model .h5 file learns a yes-or-no question, its first layers frozen.

    python examples/h5_first_layers_frozen.py

Without flags, 10 to 20 seconds on one core: a small network is trained on scikit-learn's digits
0 to 7 and saved as ``pretrained_model.h5`` in a temporary folder (Keras warns that the format is
old). Then the real program loads that file, drops its classifier, freezes its first 10 layers,
puts a Dense(128) and a sigmoid on top, and learns from 177 images to tell a 9 from an 8, with
early stopping. It ends, with seed 0 on TensorFlow, with

    held-out images: 100.0% right, loss 0.03
    first 10 layers as in the file, to the bit: True
    layers after them that learned: 2

With a file of your own, and images in two folders, 0 for the first by name and 1 for the second:

    python examples/h5_first_layers_frozen.py --model FILE --data FOLDER

A file does not say how its images were preprocessed. If it was as for an architecture of
``keras.applications``, give its name: ``--preprocessing mobilenetv2``.
"""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import finetune_keras as ftk
from finetune_keras import heads, select


def digits(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of these digits, 8x8x1 from 0 to 16, and labels from 0."""
    data = load_digits()
    chosen = np.flatnonzero((data.target >= first) & (data.target <= last))
    return data.images[chosen, ..., None].astype("float32"), data.target[chosen] - first


def folder(path: str, shape: tuple[int | None, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All images of two class folders, and labels 0 or 1."""
    _, height, width, channels = shape
    data = keras.utils.image_dataset_from_directory(
        path,
        label_mode="binary",
        image_size=(height or 224, width or 224),
        color_mode="grayscale" if channels == 1 else "rgb",
        shuffle=False,
    )
    images, labels = zip(*data.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels).ravel()


def pretrain(path: Path) -> None:
    """Stands in for a file that you have: a network that knows the digits 0 to 7."""
    x = inputs = keras.Input((8, 8, 1))
    for i, width in enumerate((16, 16, 32, 32), 1):
        x = layers.Conv2D(width, 3, padding="same", name=f"conv_{i}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm_{i}")(x)
        x = layers.ReLU(name=f"relu_{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(8, activation="softmax", name="digit")(x), name="cnn")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*digits(0, 7), epochs=5, verbose=2)
    model.save(path)


def run(path: Path, args: argparse.Namespace) -> None:
    base = ftk.backbone(path, preprocessing=args.preprocessing)
    model = ftk.build(
        base,
        heads.Classification(1, hidden=[128]),
        freeze=select.first(args.first),
        optimizer="adam",
        learning_rate=args.rate,
    )
    print(f"\n2. {base}\n\n{ftk.describe(model)}\n")

    images, labels = folder(args.data, base.network.input_shape) if args.data else digits(8, 9)
    order = np.random.default_rng(args.seed).permutation(len(labels))
    parts = np.split(order, [len(order) // 2, len(order) * 3 // 4])
    train, val, test = ((images[part], labels[part]) for part in parts)
    print("{} images to train on, {} to stop early by, {} held out".format(*map(len, parts)))
    stop = keras.callbacks.EarlyStopping(min_delta=0.01, patience=3, restore_best_weights=True)
    model.fit(*train, validation_data=val, epochs=args.epochs, callbacks=[stop], verbose=2)

    print(f"\n3. Result, with the weights of epoch {stop.best_epoch + 1}")
    loss, accuracy = model.evaluate(*test, verbose=0)
    print(f"held-out images: {accuracy:.1%} right, loss {loss:.2f}")
    stored = keras.models.load_model(path, compile=False)
    equal = [
        all(map(np.array_equal, layer.get_weights(), stored.get_layer(layer.name).get_weights()))
        for layer in base.network.layers
    ]
    print(f"first {args.first} layers as in the file, to the bit: {all(equal[: args.first])}")
    print(f"layers after them that learned: {equal[args.first :].count(False)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="FILE", help="a whole-model .h5 or .keras file")
    parser.add_argument("--data", metavar="FOLDER", help="images, as FOLDER/no/* and FOLDER/yes/*")
    parser.add_argument("--preprocessing", metavar="NAME", help="that FILE needs")
    parser.add_argument("--first", type=int, default=10, help="how many layers are frozen")
    parser.add_argument("--epochs", type=int, default=30, help="at most")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together")
    keras.utils.set_random_seed(args.seed)
    if args.model:
        run(Path(args.model), args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "pretrained_model.h5")
        print("1. A network is trained on the digits 0 to 7 and saved as pretrained_model.h5")
        pretrain(path)
        run(path, args)


if __name__ == "__main__":
    main()
