"""A rate for each depth: the steps are the formula's, and nothing else of the optimizer changes."""

import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, moved, snapshot, value, vectors

import finetune_keras as ftk
from finetune_keras import optimizers, select
from finetune_keras._errors import SelectionError

RATES = [(select.named("^a/"), 0.25), (select.named("^b/"), 0.5), (select.head(), 1.0)]
M = {"a": 0.25, "b": 0.5, "c": 1.0}


def fixed_gradients(model, steps=4, seed=0):
    """Gradients for each step and variable of ``model``."""
    rng = np.random.default_rng(seed)
    return [
        [rng.normal(size=v.shape).astype("float32") for v in model.trainable_variables]
        for _ in range(steps)
    ]


def stepped(model, optimizer, gradients):
    """The weights after ``optimizer`` was given ``gradients``, on any backend."""
    variables = model.trainable_variables
    optimizer.build(variables)
    for grads in gradients:
        grads = [keras.ops.convert_to_tensor(g) for g in grads]
        if keras.backend.backend() == "torch":
            import torch

            with torch.no_grad():
                optimizer.apply(grads, variables)
        else:
            optimizer.apply(grads, variables)
    return {v.path.split("/")[-2] + "/" + v.name: value(v) for v in variables}


def sgd(w, gradients, rate, momentum=0.9):
    velocity = np.zeros_like(w)
    for g in gradients:
        velocity = momentum * velocity - rate * g
        w = w + velocity
    return w


def adam(w, gradients, rate, decay=0.0, b1=0.9, b2=0.999, eps=1e-7):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        w = w - rate * decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        alpha = rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        w = w - alpha * m / (np.sqrt(v) + eps)
    return w


@pytest.mark.parametrize(
    ("optimizer", "formula"),
    [
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9), lambda w, g, m, _: sgd(w, g, 0.1 * m)),
        (lambda: keras.optimizers.Adam(0.01), lambda w, g, m, _: adam(w, g, 0.01 * m)),
        (
            lambda: keras.optimizers.AdamW(0.01, weight_decay=0.3),
            lambda w, g, m, bias: adam(w, g, 0.01 * m, 0.0 if bias else 0.3),
        ),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_steps_are_the_formula_at_a_part_of_the_rate(optimizer, formula):
    model = chain()
    gradients = fixed_gradients(model)
    starts = [value(v) for v in model.trainable_variables]
    found = stepped(model, ftk.layerwise(optimizer(), model, rates=RATES), gradients)
    for i, (name, w) in enumerate(found.items()):
        expected = formula(starts[i], [g[i] for g in gradients], M[name[0]], name.endswith("bias"))
        np.testing.assert_allclose(w, expected, rtol=2e-6, atol=1e-6, err_msg=name)


LINEAR = ["SGD", "Adam", "AdamW", "Nadam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Lion"]


@pytest.mark.parametrize("name", LINEAR)
def test_equals_the_optimizer_at_a_part_of_the_rate(name):
    cls = getattr(keras.optimizers, name)
    model, plain = twin(), twin()
    gradients = fixed_gradients(model)
    scaled = ftk.layerwise(cls(0.01), model, rates=[(select.everything(), 0.25)])
    other = cls(0.0025)
    other.exclude_from_weight_decay(
        var_list=[v for v in plain.trainable_variables if v.name == "bias"]
    )
    found, expected = stepped(model, scaled, gradients), stepped(plain, other, gradients)
    for key, w in found.items():
        np.testing.assert_allclose(w, expected[key], rtol=3e-5, atol=1e-6, err_msg=key)


def trained(model, optimizer, **kwargs):
    model.compile(optimizer, "mse", **kwargs)
    model.fit(*vectors(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    return snapshot(model)


def twin():
    """The same network with the same weights."""
    keras.utils.set_random_seed(7)
    return chain()


@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 0.1},
        {"global_clipnorm": 0.1},
        {"clipvalue": 0.01},
        {"gradient_accumulation_steps": 2},
        {"loss_scale_factor": 64.0},
        {"weight_decay": 0.1},
    ],
    ids=lambda o: next(iter(o)),
)
def test_fit_equals_the_optimizer_at_a_part_of_the_rate(options):
    model = twin()
    everything = [(select.everything(), 0.5)]
    found = trained(
        model,
        ftk.layerwise(
            keras.optimizers.Adam(0.02, **options),
            model,
            rates=everything,
            exclude_from_weight_decay=select.nothing(),
        ),
    )
    expected = trained(twin(), keras.optimizers.Adam(0.01, **options))
    for path, w in found.items():
        np.testing.assert_allclose(w, expected[path], rtol=1e-4, atol=2e-6, err_msg=path)


