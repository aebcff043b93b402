"""Stochastic normalisation: the formula, in a network, and in files."""

import keras
import numpy as np
import pytest
from conftest import images, residual, snapshot, value

import finetune_keras as ftk
from finetune_keras import heads, select
from finetune_keras.normalization import StochasticNormalization

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 3.0, (16, 5, 8)).astype("float32")


def pair(p, seed=1):
    """A stochastic and a plain layer with the same weights, away from their initial ones."""
    made = [StochasticNormalization(p, seed=seed, momentum=0.9)]
    made.append(layers.BatchNormalization(momentum=0.9))
    for layer in made:
        layer.build(X.shape)
        rng = np.random.default_rng(5)
        layer.set_weights([rng.uniform(0.5, 1.5, v.shape) for v in layer.weights])
    return made


def by_moving(layer, x=X):
    """What NumPy makes of the layer's weights as they are."""
    gamma, beta, mean, variance = map(value, layer.weights)
    return gamma * (x - mean) / np.sqrt(variance + layer.epsilon) + beta


@pytest.mark.parametrize("p", [0, 0.5, 1.0])
def test_inference_is_batch_normalisation_to_the_bit(p):
    layer, plain = pair(p)
    np.testing.assert_array_equal(value(layer(X)), value(plain(X)))
    layer.trainable = plain.trainable = False
    np.testing.assert_array_equal(value(layer(X, training=True)), value(plain(X, training=True)))


def test_zero_is_batch_normalisation():
    layer, plain = pair(0)
    np.testing.assert_array_equal(value(layer(X, training=True)), value(plain(X, training=True)))
    for mine, theirs in zip(layer.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(value(mine), value(theirs))


def test_one_is_the_moving_statistics_after_their_update():
    layer, _ = pair(1)
    before = [value(v) for v in layer.weights]
    found = value(layer(X, training=True))
    mean = 0.9 * before[2] + 0.1 * X.mean((0, 1))
    variance = 0.9 * before[3] + 0.1 * X.var((0, 1))
    np.testing.assert_allclose(value(layer.moving_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(value(layer.moving_variance), variance, rtol=1e-5)
    expected = before[0] * (X - mean) / np.sqrt(variance + 1e-3) + before[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_each_channel_is_one_or_the_other():
    moved, drawn = 0, []
    for seed in range(4):
        layer, plain = pair(0.3, seed)
        found = value(layer(X, training=True))
        batch, moving = value(plain(X, training=True)), by_moving(layer)
        is_moving = np.isclose(found, moving, atol=1e-4).all((0, 1))
        is_batch = np.isclose(found, batch, atol=1e-4).all((0, 1))
        assert (is_moving ^ is_batch).all()
        drawn.append(tuple(is_moving))
        moved += is_moving.sum()
    assert len(set(drawn)) > 1
    assert 2 <= moved <= 20  # of 32, with 0.3


def test_another_axis():
    layer = StochasticNormalization(1.0, axis=1, momentum=0.0)
    layer.build(X.shape)
    found = value(layer(X, training=True))
    mean, variance = (f(X, axis=(0, 2), keepdims=True) for f in (np.mean, np.var))
    np.testing.assert_allclose(found, (X - mean) / np.sqrt(variance + 1e-3), atol=1e-4)
    half = StochasticNormalization(0.5, axis=1, seed=0)
    half.build(X.shape)
    assert value(half(X, training=True)).shape == X.shape


def test_without_gamma_and_beta_in_half_precision():
    layer = StochasticNormalization(1.0, center=False, scale=False, dtype="mixed_bfloat16")
    found = layer(X, training=True)
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    assert [v.name for v in layer.weights] == ["moving_mean", "moving_variance"]


def test_no_gradient_flows_through_moving_statistics():
    x = RNG.normal(size=(16, 1)).astype("float32")
    y = RNG.normal(size=(16, 4)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(4, use_bias=False, name="d"),
            StochasticNormalization(1.0, momentum=0.5, name="n"),
        ]
    )
    w = value(model.weights[0])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    z = x @ w
    mean, variance = 0.5 * z.mean(0), 0.5 + 0.5 * z.var(0)
    deviation = np.sqrt(variance + 1e-3)
    out = (z - mean) / deviation
    gradient = x.T @ (2 * (out - y) / y.size / deviation)
    np.testing.assert_allclose(value(model.get_layer("d").kernel), w - 0.1 * gradient, atol=1e-5)


def kinds(network):
    found = [x for _, x in ftk.graph.opened(network).layers if "Normalization" in type(x).__name__]
    return {type(x).__name__ for x in found}


def test_in_a_backbone():
    base = ftk.backbone(residual())
    rng = np.random.default_rng(1)
    for v in base.network.weights:
        v.assign(rng.uniform(0.1, 0.6, v.shape))
    made = ftk.stochastic_norm(base, p=0.4)
    assert kinds(base.network) == {"BatchNormalization"}
    assert kinds(made.network) == {"StochasticNormalization"}
    assert made.network.get_layer("stem_bn").p == 0.4
    x, _ = images()
    np.testing.assert_array_equal(
        made.model.predict(x, verbose=0), base.model.predict(x, verbose=0)
    )
    assert snapshot(made.network).keys() == snapshot(base.network).keys()
    model = ftk.build(made, heads.Classification(3), learning_rate=1e-3)
    other = ftk.build(base.copy(), heads.Classification(3), learning_rate=1e-3)
    other.set_weights(model.get_weights())
    y = np.arange(12) % 3
    assert model.train_on_batch(x, y)[0] != other.train_on_batch(x, y)[0]


def test_a_compiled_model_goes_on():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3), optimizer="adam")
    x, y = images()
    model.fit(x, y, epochs=2, batch_size=4, verbose=0)
    made = ftk.stochastic_norm(model, p=np.float32(0.5), seed=3)
    assert int(value(made.optimizer.iterations)) == 6
    np.testing.assert_array_equal(made.predict(x, verbose=0), model.predict(x, verbose=0))
    history = made.fit(x, y, batch_size=4, verbose=0).history
    assert set(history) == {"loss", "accuracy"}
    back = ftk.stochastic_norm(made, None)
    assert kinds(back) == {"BatchNormalization"}
    np.testing.assert_array_equal(back.predict(x, verbose=0), made.predict(x, verbose=0))
    assert int(value(back.optimizer.iterations)) == 9


def test_penalties_move_along():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3))
    before = ftk.l2sp(model, alpha=0.5, beta=0.0).anchored
    made = ftk.stochastic_norm(model)
    assert made.ftk_l2sp.anchored == before
    for v in made.get_layer("residual").get_layer("stem_bn").trainable_variables:
        v.assign(value(v) + 1.0)
    np.testing.assert_allclose(made.ftk_l2sp.value(), 0.5 * 0.5 * 16, rtol=1e-5)


