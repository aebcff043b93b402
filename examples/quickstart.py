"""Fine-tunes a pretrained network on a few images a class, and says whether that was worth it.

    make quickstart                        # handwritten digits, offline, under two minutes
    python examples/quickstart.py --backbone resnet50 --weights imagenet --data FOLDER

The first takes the small network that ships with the package, pretrained on letters and never on
digits, and 1, 3 and 10 images a class of scikit-learn's handwritten digits. It compares, by
accuracy on all other images: the *probe* (a new head on the frozen network), the network
*fine-tuned* from there, the same network *from scratch* with the same augmentation and steps, and
logistic regression on the raw pixels. The second does the main job on your own folder of images,
one sub-folder a class.

Both write a picture and a `.keras` file, and load the file again.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import finetune_keras as ftk
from finetune_keras import heads, select

SIZE = 16  # the digits are 8 x 8; the network was trained at 16 x 16
STEPS, BATCH = 120, 32
METHODS = ("probe", "fine-tuned", "from scratch", "logistic regression")


def main() -> None:
    """Parses the command line and runs one of the two jobs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="letters_resnet", help="name or path of a model")
    parser.add_argument("--weights", default="auto", help="'imagenet', a file, or 'none'")
    parser.add_argument("--data", help="your own folder: one sub-folder of images a class")
    parser.add_argument("--size", type=int, default=224, help="images of --data are resized to it")
    parser.add_argument("--preprocessing", default="auto", help="of a file: whose, a name")
    parser.add_argument("--epochs", type=int, default=5, help="for the head, and again for the top")
    parser.add_argument("--seeds", type=int, default=5, help="of the digits: number of repeats")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.data:
        own_folder(args)
    else:
        digits(args)


# --- your own images ----------------------------------------------------------------------------


