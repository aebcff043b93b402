"""L2-SP: the gradient of the formula, through freezing, caching, precision and files."""

import keras
import numpy as np
import pytest
from conftest import chain, residual, snapshot, value, vectors

import finetune_keras as ftk
from finetune_keras import heads, select

RATE, ALPHA, BETA = 0.1, 0.3, 0.2


def plain(model=None):
    """A chain whose head is its last layer, with SGD."""
    model = model or chain()
    model.compile(keras.optimizers.SGD(RATE), "mse")
    return model


def step(model, steps=1):
    x, y = vectors()
    for _ in range(steps):
        model.fit(x, y, batch_size=32, shuffle=False, verbose=0)


def away(model, distance=0.5):
    """Moves every weight, so that the penalty has a gradient."""
    for v in model.trainable_variables:
        v.assign(value(v) + distance)


def difference(model, other):
    """The step of one beyond that of the other, which is the penalty's alone."""
    before = snapshot(model)
    step(model)
    step(other)
    after, without = snapshot(model), snapshot(other)
    return {p: after[p] - without[p] for p in before}, before


def pair():
    model, other = plain(), plain()
    other.set_weights(model.get_weights())
    return model, other


def test_one_step_is_the_formula():
    model, other = pair()
    start = snapshot(model)
    found = ftk.l2sp(model, alpha=ALPHA, beta=BETA)
    assert found.anchored == ("a/kernel", "a/bias", "b/kernel", "b/bias")
    assert found.shrunk == ("c/kernel", "c/bias")
    away(model)
    away(other)
    moved, before = difference(model, other)
    for path, extra in moved.items():
        w = before[path]
        expected = BETA * w if path.startswith("c") else ALPHA * (w - start[path])
        np.testing.assert_allclose(extra, -RATE * expected, atol=2e-6, err_msg=path)


def test_the_loss_has_the_formula():
    model, other = pair()
    start = snapshot(model)
    found = ftk.l2sp(model, alpha=ALPHA, beta=BETA)
    away(model, 0.1)
    away(other, 0.1)
    now = snapshot(model)
    expected = sum(
        0.5 * (BETA * (w**2).sum() if p.startswith("c") else ALPHA * ((w - start[p]) ** 2).sum())
        for p, w in now.items()
    )
    np.testing.assert_allclose(found.value(), expected, rtol=1e-5)
    x, y = vectors()
    both = model.evaluate(x, y, verbose=0) - other.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(both, expected, rtol=1e-4)


def test_several_steps_are_numpys():
    """Momentum and all: the penalty goes through the optimizer like any gradient."""
    x, y = vectors()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, name="d", use_bias=False)])
    model.compile(keras.optimizers.SGD(RATE, momentum=0.9), "mse")
    start = value(model.weights[0])
    ftk.l2sp(model, select.everything(), alpha=ALPHA)
    w, velocity = start.copy(), 0.0
    for _ in range(4):
        gradient = 2 * x.T @ (x @ w - y) / y.size + ALPHA * (w - start)
        velocity = 0.9 * velocity - RATE * gradient
        w = w + velocity
    step(model, 4)
    np.testing.assert_allclose(value(model.weights[0]), w, rtol=1e-4, atol=1e-6)


def test_a_strong_pull_keeps_the_start():
    model = plain()
    start = snapshot(model)
    ftk.l2sp(model, alpha=9.0, beta=0.0)
    assert not model.ftk_l2sp.shrunk
    free = plain()
    free.set_weights(model.get_weights())
    step(model, 8)
    step(free, 8)

    def far(m):
        return sum(np.abs(v - start[p]).sum() for p, v in snapshot(m).items() if p[0] in "ab")

    assert far(model) < 0.3 * far(free)


def test_after_a_fit_and_off_again():
    model, other = pair()
    step(model)
    step(other)
    found = ftk.l2sp(model, alpha=ALPHA, beta=BETA)
    moved, _ = difference(model, other)
    np.testing.assert_allclose(moved["a/kernel"], 0, atol=1e-6)  # still at the start
    assert np.abs(moved["c/kernel"]).max() > 1e-3
    other.set_weights(model.get_weights())
    found.remove()
    moved, _ = difference(model, other)
    for extra in moved.values():
        np.testing.assert_allclose(extra, 0, atol=1e-6)
    assert not hasattr(model, "ftk_l2sp")
    assert ftk.l2sp(model, None) is None


