import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import images, moved, residual, snapshot, value

from finetune_keras import HeadError, build, heads, select
from finetune_keras.heads.augmentation import brighten, disturb

BOTH = {"feature_noise": 0.3, "feature_brightness": 0.4}


def features(n=200, width=32):
    return np.random.default_rng(1).gamma(0.5, 2.0, (n, width)).astype("float32")


def layer(rule, amount, width=32, dtype="float32"):
    given = keras.Input((width,), dtype=dtype)
    return keras.Model(given, rule(given, amount))


def head_model(head, width=32):
    given = keras.Input((width,))
    return keras.Model(given, head(given))


@pytest.mark.parametrize("rule", [brighten, disturb])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_features_vary_in_training_and_are_equal_to_the_bit_at_inference(rule, dtype):
    model = layer(rule, 0.3, dtype=dtype)
    x = keras.ops.cast(features(), dtype)
    for training in (False, None):
        found = model(x, training=training)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(*(value(keras.ops.cast(t, "float32")) for t in (found, x)))
    first, second = (value(keras.ops.cast(model(x, training=True), "float32")) for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.abs(first - value(keras.ops.cast(x, "float32"))).max(1).min() > 0


def test_brightness_is_one_shift_an_example_within_its_range():
    x = features(2000)
    found = value(layer(brighten, 0.4)(x, training=True))
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    assert (found >= low).all()
    assert (found <= high).all()
    inside = (found > low) & (found < high)
    shift = (found - x) / (high - low)
    rows = inside.sum(1) > 1
    spread = np.array([np.ptp(s[i]) for s, i in zip(shift[rows], inside[rows], strict=True)])
    assert spread.max() < 1e-5  # the same for all channels
    drawn = np.array([s[i].mean() for s, i in zip(shift[rows], inside[rows], strict=True)])
    # Uniform from -0.4 to 0.4: its ends, its mean, its deviation.
    assert -0.4 <= drawn.min() < -0.38
    assert 0.38 < drawn.max() <= 0.4
    assert drawn.mean() == pytest.approx(0.0, abs=0.03)
    assert drawn.std() == pytest.approx(0.4 / np.sqrt(3), rel=0.05)


def test_the_formula_is_that_of_the_paper():
    x = features(50)
    found = value(layer(brighten, 0.4)(x, training=True))
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    mapped, after = (x - low) / (high - low), (found - low) / (high - low)
    inside = (after > 0) & (after < 1)
    for a, b, i in zip(mapped, after, inside, strict=True):
        shift = (b - a)[i].mean()
        np.testing.assert_allclose(b, np.clip(a + shift, 0, 1), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_noise_is_relative_to_the_features(scale):
    x = scale * features(400) + 3 * scale
    noise = value(layer(disturb, 0.2)(x, training=True)) - x
    relative = noise / x.std(1, keepdims=True)
    assert relative.std() == pytest.approx(0.2, rel=0.05)
    assert relative.mean() == pytest.approx(0.0, abs=0.01)
    assert np.abs(np.corrcoef(relative[:, 0], relative[:, 1])[0, 1]) < 0.2


@pytest.mark.parametrize("rule", [brighten, disturb])
def test_features_all_alike_stay_and_have_a_gradient(rule):
    given = keras.Input((4,))
    x = keras.layers.Dense(32, kernel_initializer="zeros", name="d")(given)
    model = keras.Model(given, keras.layers.Dense(1)(rule(x, 0.3)))
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 4), "float32"), np.ones((4, 1), "float32"), verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert np.abs(value(model.get_layer("d").kernel)).max() > 0