def test_multipliers_fall_from_the_head_by_block():
    model = classifier()
    optimizer = ftk.layerwise("adam", model, decay=0.5)
    found = optimizer.multipliers
    n = len(ftk.describe(model).rows) - 1
    assert found["classes/kernel"] == found["classes/bias"] == 1.0
    by_block = [
        {found[u.path] for u in select.resolve(model, select.blocks(i)) if u.learnable}
        for i in range(n)
    ]
    assert by_block == [{0.5 ** (n - i)} for i in range(n)]


def test_what_is_none_or_zero_stays_to_the_bit():
    model = twin()
    rates = [(select.named("^a/"), None), (select.named("^b/"), 0), (select.everything(), 1)]
    optimizer = ftk.layerwise(keras.optimizers.AdamW(0.1, weight_decay=0.5), model, rates=rates)
    before = snapshot(model)
    trained(model, optimizer)
    assert moved(before, model) == {"c/kernel", "c/bias"}


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_what_is_held_stays_whatever_its_gradient_is(wrong):
    model = chain()
    gradients = fixed_gradients(model, 2)
    for grads in gradients:
        for g in grads[:2]:  # of layer a
            g[...] = wrong
    before = snapshot(model)
    rates = [(select.named("^a/"), None), (select.everything(), 1)]
    optimizer = ftk.layerwise(keras.optimizers.Adam(0.1), model, rates=rates)
    stepped(model, optimizer, gradients)
    assert moved(before, model) == {"b/kernel", "b/bias", "c/kernel", "c/bias"}


def test_norms_and_biases_are_spared_from_weight_decay_unless_asked_for():
    for selector, still in ((None, True), (select.nothing(), False)):
        model = classifier()
        optimizer = ftk.layerwise(
            keras.optimizers.SGD(0.1, weight_decay=0.5),
            model,
            decay=1.0,
            exclude_from_weight_decay=selector,
        )
        before = snapshot(model)
        stepped(model, optimizer, [[np.zeros(v.shape, "float32") for v in model.trainable_weights]])
        kernels = {p for p in before if p.endswith("kernel")}
        gammas = {p for p in before if p.endswith("gamma")}
        assert gammas
        changed = moved(before, model)
        assert kernels <= changed
        assert (not gammas & changed) is still


def test_exclusions_of_the_users_own_are_kept():
    model = chain()
    inner = keras.optimizers.SGD(0.1, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_list=[model.get_layer("b").kernel])
    before = snapshot(model)
    optimizer = ftk.layerwise(inner, model, decay=1.0)
    stepped(model, optimizer, [[np.zeros(v.shape, "float32") for v in model.trainable_weights]])
    assert moved(before, model) == {"a/kernel", "c/kernel"}


def test_nothing_decays_where_only_biases_learn():
    model = chain()
    ftk.freeze(model, ~select.biases())
    model.compile(ftk.layerwise(keras.optimizers.AdamW(0.01), model), "mse")
    model.fit(*vectors(), verbose=0)


def test_constraints_hold():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(3, kernel_constraint="unit_norm", name="d")(inputs)
    model = keras.Model(inputs, x)
    model.compile(
        ftk.layerwise(keras.optimizers.SGD(0.5), model, rates=[(select.everything(), 0.5)]), "mse"
    )
    model.fit(*vectors(), verbose=0)
    norms = np.linalg.norm(value(model.get_layer("d").kernel), axis=0)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-5)


def test_the_rate_is_one_number_that_callbacks_set():
    model = twin()
    model.compile(ftk.layerwise(keras.optimizers.Adam(0.1), model, rates=RATES), "mse")
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch < 1 else 0.0)
    model.fit(*vectors(), epochs=1, verbose=0, callbacks=[schedule])
    before = snapshot(model)
    model.fit(*vectors(), initial_epoch=1, epochs=2, verbose=0, callbacks=[schedule])
    assert not moved(before, model)
    assert float(model.optimizer.learning_rate) == 0.0