def test_a_second_call_keeps_the_starts():
    model = plain()
    start = snapshot(model)
    ftk.l2sp(model, alpha=1.0, beta=0.0)
    away(model)
    found = ftk.l2sp(model, alpha=0.5, beta=0.0)
    expected = sum(
        0.25 * ((v - start[p]) ** 2).sum() for p, v in snapshot(model).items() if p[0] in "ab"
    )
    np.testing.assert_allclose(found.value(), expected, rtol=1e-5)


def test_starts_of_another_model():
    pretrained = chain()
    model = plain()
    found = ftk.l2sp(model, alpha=1.0, beta=0.0, start=pretrained)
    now, then = snapshot(model), snapshot(pretrained)
    expected = sum(0.5 * ((now[p] - then[p]) ** 2).sum() for p in now if p[0] in "ab")
    np.testing.assert_allclose(found.value(), expected, rtol=1e-5)
    base = ftk.backbone(residual())
    built = ftk.build(base, heads.Classification(3))
    assert ftk.l2sp(built, beta=0.0, start=base.network).value() == 0.0
    with pytest.raises(ValueError, match="start has no 'a/kernel'"):
        ftk.l2sp(model, start=base.network)
    assert model.ftk_l2sp.alpha == 1.0


def test_regularisers_of_the_layers_stay():
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3, name="d", kernel_regularizer="l2")]
    )
    model.compile(keras.optimizers.SGD(RATE), "mse")
    before = float(value(sum(model.losses)))
    found = ftk.l2sp(model, select.everything(), alpha=ALPHA)
    away(model)
    own = 0.01 * float((value(model.weights[0]) ** 2).sum())
    np.testing.assert_allclose(float(value(sum(model.losses))), own + found.value(), rtol=1e-5)
    found.remove()
    assert len(model.losses) == 1
    assert before > 0


def test_it_follows_freeze_and_thaw():
    model, other = pair()
    start = snapshot(model)
    ftk.l2sp(model, alpha=ALPHA, beta=0.0)
    away(model)
    away(other)
    for m in (model, other):
        ftk.freeze(m, select.up_to("a"))
    moved, before = difference(model, other)
    np.testing.assert_array_equal(moved["a/kernel"], 0)
    np.testing.assert_allclose(
        moved["b/kernel"], -RATE * ALPHA * (before["b/kernel"] - start["b/kernel"]), atol=2e-6
    )
    other.set_weights(model.get_weights())
    for m in (model, other):
        ftk.thaw(m, select.up_to("a"), learning_rate=RATE)
    moved, before = difference(model, other)
    np.testing.assert_allclose(
        moved["a/kernel"], -RATE * ALPHA * (before["a/kernel"] - start["a/kernel"]), atol=2e-6
    )


def test_cached_training_has_it_and_caches(recwarn):
    whole, cached = pair()
    for m in (whole, cached):
        ftk.l2sp(m, alpha=ALPHA, beta=BETA)
        ftk.freeze(m, select.up_to("a"))
        away(m)
    x, y = vectors()
    whole.fit(x, y, epochs=3, shuffle=False, verbose=0)
    ftk.fit(cached, x, y, epochs=3, shuffle=False, verbose=0)
    assert not [w for w in recwarn if "plain model.fit" in str(w.message)]
    now = snapshot(cached)
    for path, expected in snapshot(whole).items():
        np.testing.assert_allclose(now[path], expected, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_has_the_gradient_in_float32(policy):
    def network():
        dense = keras.layers.Dense
        return keras.Sequential(
            [
                keras.Input((6,)),
                dense(8, name="b", dtype=policy, kernel_initializer="zeros"),
                dense(3, name="c", dtype="float32", kernel_initializer="zeros"),
            ]
        )

    # With zeros in the last kernel no gradient reaches the first layer but the penalty's.
    model = network()
    model.compile(keras.optimizers.SGD(RATE), "mse")
    ftk.l2sp(model, select.named("^b/"), alpha=ALPHA, beta=0.0)
    kernel = model.get_layer("b").kernel
    moved = np.linspace(-1, 1, 48, dtype="float32").reshape(6, 8)
    kernel.assign(moved)
    step(model)
    np.testing.assert_allclose(value(kernel), moved * (1 - RATE * ALPHA), rtol=1e-5)


def trained(tmp_path):
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3), learning_rate=1e-2)
    ftk.l2sp(model, alpha=ALPHA, beta=BETA)
    away(model, 0.01)
    model.save(tmp_path / "model.keras")
    return model


