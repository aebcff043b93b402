"""Opens the top of a frozen network after a first `fit`, in three ways, and counts what happens.

    python examples/side_by_side.py
    KERAS_BACKEND=jax python examples/side_by_side.py

The table in the README is what the first command prints.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

import finetune_keras as ftk
from finetune_keras import heads, select

TOP = "stage3_block1"


def main() -> None:
    """Trains a head, opens the last block in each way, trains again, and prints the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    ways = {"flags set": by_flags, "+ compiled again": by_compile, "ftk.thaw": by_thaw}
    rows = {name: counts(way) for name, way in ways.items()}
    print(f"{keras.backend.backend()}, last block opened after a fit")
    print(f"{'':<36}" + "".join(f"{name:>18}" for name in rows))
    for what in next(iter(rows.values())):
        print(f"{what:<36}" + "".join(f"{column[what]:>18}" for column in rows.values()))


def by_flags(model: keras.Model) -> None:
    """What a first try looks like: Keras says nothing."""
    for layer in model.get_layer("letters_resnet").layers:
        if layer.name.startswith(TOP):
            layer.trainable = True


def by_compile(model: keras.Model) -> None:
    """What the guides say: compile again, with a fresh optimizer."""
    by_flags(model)
    model.compile(keras.optimizers.AdamW(1e-5), model.loss, metrics=["accuracy"])


def by_thaw(model: keras.Model) -> None:
    """The way of this library."""
    ftk.thaw(model, select.blocks(-1))


def counts(way) -> dict[str, str]:
    """Runs one way on a model of its own."""
    keras.utils.set_random_seed(0)
    pixels, y = load_digits(return_X_y=True)
    x = np.repeat(pixels.reshape(-1, 8, 8, 1)[:320] * (255 / 16), 3, axis=-1)
    x, y = keras.ops.convert_to_numpy(keras.ops.image.resize(x, (16, 16))), y[:320]
    base = ftk.backbone("letters_resnet", input_shape=(16, 16, 3))
    model = ftk.build(base, heads.Classification(10), freeze=select.backbone())
    model.fit(x, y, epochs=5, verbose=0)
    steps, momentum = state(model)

    way(model)
    kept_steps, kept_momentum = state(model)
    weights = {v.path: v for v in model.weights if TOP in v.path}
    before = {path: value(v) for path, v in weights.items()}
    try:
        model.fit(x, y, epochs=1, verbose=0)
    except Exception as error:
        return failed(type(error).__name__, model)
    moved = {path for path, v in weights.items() if not np.array_equal(value(v), before[path])}

    def count(*names: str) -> str:
        mine = {path for path in weights if path.endswith(names)}
        return f"{len(moved & mine)} of {len(mine)}"

    return {
        "kernels of the block that now moved": count("kernel"),
        "its batch statistics that drifted": count("moving_mean", "moving_variance"),
        "optimizer steps it goes on from": f"{kept_steps} of {steps}",
        "head's momentum kept": "yes" if np.array_equal(momentum, kept_momentum) else "no",
        "learning rate": f"{float(model.optimizer.learning_rate):.0e}",
        "weights after it": "usable",
    }


def failed(error: str, model: keras.Model) -> dict[str, str]:
    """The column of a way that ended in an error."""
    try:
        model.get_weights()
        weights = "usable"
    except Exception:
        weights = "gone"
    return {
        "kernels of the block that now moved": error,
        "its batch statistics that drifted": "",
        "optimizer steps it goes on from": "",
        "head's momentum kept": "",
        "learning rate": "",
        "weights after it": weights,
    }


def state(model: keras.Model) -> tuple[int, np.ndarray]:
    """The optimizer's step count, and the first moment of the head's kernel."""
    slots = [v for v in model.optimizer.variables if "output_kernel_momentum" in v.path]
    return int(model.optimizer.iterations), value(slots[0]) if slots else np.zeros(1)


def value(variable: keras.Variable) -> np.ndarray:
    """A copy of a variable's value."""
    return np.array(keras.ops.convert_to_numpy(variable))


if __name__ == "__main__":
    main()
