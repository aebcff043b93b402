"""What ``fit`` with a cache leaves behind: the model, its memory, and nothing of a failure."""

import gc
import weakref

import keras
import numpy as np
import pytest
from conftest import same, value, vectors

import finetune_keras as ftk

layers = keras.layers


def half(*more, optimizer="adam"):
    """Two dense layers, of which the first is frozen."""
    keras.utils.set_random_seed(1)
    stack = [layers.Dense(8, "tanh", trainable=False), *more, layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *stack])
    model.compile(optimizer, "mse")
    return model


def state(model):
    return [value(v) for v in (*model.weights, *model.optimizer.variables)]


@pytest.mark.parametrize("solver", [None, "lbfgs"])
def test_a_model_that_was_trained_can_go(solver):
    model = half()
    ftk.fit(model, *vectors(), epochs=2, verbose=0, solver=solver)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_steps_of_arrays_make_the_batches_as_in_fit():
    x, y = vectors(30)
    ends = []
    for function in (keras.Model.fit, ftk.fit):
        model = half()
        settings = {"shuffle": False, "steps_per_epoch": 2, "epochs": 2, "verbose": 0}
        held = {"validation_data": (x, y), "validation_steps": 3}
        ends.append((function(model, x, y, **settings, **held).history, state(model)))
    for name, values in ends[0][0].items():
        np.testing.assert_allclose(ends[1][0][name], values, rtol=1e-4)
    for one, other in zip(ends[0][1], ends[1][1], strict=True):
        same(other, one, atol=1e-5)


def test_compiling_again_counts_though_the_arguments_are_the_same():
    x, y = vectors()
    rate = layers.Dropout(0.5)
    model = half(layers.Dense(8), rate, optimizer=keras.optimizers.SGD(0.0))
    losses = []
    for rate.rate in (0.5, 0.0):
        model.compile(model.optimizer, "mse")
        losses.append(ftk.fit(model, x, y, verbose=0, shuffle=False).history["loss"][0])
    assert losses[1] == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-4)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_a_folder_that_cannot_be_used_changes_nothing_on_the_model(tmp_path):
    (tmp_path / "file").write_text("")
    model = half(layers.Dense(4, name="middle"))
    variables = len(model.optimizer.variables)
    with pytest.raises(ftk.CacheError):
        ftk.fit(model, *vectors(), verbose=0, cache=tmp_path / "file")
    assert len(model.optimizer.variables) == variables
    ftk.fit(model, *vectors(), verbose=0)
    model.get_layer("middle").trainable = False
    optimizer, before = model.optimizer, state(model)
    with pytest.raises(ftk.CacheError):
        ftk.fit(model, *vectors(), verbose=0, cache=tmp_path / "file")
    assert model.optimizer is optimizer
    for one, other in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_frozen_layer_that_adds_a_loss_when_called_is_trained_plainly():
    class Adds(layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x**2))
            return x

    inputs = keras.Input((6,))
    low = Adds(name="adds")(layers.Dense(4, trainable=False)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(low))
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="'adds' adds a loss"):
        ftk.fit(model, *vectors(), verbose=0)


def test_a_frozen_layer_that_reports_a_metric_is_trained_plainly(monkeypatch):
    class Reports(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mean = keras.metrics.Mean(name="activity")

        def call(self, x):
            self.mean.update_state(x)
            return x

    inputs = keras.Input((6,))
    low = layers.Dense(4, trainable=False)(Reports()(layers.Dense(4, trainable=False)(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(low))
    model.compile("sgd", "mse")
    plain = []  # which does not run on JAX: Keras cannot update such a metric there
    monkeypatch.setattr(keras.Model, "fit", lambda self, **settings: plain.append(self))
    with pytest.warns(UserWarning, match="a metric of its own, 'activity'"):
        ftk.fit(model, *vectors(), verbose=0)
    assert plain == [model]


def test_a_training_function_of_the_user_s_own_is_called():
    class Own(keras.Model):
        def make_train_function(self, force=False):
            self.made = True
            return super().make_train_function(force)

    inputs = keras.Input((6,))
    model = Own(inputs, layers.Dense(3)(layers.Dense(4, trainable=False)(inputs)))
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="Own has a make_train_function of its own"):
        ftk.fit(model, *vectors(), verbose=0)
    assert model.made


def test_features_that_are_kept_serve_batches_of_any_size(tmp_path):
    model = half()
    for size, steps in ((8, 4), (16, 6), (None, 7)):
        ftk.fit(model, *vectors(), batch_size=size, verbose=0, cache=tmp_path)
        assert int(value(model.optimizer.iterations)) == steps
