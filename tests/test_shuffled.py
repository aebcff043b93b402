"""Each epoch of arrays has an order of its own, also after ``set_random_seed``."""

import keras
import numpy as np
import pytest

import finetune_keras as ftk


class Seen(keras.layers.Layer):
    """Writes down the first number of each example that a step trains on."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def call(self, x, training=None):
        if training and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            first = x[:, 0]
            note = tf.numpy_function(lambda a: self.rows.append(a.tolist()) or a, [first], x.dtype)
            return x + 0.0 * tf.reshape(tf.ensure_shape(note, first.shape), (-1, 1))
        return x


def network(frozen):
    inputs = keras.Input((1,))
    x = keras.layers.Dense(1, kernel_initializer="ones", name="base")(inputs)
    x, seen = keras.layers.Dense(1, kernel_initializer="ones", name="top")(x), Seen()
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(seen(x)))
    model.get_layer("base").trainable = not frozen
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    return model, seen


def epochs(seen, count, n):
    rows = [round(v) for batch in seen.rows for v in batch]
    return [rows[i * n : (i + 1) * n] for i in range(count)]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others shuffle by NumPy")
@pytest.mark.parametrize("frozen", [True, False])
def test_epochs_have_orders_of_their_own_that_a_seed_gives(frozen):
    x = np.arange(10.0).reshape(-1, 1)
    orders = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        model, seen = network(frozen)
        ftk.fit(model, x, x, epochs=3, batch_size=4, verbose=0)
        orders.append(epochs(seen, 3, 10))
    first, again = orders
    assert first == again
    assert all(sorted(order) == list(range(10)) for order in first)
    assert len({tuple(order) for order in first}) == 3


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others shuffle by NumPy")
@pytest.mark.parametrize("frozen", [True, False])
def test_a_later_first_epoch_has_the_order_that_it_had(frozen):
    x = np.arange(10.0).reshape(-1, 1)
    keras.utils.set_random_seed(3)
    model, seen = network(frozen)
    ftk.fit(model, x, x, epochs=3, batch_size=4, verbose=0)
    whole = epochs(seen, 3, 10)
    keras.utils.set_random_seed(3)
    model, seen = network(frozen)
    ftk.fit(model, x, x, epochs=3, initial_epoch=1, batch_size=4, verbose=0)
    assert epochs(seen, 2, 10) == whole[1:]


@pytest.mark.parametrize("frozen", [True, False])
def test_weights_of_classes_and_examples_and_validation_reach_the_loss(frozen):
    x, y = np.arange(6.0).reshape(-1, 1), np.array([0, 1, 0, 1, 0, 1])
    logs = []
    for how in (ftk.fit, keras.Model.fit):
        for more in ({"class_weight": {0: 1.0, 1: 5.0}}, {"sample_weight": np.arange(6.0)}):
            model, _ = network(frozen)
            model.get_layer("head").kernel.assign([[0.5]])
            fitted = how(model, x, y, epochs=2, validation_data=(x, y), verbose=0, **more)
            logs.append((fitted.history["loss"], fitted.history["val_loss"]))
    np.testing.assert_allclose(logs[:2], logs[2:], rtol=1e-5)


def test_arrays_of_unequal_length_are_refused_as_ever():
    model, _ = network(False)
    with pytest.raises(ValueError, match="4"):
        ftk.fit(model, np.zeros((4, 1)), np.zeros(5), verbose=0)