def test_files(tmp_path):
    made = ftk.build(ftk.stochastic_norm(ftk.backbone(residual()), 0.7), heads.Classification(3))
    made.save(tmp_path / "own.keras")
    x, _ = images()
    for loaded in (
        keras.models.load_model(tmp_path / "own.keras"),
        ftk.load(tmp_path / "own.keras"),
    ):
        norm = loaded.get_layer("residual").get_layer("stem_bn")
        assert isinstance(norm, StochasticNormalization)
        assert norm.p == 0.7
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), made.predict(x, verbose=0))


def test_frozen_ones_are_said_and_shown_as_such():
    base = ftk.backbone(residual())
    model = ftk.build(base, heads.Classification(3), freeze=select.backbone())
    with pytest.warns(UserWarning, match=r"all 3 batch normalisations .* frozen.*norms=True"):
        made = ftk.stochastic_norm(model)
    notes = " ".join(ftk.describe(made).notes)
    assert "3 batch normalisations are frozen" in notes
    assert "random layers inside the frozen part" not in notes
    ftk.thaw(made, select.blocks(-1), norms=True)
    assert [p for p in snapshot(made) if "block2_bn/gamma" in p]


def test_cached_training_has_frozen_ones_in_the_prefix():
    base = ftk.stochastic_norm(ftk.backbone(residual()))
    model = ftk.build(base, heads.Classification(3), freeze=select.backbone())
    prefix, suffix = ftk.split(model)
    assert kinds(prefix) == {"StochasticNormalization"}
    assert not kinds(suffix)


def test_a_head_with_it():
    head = heads.Classification(3, normalization="stochastic")
    model = ftk.build(ftk.backbone(residual()), head)
    assert isinstance(model.get_layer("ftk_head_normalization"), StochasticNormalization)
    x, y = images()
    model.fit(x, y, batch_size=4, verbose=0)


class Holds(layers.Layer):
    def __init__(self):
        super().__init__(name="holds")
        self.norm = layers.BatchNormalization(name="inside")

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x)


def test_errors():
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="plain")
    with pytest.raises(ftk.SelectionError, match="no batch normalisation in 'plain'"):
        ftk.stochastic_norm(plain)
    with pytest.raises(ftk.SelectionError, match="no stochastic normalisation in 'residual'"):
        ftk.stochastic_norm(residual(), None)
    with pytest.raises(ftk.SelectionError, match="'holds/inside' in .* is inside a layer"):
        ftk.stochastic_norm(keras.Sequential([keras.Input((3,)), Holds()]))
    for p in (-0.1, 1.5, "half", True, float("nan")):
        with pytest.raises(ValueError, match="p is a probability from 0 to 1; given"):
            ftk.stochastic_norm(residual(), p)
    with pytest.raises(TypeError, match="a backbone or a keras.Model; given a str"):
        ftk.stochastic_norm("resnet50")
