"""`fine_tune(directory=)`: a run that is killed and started again ends as one without a break."""

import errno
import json
import os

import keras
import numpy as np
import pytest
from conftest import images

import finetune_keras as ftk
from finetune_keras import recipes, select
from finetune_keras.recipes import folder as folders

layers = keras.layers


def network(dropout=0.3, policy="float32", **options):
    """Blocks with normalisation, dropout and augmentation, whose generators have states."""
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomFlip(name="flip")(inputs)
    for i in range(3):
        x = layers.Conv2D(6, 3, padding="same", name=f"conv{i}", dtype=policy)(x)
        x = layers.BatchNormalization(name=f"bn{i}", dtype=policy)(x)
        x = layers.Activation("relu", name=f"act{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="drop")(layers.Dense(5, activation="relu", name="fc")(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x))
    return ftk.compile(
        model, loss="sparse_categorical_crossentropy", metrics=["accuracy"], **options
    )


class Killed(BaseException):
    """As if the process ended there."""


class Kill(keras.callbacks.Callback):
    def __init__(self, epoch, where):
        super().__init__()
        self.epoch, self.where = epoch, where

    def on_epoch_begin(self, epoch, logs=None):
        if self.where == "begin" and epoch == self.epoch:
            raise Killed

    def on_train_batch_end(self, batch, logs=None):
        if self.where == "batch" and self.seen == self.epoch:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        if self.where == "end" and epoch == self.epoch:
            raise Killed


def run(directory, recipe, *, kill=None, seed=7, model=None, data=None, **options):
    """One process: its random states, its model, its data are its own."""
    keras.utils.set_random_seed(7)
    model = model or network()
    train, held = data or (images(20, 8), images(12, 8))
    if directory is not None and os.path.exists(directory):  # a head is drawn anew each time
        head = model.get_layer("classes").kernel
        head.assign(np.random.default_rng().normal(size=head.shape))
        np.random.seed()
    callbacks = [kill] if kill else []
    given = {"epochs": 4, "patience": 9, "verbose": 0, "seed": seed, **options}
    history = ftk.fine_tune(
        model,
        train,
        validation_data=held,
        recipe=recipe,
        directory=directory,
        callbacks=callbacks,
        **given,
    )
    return [np.array(v) for v in model.get_weights()], history


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True)) and (
        json.dumps(one[1].history) == json.dumps(other[1].history)
        and one[1].epoch == other[1].epoch
        and one[1].best == other[1].best
    )


@pytest.mark.parametrize("recipe", ["lp_ft", "auto", "full"])
def test_killed_at_each_epoch_it_ends_the_same(recipe, tmp_path):
    whole = run(tmp_path / "whole", recipe)
    plain = run(None, recipe)
    assert same(whole, plain)
    for epoch in range(len(whole[1].epoch)):
        directory = tmp_path / f"at{epoch}"
        with pytest.raises(Killed):
            run(directory, recipe, kill=Kill(epoch, "end"))
        assert same(run(directory, recipe), whole), epoch