def own_folder(args: argparse.Namespace) -> None:
    """The main job: a new head, then the top third of the network, then a file."""
    keras.utils.set_random_seed(0)
    weights = None if args.weights == "none" else args.weights
    named = "." not in args.backbone
    options = {"weights": weights, "input_shape": (args.size, args.size, 3)} if named else {}
    base = ftk.backbone(args.backbone, preprocessing=args.preprocessing, **options)
    train, val = keras.utils.image_dataset_from_directory(
        args.data,
        image_size=[n or args.size for n in base.network.input_shape[1:3]],
        validation_split=0.2,
        subset="both",
        seed=0,
        batch_size=BATCH,
    )
    names = train.class_names
    model = ftk.build(
        base,
        heads.Classification(len(names), class_names=names),
        freeze=select.backbone(),
        augment=keras.layers.RandomFlip("horizontal"),
    )
    model.fit(train, validation_data=val, epochs=args.epochs)
    probe = model.evaluate(val, return_dict=True, verbose=0)["accuracy"]
    print(ftk.thaw(model, select.blocks(slice(-len(base.blocks) // 3, None)), learning_rate=1e-4))
    print(ftk.describe(model))
    model.fit(train, validation_data=val, epochs=args.epochs)
    tuned = model.evaluate(val, return_dict=True, verbose=0)["accuracy"]
    print(f"\nheld-out accuracy: {probe:.3f} by the new head alone, {tuned:.3f} fine-tuned")
    images, labels = next(iter(val.unbatch().batch(16)))
    finish(model, np.asarray(images), np.asarray(labels), names, args.out)


# --- handwritten digits -------------------------------------------------------------------------


def digits(args: argparse.Namespace) -> None:
    """Four ways to learn from 1, 3 and 10 images a class, over several seeds."""
    from sklearn.datasets import load_digits

    start = time.perf_counter()
    pixels, labels = load_digits(return_X_y=True)
    images = np.repeat(pixels.reshape(-1, 8, 8, 1) * (255 / 16), 3, axis=-1).astype("float32")
    images = keras.ops.convert_to_numpy(keras.ops.image.resize(images, (SIZE, SIZE)))

    base = ftk.backbone(args.backbone, input_shape=(SIZE, SIZE, 3))
    head = heads.Classification(10, class_names=[str(i) for i in range(10)])
    tuned = ftk.build(base, head, freeze=select.backbone(), augment=augmentation())
    print(ftk.describe(tuned), "\n")
    print(ftk.thaw(tuned, select.everything(), learning_rate=decay(5e-4)), "\n")
    fresh = ftk.backbone(args.backbone, weights=None, input_shape=(SIZE, SIZE, 3))
    scratch = ftk.build(fresh, head, augment=augmentation(), learning_rate=decay(3e-3))
    begin, begin_scratch = state(tuned), state(scratch)
    features = base.model.predict(images, batch_size=599, verbose=0).mean(axis=(1, 2))

    shots = (1, 3, 10)
    print(f"{len(shots) * args.seeds} runs, a minute or two: ", end="", flush=True)
    table = {(m, n): [] for m in METHODS for n in shots}
    for n in shots:
        for seed in range(args.seeds):
            keras.utils.set_random_seed(seed)
            train, test = split(labels, n, seed)
            x, y = repeated(images, labels, train, seed)

            restore(tuned, begin)
            table["probe", n].append(probe(tuned, features, labels, train, test))
            tuned.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
            table["fine-tuned", n].append(accuracy(tuned, images, labels, test))

            restore(scratch, begin_scratch)
            again = ftk.backbone(args.backbone, weights=None, input_shape=(SIZE, SIZE, 3))
            fresh.network.set_weights(again.network.get_weights())
            scratch.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
            table["from scratch", n].append(accuracy(scratch, images, labels, test))

            raw = regression(1.0).fit(pixels[train] / 16, labels[train])
            table["logistic regression", n].append(raw.score(pixels[test] / 16, labels[test]))
            print(".", end="", flush=True)

    print(f"\n\naccuracy on held-out digits, mean and deviation of {args.seeds} seeds")
    print(f"{'images a class':<20}" + "".join(f"{n:>16}" for n in shots))
    for m in METHODS:
        cells = (f"{np.mean(table[m, n]):.3f} ± {np.std(table[m, n]):.3f}" for n in shots)
        print(f"{m:<20}" + "".join(f"{c:>16}" for c in cells))
    print(f"{time.perf_counter() - start:.0f} s\n")
    finish(tuned, images[test], labels[test], head.class_names, args.out)


def augmentation() -> keras.layers.Layer:
    """A small random tilt."""
    return keras.layers.RandomPerspective(1.0, 0.3, seed=1)


def decay(rate: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """From ``rate`` to a twentieth of it over the steps of one run."""
    return keras.optimizers.schedules.CosineDecay(rate, STEPS, alpha=0.05)


def split(labels: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of ``n`` images a class to learn from, and of all others."""
    rng = np.random.default_rng(seed)
    train = [rng.permutation(np.flatnonzero(labels == k))[:n] for k in range(10)]
    train = np.concatenate(train)
    return train, np.setdiff1d(np.arange(len(labels)), train)


def repeated(images, labels, train, seed) -> tuple[np.ndarray, np.ndarray]:
    """The training images, shuffled again and again until there are ``STEPS`` batches."""
    rng = np.random.default_rng(seed)
    rounds = -(-STEPS * BATCH // len(train))
    index = np.concatenate([rng.permutation(train) for _ in range(rounds)])[: STEPS * BATCH]
    return images[index], labels[index]


def probe(model, features, labels, train, test) -> float:
    """Solves the head on the frozen features, writes it into the model, and scores it."""
    scale = np.sqrt((features**2).mean())
    solved = regression(1.0).fit(features[train] / scale, labels[train])
    model.get_layer("ftk_head_output").set_weights([solved.coef_.T / scale, solved.intercept_])
    return solved.score(features[test] / scale, labels[test])


def regression(c: float):
    """Multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=2000)


def accuracy(model, images, labels, test) -> float:
    """Share of test images whose likeliest class is the label."""
    # All images each time, in equal batches: nothing to trace again.
    likeliest = model.predict(images, batch_size=599, verbose=0).argmax(-1)
    return float((likeliest == labels)[test].mean())


def state(model: keras.Model) -> list[np.ndarray]:
    """Weights and optimizer of a model, to start each run from the same place."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in _variables(model)]


def restore(model: keras.Model, values: list[np.ndarray]) -> None:
    """Sets weights and optimizer back; compiled functions stay, which saves their tracing."""
    for variable, value in zip(_variables(model), values, strict=True):
        variable.assign(value)


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.weights, *model.optimizer.variables]


# --- what both leave behind ---------------------------------------------------------------------


def finish(model, images, labels, names, out: Path) -> None:
    """A picture of predictions, and a file that Keras alone loads with the same predictions."""
    picture(model, images, labels, names, out / "predictions.png")
    path = out / "model.keras"
    model.save(path)
    by_keras = keras.models.load_model(path, compile=False)
    by_us = ftk.load(path)
    expected = model.predict(images, verbose=0)
    for loaded in (by_keras, by_us):
        np.testing.assert_allclose(loaded.predict(images, verbose=0), expected, atol=1e-5)
    print(f"wrote {out / 'predictions.png'} and {path};")
    print("Keras alone loads the file with the same predictions, finetune_keras.load with")
    print(f"its classes too: {', '.join(ftk.describe(by_us).class_names)}")


def picture(model, images, labels, names, path: Path) -> None:
    """Sixteen held-out images with the predicted class, wrong ones marked."""
    from matplotlib.figure import Figure

    pick = np.linspace(0, len(images) - 1, min(16, len(images))).astype(int)
    p = model.predict(images[pick], verbose=0)
    figure = Figure(figsize=(8, 8.6), layout="constrained")
    for axes, i, q in zip(figure.subplots(4, 4).flat, pick, p, strict=False):
        right = q.argmax() == labels[i]
        axes.imshow(images[i].clip(0, 255).astype("uint8"))
        axes.set_axis_off()
        told = f"{names[q.argmax()]}  {q.max():.0%}"
        axes.set_title(
            told if right else f"{told}\nis {names[labels[i]]}",
            color="black" if right else "crimson",
        )
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
