"""After a freeze or thaw the next fit moves what it should and nothing else."""

import keras
import numpy as np
import pytest
from conftest import (
    chain,
    classifier,
    images,
    learners,
    moved,
    residual,
    same,
    snapshot,
    value,
    vectors,
)

from finetune_keras import (
    SelectionError,
    build,
    describe,
    flags,
    freeze,
    graph,
    heads,
    select,
    thaw,
)

POLICIES = {
    "backbone": select.backbone,
    "first two": lambda: select.first(2),
    "blocks": lambda: select.blocks(slice(0, 1)),
    "biases": select.biases,
    "all but the last": lambda: ~select.last(1),
}


def compiled(make, fitted: bool):
    if make == "built":
        model = build(residual(), heads.Classification(3))
    else:
        model = make()
        model.compile(
            keras.optimizers.Adam(1e-3),
            "mse"
            if model.output_shape == (None, 3) and make is chain
            else "sparse_categorical_crossentropy",
        )
    if fitted:
        run(model)
    return model


def run(model, epochs=1):
    x, y = vectors() if model.inputs[0].shape[1:] == (6,) else images()
    model.fit(x / x.max(), y, epochs=epochs, batch_size=6, shuffle=False, verbose=0)


@pytest.mark.parametrize("make", [chain, classifier, "built"], ids=["seq", "nested", "built"])
@pytest.mark.parametrize(
    ("fitted", "policy"),
    [(False, "backbone"), (False, "biases"), *((True, policy) for policy in POLICIES)],
)
def test_frozen_to_the_bit_and_all_else_moves(make, fitted, policy):
    model = compiled(make, fitted)
    selector = POLICIES[policy]()
    chosen = {u.path for u in select.resolve(model, selector)}
    change = freeze(model, selector)
    assert set(change.frozen) == chosen & learners(model)
    before = snapshot(model)
    run(model)
    changed = moved(before, model)
    assert not changed & chosen
    assert changed & learners(model) == learners(model) - chosen


@pytest.mark.parametrize("make", [chain, classifier, "built"], ids=["seq", "nested", "built"])
def test_thaw_after_fit_moves_what_was_thawed(make):
    model = compiled(make, False)
    freeze(model, select.backbone())
    run(model)
    change = thaw(model, select.blocks(slice(-1, None)), learning_rate=1e-3)
    assert change.thawed
    before = snapshot(model)
    run(model)
    head = {u.path for u in select.resolve(model, select.head())} & learners(model)
    assert moved(before, model) & learners(model) == set(change.thawed) | head


@pytest.mark.parametrize("fitted", [False, True], ids=["fresh", "after fit"])
def test_frozen_normalisation_runs_in_inference(fitted):
    model = compiled("built", fitted)
    freeze(model, select.backbone())
    before = snapshot(model)
    x, _ = images()
    same(model(x, training=True), model(x, training=False), atol=1e-6)
    run(model)
    assert {p.split("/")[0] for p in moved(before, model)} == {"ftk_head_output"}


def test_normalisation_without_gamma_and_beta_is_frozen_too():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.BatchNormalization(center=False, scale=False, name="norm"),
            keras.layers.Dense(3, name="out"),
        ]
    )
    model.compile("sgd", "mse")
    freeze(model, select.named("norm"))
    before = snapshot(model)
    run(model)
    assert moved(before, model) == {"out/kernel", "out/bias"}
    change = thaw(model, select.named("norm"), norms=True)
    assert set(change.thawed) == {"norm/moving_mean", "norm/moving_variance"}
    before = snapshot(model)
    run(model)
    assert {"norm/moving_mean", "norm/moving_variance"} < moved(before, model)