def test_a_schedule_counts_the_steps():
    model = twin()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.0])
    model.compile(ftk.layerwise(keras.optimizers.SGD(schedule), model, rates=RATES), "mse")
    model.fit(*vectors(), batch_size=8, epochs=1, verbose=0)
    assert int(value(model.optimizer.iterations)) == 4
    before = snapshot(model)
    model.fit(*vectors(), batch_size=8, epochs=1, verbose=0)
    assert not moved(before, model)


def test_loss_scaling_is_outermost_and_skips_what_overflows():
    model = twin()
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=2.0**10)
    optimizer = ftk.layerwise(scaled, model, rates=[(select.everything(), 0.5)])
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    found = trained(model, optimizer)
    expected = trained(twin(), keras.optimizers.SGD(0.005))
    for path, w in found.items():
        np.testing.assert_allclose(w, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)
    x, y = vectors()
    x[:] = np.inf
    model.fit(x, y, verbose=0)
    assert not moved(found, model)


def test_mixed_precision_trains():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(ftk.layerwise("adamw", model), "sparse_categorical_crossentropy")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = snapshot(model)
    model.fit(*images(), epochs=2, verbose=0)
    assert {p for p in before if p.endswith("kernel")} <= moved(before, model)


def test_freeze_and_thaw_keep_state_and_multipliers():
    model = twin()
    optimizer = ftk.layerwise(keras.optimizers.SGD(0.1, momentum=0.9), model, rates=RATES)
    ftk.freeze(model, select.named("^a/"))
    model.compile(optimizer, "mse")
    model.fit(*vectors(), batch_size=8, verbose=0, shuffle=False)
    change = ftk.thaw(model, select.named("^a/"), learning_rate=0.1)
    assert not change.restarted
    kept = optimizers.layerwise_of(model.optimizer)
    assert kept.multipliers == optimizer.multipliers
    assert int(value(model.optimizer.iterations)) == 4
    a, b = model.get_layer("a").kernel, model.get_layer("b").kernel
    assert (kept.multiplier(a), kept.multiplier(b)) == (0.25, 0.5)
    # The momentum of "b" goes on without a gradient; "a" has none yet.
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    before = snapshot(model)
    model.optimizer.apply(zeros, model.trainable_variables)
    assert moved(before, model) == {"b/kernel", "b/bias", "c/kernel", "c/bias"}


def test_frozen_at_first_and_thawed_after_a_file(tmp_path):
    model = twin()
    ftk.freeze(model, select.named("^a/"))
    model.compile(ftk.layerwise(keras.optimizers.Adam(0.01), model, rates=RATES), "mse")
    model.fit(*vectors(), batch_size=8, verbose=0, shuffle=False)
    model.save(tmp_path / "m.keras")
    loaded = ftk.load(tmp_path / "m.keras")
    assert optimizers.layerwise_of(loaded.optimizer).multipliers == {
        f"{n}/{v}": m for n, m in M.items() for v in ("kernel", "bias")
    }
    ftk.thaw(loaded, select.named("^a/"), learning_rate=0.01)
    kept = optimizers.layerwise_of(loaded.optimizer)
    assert kept.multiplier(loaded.get_layer("a").kernel) == 0.25


def test_training_goes_on_from_a_file(tmp_path):
    model = twin()
    model.compile(ftk.layerwise(keras.optimizers.AdamW(0.01), model, rates=RATES), "mse")
    model.fit(*vectors(), batch_size=8, verbose=0, shuffle=False)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    plain = keras.models.load_model(tmp_path / "m.keras", compile=False)
    assert not moved(snapshot(model), plain)
    for one in (model, loaded):
        one.fit(*vectors(), batch_size=8, verbose=0, shuffle=False)
    assert not moved(snapshot(model), loaded)


