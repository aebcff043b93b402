"""Freezing and thawing in a pipeline that exists already, all else in it left as it was.

    python examples/existing_pipeline.py

The model (a MobileNetV2 nested in a functional model), the ``tf.data`` that preprocesses, the
loss (a Python function) and the optimizer are the pipeline's own. Only ``freeze``, ``thaw`` and
``describe`` are added. Without flags, 10 to 30 seconds on one core: random weights and 400 of
scikit-learn's digits, so that the accuracy stays low (0.23 with seed 0 on TensorFlow, 0.24 on
JAX). It ends with the list of what the second fit moved, five variables, and

    they are the thawed ones and the head's: True
    the rest, equal to the bit: 257 of 262 variables
    optimizer steps: 40 before, 80 after
    still the pipeline's own loss: True

With pretrained weights and a folder of images, one folder for each class:

    python examples/existing_pipeline.py --data FOLDER --weights FILE --epochs 5

FILE is what ``save_weights`` writes of a ``MobileNetV2(alpha=0.35, include_top=False)``.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from keras.applications.mobilenet_v2 import MobileNetV2, preprocess_input
from sklearn.datasets import load_digits

import finetune_keras as ftk
from finetune_keras import select

SHAPE = (96, 96, 3)


def smoothed(y_true, y_pred):
    """The pipeline's own loss: cross-entropy on logits, with a tenth of doubt in the labels."""
    classes = y_pred.shape[-1]
    target = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), classes)
    return ops.categorical_crossentropy(0.9 * target + 0.1 / classes, y_pred, from_logits=True)


def pipeline_model(weights: str | None, classes: int) -> keras.Model:
    network = MobileNetV2(alpha=0.35, weights=weights, include_top=False, input_shape=SHAPE)
    if not weights:  # Keras draws depthwise kernels so small that the features would vanish.
        for layer in network.layers:
            if isinstance(layer, layers.DepthwiseConv2D):
                layer.kernel.assign(layer.kernel * (6 * layer.kernel.shape[2]) ** 0.5)
    inputs = keras.Input(SHAPE)
    x = layers.GlobalAveragePooling2D()(network(inputs))
    x = layers.Dropout(0.2)(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name="pipeline")


def pipeline_data(folder: str | None, seed: int) -> tuple[tf.data.Dataset, tf.data.Dataset, int]:
    """Batches to train and to validate on, and the number of classes."""
    if folder:
        train, val = keras.utils.image_dataset_from_directory(
            folder, image_size=SHAPE[:2], validation_split=0.2, subset="both", seed=seed
        )
        classes = len(train.class_names)
    else:
        data = load_digits()
        images = np.repeat(data.images[:400, ..., None] * 255 / 16, 3, axis=-1)
        pairs = tf.data.Dataset.from_tensor_slices((images, data.target[:400]))
        train = pairs.skip(80).shuffle(320, seed=seed).batch(16)
        val, classes = pairs.take(80).batch(16), 10

    def prepare(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return preprocess_input(tf.image.resize(image, SHAPE[:2])), label

    return train.map(prepare), val.map(prepare), classes


def values(model: keras.Model) -> dict[str, np.ndarray]:
    """Every variable by the path that a ``Change`` lists it under."""
    units = select.resolve(model, select.everything())
    return {u.path: np.array(ops.convert_to_numpy(u.variable)) for u in units}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="FOLDER", help="images as FOLDER/class/file.jpg")
    parser.add_argument("--weights", metavar="FILE", help="of MobileNetV2(alpha=0.35), no top")
    parser.add_argument("--epochs", type=int, default=2, help="of each of the two fits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    train, val, classes = pipeline_data(args.data, args.seed)
    model = pipeline_model(args.weights, classes)
    model.compile(keras.optimizers.Adam(1e-3), loss=smoothed, metrics=["accuracy"])

    def fit() -> None:  # shuffle=False: the data shuffles itself.
        model.fit(train, validation_data=val, epochs=args.epochs, shuffle=False, verbose=2)

    print("\n1. freeze(model, select.backbone())")
    print(ftk.freeze(model, select.backbone()))
    fit()
    print(f"\n{ftk.describe(model)}")

    print("\n2. thaw(model, select.blocks(slice(-3, None)))")
    head = {u.path for u in select.resolve(model, select.head())}
    before, steps = values(model), int(model.optimizer.iterations)
    change = ftk.thaw(model, select.blocks(slice(-3, None)))
    print(change)
    fit()
    moved = {path for path, now in values(model).items() if not np.array_equal(before[path], now)}

    print("\n3. What the second fit changed")
    print("moved:", *sorted(moved), sep="\n  ")
    print(f"they are the thawed ones and the head's: {moved == head | set(change.thawed)}")
    print(f"the rest, equal to the bit: {len(before) - len(moved)} of {len(before)} variables")
    print(f"optimizer steps: {steps} before, {int(model.optimizer.iterations)} after")
    print(f"still the pipeline's own loss: {model.loss is smoothed}")


if __name__ == "__main__":
    main()