def test_thaw_leaves_normalisation_frozen_and_lists_it():
    model = compiled("built", True)
    freeze(model, select.backbone())
    change = thaw(model, select.blocks(slice(-1, None)))
    assert set(change.norms) == {
        f"residual/block2_bn/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    assert "norms=True" in str(change)
    assert not any("_bn" in p for p in change.thawed)
    change = thaw(model, select.blocks(slice(-1, None)), norms=True)
    assert set(change.thawed) == {"residual/block2_bn/gamma", "residual/block2_bn/beta"}
    before = snapshot(model)
    run(model)
    assert set(change.norms) == set()
    assert "residual/block2_bn/moving_mean" in moved(before, model)


def test_only_means_this_and_nothing_else():
    model = compiled("built", True)
    freeze(model, select.named("block1"), only=True)
    thaw(model, select.head(), only=True)
    assert {v.path.split("/")[-2] for v in model.trainable_variables} == {"ftk_head_output"}
    freeze(model, select.blocks(slice(0, 2)), only=True)
    on = flags.on(graph.opened(model).units, model)
    left = {u.path for u in graph.opened(model).units if id(u.variable) in on}
    assert left == {
        p for p in learners(model) if p.startswith(("residual/block2", "ftk_head_output"))
    }


def test_the_head_keeps_its_optimizer_state_and_the_step_count_goes_on():
    model = compiled("built", False)
    freeze(model, select.backbone())
    run(model, epochs=3)
    old = model.optimizer
    slots = [value(v) for v in old.variables][2:]
    assert all(np.any(s) for s in slots)
    thaw(model, select.blocks(slice(-1, None)))
    assert model.optimizer is not old
    assert int(model.optimizer.iterations) == int(old.iterations) == 6
    kept = [value(v) for v in model.optimizer.variables]
    for slot in slots:
        assert any(slot.shape == k.shape and np.array_equal(slot, k) for k in kept)


def test_thaw_then_freeze_trains_like_the_untouched_model():
    """State carried there and back is the same state: losses agree with a model left alone."""
    histories = []
    for touched in (False, True):
        keras.utils.set_random_seed(1)
        model = chain()
        model.compile(keras.optimizers.Adam(1e-2), "mse")
        freeze(model, select.up_to("a"))
        run(model, epochs=2)
        if touched:
            thaw(model, select.up_to("a"), learning_rate=1e-2)
            freeze(model, select.up_to("a"))
        run(model, epochs=2)
        histories.append(snapshot(model))
    for path, w in histories[0].items():
        np.testing.assert_allclose(w, histories[1][path], rtol=1e-5, atol=1e-6)


def test_the_rate_falls_when_the_backbone_opens_and_stays_when_it_does_not():
    model = compiled("built", False)
    freeze(model, select.backbone())
    assert thaw(model, select.head()).learning_rate == pytest.approx((1e-5, 1e-5))
    model = build(residual(), heads.Classification(3), freeze=select.everything() & ~select.head())
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)
    change = thaw(model, select.blocks(slice(-1, None)))
    assert change.learning_rate == pytest.approx((1e-3, 1e-5))
    assert thaw(model, select.backbone(), learning_rate=3e-4).learning_rate[1] == pytest.approx(
        3e-4
    )
    model = build(residual(), heads.Classification(3, hidden=[4]), freeze=select.backbone())
    freeze(model, select.named("hidden"))
    assert thaw(model, select.head()).learning_rate == pytest.approx((1e-3, 1e-3))
    model.optimizer.learning_rate = 1e-6  # lower already: kept
    assert thaw(model, select.backbone(), norms=True).learning_rate[1] == pytest.approx(1e-6)


def test_what_was_compiled_is_kept():
    several = 1 if keras.backend.backend() == "torch" else 2  # Keras has 1 only there

    def loss(y, p):
        return keras.ops.mean((y - p) ** 2, axis=-1)

    model = chain()
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        loss=loss,
        metrics=[keras.metrics.MeanAbsoluteError(name="mae")],
        jit_compile=False,
        steps_per_execution=several,
    )
    run(model)
    freeze(model, select.up_to("a"))
    assert model.loss is loss
    assert model.optimizer.nesterov
    assert model.steps_per_execution == several
    history = model.fit(*vectors(), verbose=0).history
    assert set(history) == {"loss", "mae"}


def test_flags_without_compile_are_only_flags():
    model = chain()
    change = freeze(model, select.up_to("a"))
    assert change.learning_rate is None
    assert not model.compiled
    model.compile("sgd", "mse")
    before = snapshot(model)
    run(model)
    assert moved(before, model) == {"b/kernel", "b/bias", "c/kernel", "c/bias"}