def test_a_file_brings_the_starts_back(tmp_path):
    model = trained(tmp_path)
    loaded = ftk.load(tmp_path / "model.keras")
    assert loaded.ftk_l2sp.anchored == model.ftk_l2sp.anchored
    assert loaded.ftk_l2sp.alpha == ALPHA
    assert model.ftk_l2sp.value() > 0.01
    np.testing.assert_allclose(loaded.ftk_l2sp.value(), model.ftk_l2sp.value(), rtol=1e-6)
    x, y = np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)), np.arange(4) % 3
    np.testing.assert_allclose(
        loaded.train_on_batch(x, y)[0], model.train_on_batch(x, y)[0], rtol=1e-5
    )
    loaded.save(tmp_path / "again.keras")
    again = ftk.load(tmp_path / "again.keras")
    np.testing.assert_allclose(again.ftk_l2sp.value(), loaded.ftk_l2sp.value(), rtol=1e-6)


def test_keras_alone_reads_the_file(tmp_path):
    model = trained(tmp_path)
    x = np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3))
    found = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(found.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    assert not found.losses
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert not resumed.losses


def test_weights_files_have_it_too(tmp_path):
    model = plain()
    start = snapshot(model)
    ftk.l2sp(model, alpha=ALPHA, beta=0.0)
    away(model)
    model.save_weights(tmp_path / "own.weights.h5")
    other = plain()
    other.load_weights(tmp_path / "own.weights.h5")  # knows of no penalty
    assert not other.losses
    ftk.l2sp(other, alpha=1.0)
    other.load_weights(tmp_path / "own.weights.h5")
    assert other.ftk_l2sp.alpha == ALPHA
    expected = sum(
        0.5 * ALPHA * ((v - start[p]) ** 2).sum()
        for p, v in snapshot(other).items()
        if p[0] in "ab"
    )
    np.testing.assert_allclose(other.ftk_l2sp.value(), expected, rtol=1e-5)


def test_weights_loaded_during_a_fit_bring_the_starts(tmp_path):
    model = plain()
    ftk.l2sp(model, alpha=ALPHA, beta=0.0)
    model.save_weights(tmp_path / "start.weights.h5")
    path = tmp_path / "start.weights.h5"

    class Back(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.load_weights(path)

    away(model)
    ftk.l2sp(model, None)
    ftk.l2sp(model, alpha=ALPHA, beta=0.0)  # another start
    start = value(model.get_layer("a").kernel) - 0.5
    x, y = vectors()
    model.fit(x, y, epochs=2, batch_size=32, shuffle=False, verbose=0, callbacks=[Back()])
    assert model.ftk_l2sp.value() < 0.01
    np.testing.assert_allclose(
        value(model.get_layer("a").kernel.regularizer.start), start, rtol=1e-6
    )


def test_describe_says_so():
    model = plain()
    ftk.l2sp(model, alpha=0.1, beta=0.01)
    line = (
        "L2-SP: 4 variables are drawn to their start with alpha=0.1, 2 of the head to zero with "
        "beta=0.01"
    )
    assert line in ftk.describe(model).notes
    ftk.l2sp(model, None)
    assert line not in ftk.describe(model).notes


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"alpha": -1}, ValueError, "alpha is a number of 0 or more; given -1"),
        ({"beta": "much"}, ValueError, "beta is a number of 0 or more; given 'much'"),
        ({"alpha": True}, ValueError, "alpha is a number"),
        ({"alpha": float("nan")}, ValueError, "alpha is a number"),
        ({"selector": select.named("nope")}, ftk.SelectionError, "matches no variable"),
        ({"selector": "backbone"}, TypeError, "expected a selector"),
        ({"start": "resnet50"}, TypeError, "start is a keras.Model; given a str"),
    ],
)
def test_errors_change_nothing(given, error, message):
    model = plain()
    with pytest.raises(error, match=message):
        ftk.l2sp(model, **given)
    assert not model.losses
    assert not hasattr(model, "ftk_l2sp")


def test_statistics_have_no_start():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3))
    assert not [p for p in ftk.l2sp(model, alpha=np.float32(0.5)).anchored if "moving" in p]
    with pytest.raises(ftk.SelectionError, match="nothing in .* that can learn"):
        ftk.l2sp(model, select.named("moving_mean"))
