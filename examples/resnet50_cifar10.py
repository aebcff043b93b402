"""ResNet50, frozen, with a new last layer, on images of 32x32 that the model itself enlarges.

    python examples/resnet50_cifar10.py

The model takes raw 32x32 pixels: enlarging, and the normalisation that the weights were trained
with, are in its graph and in its file. SGD at 0.001 with momentum 0.9 trains the new layer.

Without flags it is a rehearsal of about 17 seconds on one core: random weights, 160 made images of
ten colours, enlarged to 64x64. The network then sees colours at best, and the rate is not made for
features of this scale. It ends, with seed 0 on TensorFlow, with ``check`` finding nothing before
the training, five predictions by name, and

    test images: 60.0% right, loss 4.18

With ImageNet weights (Keras fetches them once, 95 MB) and CIFAR-10 (arrays ``x_train``,
``y_train``, ``x_test``, ``y_test`` and ``class_names``), as the usual tutorial does it:

    python examples/resnet50_cifar10.py --weights imagenet --data FILE.npz --size 224
"""

import argparse

import keras
import numpy as np

import finetune_keras as ftk
from finetune_keras import heads, select

Arrays = tuple[np.ndarray, np.ndarray]

COLOURS = {
    "black": (30, 30, 30),
    "blue": (40, 60, 200),
    "brown": (120, 70, 30),
    "cyan": (40, 200, 220),
    "green": (40, 150, 50),
    "grey": (128, 128, 128),
    "magenta": (210, 50, 190),
    "red": (200, 40, 40),
    "white": (230, 230, 230),
    "yellow": (230, 210, 40),
}


def made(n: int, rng: np.random.Generator) -> Arrays:
    """Noisy images of ten colours, 32x32x3, 0 to 255."""
    labels = rng.permutation(np.arange(n) % len(COLOURS))
    colours = np.array(list(COLOURS.values()))[labels]
    images = rng.normal(colours[:, None, None], 25, (n, 32, 32, 3))
    return images.clip(0, 255).astype("uint8"), labels


def arrays(path: str | None, seed: int) -> tuple[Arrays, Arrays, list[str]]:
    """What to train and to test on, and the names of the classes."""
    if path is None:
        rng = np.random.default_rng(seed)
        return made(160, rng), made(50, rng), list(COLOURS)
    with np.load(path) as file:
        train, test = ((file[f"x_{part}"], file[f"y_{part}"].ravel()) for part in ("train", "test"))
        return train, test, file["class_names"].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="none", help="imagenet, none, or a weights file")
    parser.add_argument("--data", metavar="FILE.npz", help="x_train y_train x_test y_test ...")
    parser.add_argument("--images", type=int, help="how many to train on, drawn at random")
    parser.add_argument("--size", type=int, default=64, help="what the images are enlarged to")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    (images, labels), test, names = arrays(args.data, args.seed)
    some = np.random.default_rng(args.seed).permutation(len(images))[: args.images]
    images, labels = images[some], labels[some]

    # Enlarged in the graph: 32x32 bytes travel to the device, and the file takes what we have.
    enlarge = keras.layers.Resizing(args.size, args.size)
    base = ftk.backbone(
        "resnet50",
        weights=None if args.weights == "none" else args.weights,
        preprocessing=[enlarge, "auto"],
    )
    model = ftk.build(
        base,
        heads.Classification(class_names=names),
        freeze=select.backbone(),
        optimizer=keras.optimizers.SGD(args.learning_rate, momentum=0.9),
    )
    print(f"{ftk.describe(model)}\n")
    print("before training:", ftk.check(model, (images, labels), batch_size=args.batch_size))
    model.fit(images, labels, epochs=args.epochs, batch_size=args.batch_size, verbose=2)

    loss, accuracy = model.evaluate(*test, verbose=0)
    print(f"\ntest images: {accuracy:.1%} right, loss {loss:.2f}")
    print(ftk.predict(model, test[0][:5]))
    print("they are:", ", ".join(names[k] for k in test[1][:5]))


if __name__ == "__main__":
    main()