def test_cached_training_equals_uncached():
    found = []
    for fit in (keras.Model.fit, ftk.fit):
        model = twin()
        ftk.freeze(model, select.named("^a/"))
        model.compile(ftk.layerwise(keras.optimizers.Adam(0.01), model, rates=RATES), "mse")
        fit(model, *vectors(), batch_size=8, epochs=2, verbose=0, shuffle=False)
        found.append(snapshot(model))
    for path in found[0]:
        np.testing.assert_allclose(found[0][path], found[1][path], rtol=1e-5, atol=1e-6)


def test_compile_takes_layer_decay_and_keeps_the_state():
    model = twin()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.fit(*vectors(), batch_size=8, verbose=0, shuffle=False)
    ftk.compile(model, layer_decay=0.5)
    assert int(value(model.optimizer.iterations)) == 4
    assert [r.rate for r in ftk.describe(model).rows] == pytest.approx([0.025, 0.05, 0.1])
    assert "scaled by layer" in str(ftk.describe(model))
    before = snapshot(model)
    model.optimizer.apply(
        [keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables
    )
    assert len(moved(before, model)) == 6  # the momenta are still there
    ftk.compile(model, layer_decay=False)
    assert type(model.optimizer) is type(keras.optimizers.SGD())


def test_a_name_has_a_tenth_of_its_default_rate_over_an_open_backbone():
    model = classifier()
    assert float(ftk.layerwise("adam", model).learning_rate) == pytest.approx(1e-4)
    ftk.freeze(model, select.backbone())
    assert float(ftk.layerwise("adam", model).learning_rate) == pytest.approx(1e-3)
    assert float(ftk.layerwise("adam", model, learning_rate=0.5).learning_rate) == 0.5


def test_another_head_learns_at_the_whole_rate():
    model = ftk.build(classifier(), ftk.heads.Classification(3), layer_decay=0.5)
    other = ftk.replace_head(model, ftk.heads.Classification(5))
    found = optimizers.layerwise_of(other.optimizer).multipliers
    assert found["ftk_head_output/kernel"] == 1.0
    assert set(found.values()) == set(optimizers.layerwise_of(model.optimizer).multipliers.values())
    other.fit(*images(), verbose=0)


def test_the_given_optimizer_is_not_touched():
    model = chain()
    inner = keras.optimizers.Adam(0.01)
    model.compile(ftk.layerwise(inner, model), "mse")
    model.fit(*vectors(), verbose=0)
    assert not inner.built


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"decay": 0}, ValueError, "decay is a number above 0 and at most 1; given 0"),
        ({"decay": 1.5}, ValueError, "given 1.5"),
        ({"decay": True}, ValueError, "given True"),
        ({"decay": 0.5, "rates": RATES}, ValueError, "not both"),
        ({"rates": RATES[:2]}, SelectionError, r"2 variables match no selector .* 'c/kernel'"),
        ({"rates": [(select.named("zz"), 1)]}, SelectionError, "zz"),
        ({"rates": [(select.everything(), -1)]}, ValueError, "given -1 for select.everything"),
        ({"rates": [(select.everything(), "x")]}, ValueError, "given 'x'"),
        ({"rates": {"a": 1}}, TypeError, "rates is a list of pairs"),
        ({"rates": []}, TypeError, "rates is a list of pairs"),
        ({"rates": [select.head()]}, TypeError, "pairs of a selector and a multiplier"),
        ({"rates": [("a", 1.0)]}, TypeError, "expected a selector"),
        ({"optimizer": "ftrl"}, ValueError, "Ftrl is no move"),
        ({"optimizer": "adm"}, ValueError, "adam"),
        ({"optimizer": 3}, TypeError, "given 3"),
        ({"optimizer": keras.optimizers.Adam(use_ema=True)}, ValueError, "use_ema=True"),
        ({"model": 3}, TypeError, "expected a keras.Model; given a int"),
    ],
)
def test_bad_input_names_the_fix(kwargs, error, message):
    with pytest.raises(error, match=message):
        ftk.layerwise(**{"optimizer": "adam", "model": chain(), **kwargs})


def test_an_optimizer_of_another_model_is_refused():
    optimizer = ftk.layerwise("adam", chain())
    with pytest.raises(ValueError, match="not of the model that this optimizer was made for"):
        optimizer.build(chain().trainable_variables)