def test_layers_inside_layers_freeze():
    x = keras.Input((5, 8))
    y = keras.layers.MultiHeadAttention(2, 4, name="mha")(x, x)
    model = keras.Model(x, keras.layers.Dense(1, name="out")(y))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    data = (
        rng.normal(size=(8, 5, 8)).astype("float32"),
        rng.normal(size=(8, 5, 1)).astype("float32"),
    )
    freeze(model, select.named("mha/(query|key)"))
    before = snapshot(model)
    model.fit(*data, verbose=0)
    assert moved(before, model) == {
        p for p in learners(model) if not p.startswith(("mha/query", "mha/key"))
    }


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: freeze(m, select.named("typo")), SelectionError, "matches no variable"),
        (lambda m: thaw(m, select.up_to("conv_9")), SelectionError, "no layer 'conv_9'"),
        (lambda m: thaw(m, select.norms()), SelectionError, "norms=True"),
        (lambda m: freeze(m, "backbone"), TypeError, "expected a selector"),
        (lambda m: thaw(m, select.backbone(), learning_rate="fast"), ValueError, "given 'fast'"),
    ],
)
def test_a_failed_call_leaves_everything_as_it_was(call, error, message):
    model = compiled("built", False)
    freeze(model, select.backbone())
    run(model)
    optimizer, state = model.optimizer, flags.on(graph.opened(model).units, model)
    with pytest.raises(error, match=message):
        call(model)
    assert model.optimizer is optimizer
    assert flags.on(graph.opened(model).units, model) == state
    before = snapshot(model)
    run(model)
    assert {p.split("/")[0] for p in moved(before, model)} == {"ftk_head_output"}


def test_a_failure_while_compiling_leaves_everything_as_it_was():
    class Odd(keras.optimizers.SGD):
        def get_config(self):
            raise RuntimeError("no config")

    model = chain()
    model.compile(Odd(0.1), "mse")
    run(model)
    with pytest.raises(RuntimeError, match="no config"):
        freeze(model, select.up_to("a"))
    assert len(model.trainable_variables) == 6
    run(model)


def test_a_failure_inside_compile_is_rolled_back(monkeypatch):
    model = compiled("built", True)
    optimizer, trained = model.optimizer, len(model.trainable_variables)
    real = keras.Model.compile

    def breaks(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise RuntimeError("late")

    monkeypatch.setattr(keras.Model, "compile", breaks)
    with pytest.raises(RuntimeError, match="late"):
        freeze(model, select.backbone())
    monkeypatch.undo()
    assert model.optimizer is optimizer
    assert len(model.trainable_variables) == trained
    before = snapshot(model)
    run(model)
    assert moved(before, model) >= learners(model)


def test_a_model_with_a_compile_of_its_own():
    class Own(keras.Model):
        def compile(self, optimizer, alpha, loss=None):
            super().compile(optimizer, loss)
            self.alpha = alpha

    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, name="a")(inputs)
    model = Own(inputs, keras.layers.Dense(3, name="out")(x))
    model.compile("adam", 0.5, "mse")
    run(model)
    freeze(model, select.up_to("a"))
    before = snapshot(model)
    run(model)
    assert moved(before, model) == {"out/kernel", "out/bias"}
    assert model.alpha == 0.5


def test_a_wrapped_kernel_is_no_normalisation():
    inputs = keras.Input((6,))
    wrapped = keras.layers.SpectralNormalization(keras.layers.Dense(3, name="d"), name="sn")
    model = keras.Model(inputs, wrapped(inputs))
    freeze(model, select.everything())
    assert thaw(model, select.everything()).norms == ()


def test_what_is_not_a_model_is_refused_with_the_fix():
    from finetune_keras import backbone

    base = backbone(residual())
    with pytest.raises(TypeError, match=r"given a Backbone; pass its .model"):
        freeze(base, select.everything())
    with pytest.raises(TypeError, match=r"given a str"):
        describe("model.keras")