@pytest.mark.parametrize(
    "head",
    [
        heads.Classification(3, **BOTH),
        heads.Classification(3, hidden=[8], normalization="batch", dropout=0.1, **BOTH),
        heads.Ordinal(3, **BOTH),
        heads.Regression(mean=1.0, std=2.0, **BOTH),
    ],
)
def test_a_head_predicts_the_same_with_and_without(head):
    without = dataclasses.replace(head, feature_noise=0.0, feature_brightness=0.0)
    model, plain = head_model(head), head_model(without)
    plain.set_weights(model.get_weights())
    x = features(16)
    for a, b in (
        (model.predict(x, verbose=0), plain.predict(x, verbose=0)),
        (value(model(x)), value(plain(x))),
    ):
        np.testing.assert_array_equal(a, b)
    names = [x.name for x in model.layers]
    assert names[1:3] == ["ftk_head_feature_brightness", "ftk_head_feature_noise"]
    assert all(n.startswith("ftk_head_") for n in names[1:])
    assert len(plain.layers) == len(model.layers) - 2


def test_the_dense_layer_learns_through_it_and_the_backbone_too():
    model = build(residual(), heads.Classification(3, **BOTH), freeze=select.backbone())
    x, y = images()
    before = snapshot(model)
    model.fit(x, y, verbose=0)
    assert moved(before, model) == {"ftk_head_output/kernel", "ftk_head_output/bias"}
    whole = build(residual(), heads.Classification(3, **BOTH), learning_rate=1e-2)
    before = snapshot(whole)
    whole.fit(x, y, verbose=0)
    assert any(path.endswith("stem_conv/kernel") for path in moved(before, whole))


def test_it_computes_under_mixed_precision():
    features = keras.layers.Dense(8, dtype="mixed_bfloat16")(given := keras.Input((6,)))
    model = keras.Model(given, heads.Classification(3, hidden=[4], **BOTH)(features))
    assert model.get_layer("ftk_head_feature_noise").output.dtype == "bfloat16"
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(np.ones((4, 6), "float32"), np.arange(4) % 3, verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_heads_of_several_have_their_own():
    head = heads.Multi({"a": heads.Classification(3, **BOTH), "b": heads.Regression()})
    model = head_model(head)
    names = {x.name for x in model.layers}
    assert {"ftk_head_a_feature_noise", "ftk_head_a_feature_brightness"} <= names
    x = np.repeat(features(1), 8, axis=0)
    model.get_layer("ftk_head_b_output").kernel.assign(np.ones((32, 1)))
    model.get_layer("ftk_head_a_output").kernel.assign(np.eye(32, 3))
    out = model(x, training=True)
    assert np.ptp(value(out["b"])) < 1e-4
    assert np.ptp(value(out["a"]), axis=0).max() > 1e-3


CODE = """
import sys, numpy as np, keras
model = keras.models.load_model(sys.argv[1])
d = np.load(sys.argv[2])
called = keras.ops.convert_to_numpy(model(d["x"]))
np.testing.assert_allclose(called, d["p"], atol=1e-6)
np.testing.assert_allclose(model.predict(d["x"], verbose=0), d["p"], atol=1e-6)
one = np.repeat(d["x"][:1], 8, axis=0)
assert np.ptp(keras.ops.convert_to_numpy(model(one, training=True)), axis=0).max() > 1e-4
model.fit(d["x"], np.arange(len(d["x"])) % 3, verbose=0)
assert "finetune_keras" not in sys.modules
"""


def test_keras_alone_loads_it_in_another_process_and_goes_on(tmp_path):
    model = head_model(head := heads.Classification(3, **BOTH))
    model.compile("adam", head.loss)
    x = features(12)
    model.fit(x, np.arange(12) % 3, epochs=3, verbose=0)
    model.save(tmp_path / "a.keras")
    np.savez(tmp_path / "x.npz", x=x, p=model.predict(x, verbose=0))
    paths = [str(tmp_path / n) for n in ("a.keras", "x.npz")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", CODE, *paths], check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_noise": -0.1}, r"feature_noise must be a number from 0; given -0\.1"),
        ({"feature_brightness": 1.0}, "feature_brightness must be a number from 0 and below 1"),
        ({"feature_brightness": True}, "given True"),
    ],
)
def test_bad_amounts_are_refused(options, message):
    with pytest.raises(HeadError, match=message):
        heads.Classification(3, **options)
