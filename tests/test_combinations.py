"""Rates by depth, averages, penalties, thaws and files, several of them at once."""

import gc
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, moved, residual, snapshot, value, vectors

import finetune_keras as ftk
from finetune_keras import heads, optimizers, select
from finetune_keras.callbacks import EMA, GradualThaw

RUN = {"batch_size": 8, "shuffle": False, "verbose": 0}


def dense(optimizer="adam", *, policy="float32", decay=0.5, momentum=0.5):
    """Three dense layers, the lower two of them frozen."""
    keras.utils.set_random_seed(7)
    keras.config.set_dtype_policy(policy)
    try:
        model = chain()
    finally:
        keras.config.set_dtype_policy("float32")
    ftk.freeze(model, select.up_to("b"))
    settings = {"layer_decay": decay, "ema_momentum": momentum}
    return ftk.compile(model, optimizer=optimizer, learning_rate=0.01, loss="mse", **settings)


def built(policy):
    """The same under a head of ours, whose record keeps who joined when."""
    keras.utils.set_random_seed(7)
    keras.config.set_dtype_policy(policy)
    try:
        x = inputs = keras.Input((6,))
        for name in "ab":
            x = keras.layers.Dense(8, activation="tanh", name=name)(x)
        base = keras.Model(inputs, x, name="base")
        model = ftk.build(base, heads.Regression(3), freeze=select.backbone(), optimizer="adamw")
    finally:
        keras.config.set_dtype_policy("float32")
    return ftk.compile(model, learning_rate=0.01, layer_decay=0.5, ema_momentum=0.5)


def state(model):
    """Weights, and all that the optimizer remembers."""
    own = {f"{i} {v.name}": value(v) for i, v in enumerate(model.optimizer.variables)}
    return {**snapshot(model), **own}


def equal(one, other):
    mine, its = state(one), state(other)
    assert len(mine) == len(its)
    for (name, a), b in zip(mine.items(), its.values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def rates(model):
    """The part of the rate at which each variable that learns moves, by its name."""
    found = optimizers.layerwise_of(model.optimizer)
    paths = {id(u.variable): u.path for u in ftk.graph.opened(model).units}
    return {paths[id(v)]: found.multiplier(v) for v in model.trainable_variables}


# Thaws, averages, loss scaling and files


@pytest.mark.parametrize("fit", [keras.Model.fit, ftk.fit], ids=["plain", "cached"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_way_through_thaws_a_file_goes_on_as_if_nothing_had_been(tmp_path, policy, fit):
    model, x_y = built(policy), vectors()
    ftk.l2sp(model, alpha=0.1, beta=0.01)
    run = {**RUN, "epochs": 4}
    fit(model, *x_y, **RUN, epochs=2, callbacks=[EMA(), GradualThaw(learning_rate=1e-3)])
    model.save(tmp_path / "half.keras")
    loaded = ftk.load(tmp_path / "half.keras")
    equal(model, loaded)
    for one in (model, loaded):
        thawing = [EMA(), GradualThaw(learning_rate=1e-3)]
        fit(one, *x_y, **run, initial_epoch=2, callbacks=thawing)
        assert len(one.trainable_variables) == 6
    equal(model, loaded)


def test_a_step_that_overflows_moves_nothing_and_halves_the_scale():
    model, (x, y) = dense("adamw", policy="mixed_float16"), vectors()
    model.fit(x, y, **RUN)
    ftk.thaw(model, select.named("^b/"), learning_rate=1e-3)  # with corrected first steps
    model.fit(x, y, **RUN)
    before = state(model)
    model.train_on_batch(x, y, sample_weight=np.full(len(x), np.inf, "float32"))
    after = state(model)
    changed = {n.split(" ")[-1] for n, v in before.items() if not np.array_equal(v, after[n])}
    assert changed == {"dynamic_scale", "step_counter"}
    (name,) = [n for n in before if n.endswith("dynamic_scale")]
    assert after[name] == before[name] / 2


@pytest.mark.parametrize("reload", [keras.models.load_model, None], ids=["load_model", "clone"])
def test_what_keras_alone_made_again_thaws_with_its_rates(tmp_path, reload):
    model = dense()
    model.fit(*vectors(), **RUN)
    model.save(tmp_path / "m.keras")
    again = keras.models.clone_model(model) if reload is None else reload(tmp_path / "m.keras")
    ftk.thaw(again, select.named("^b/"), learning_rate=1e-3)
    assert rates(again) == {"b/kernel": 0.5, "b/bias": 0.5, "c/kernel": 1.0, "c/bias": 1.0}
    before = snapshot(again)
    again.fit(*vectors(), epochs=2, callbacks=[GradualThaw(at=[0, 1])], **RUN)
    assert moved(before, again) == set(before)


@pytest.mark.parametrize("fit", [keras.Model.fit, ftk.fit], ids=["plain", "cached"])
def test_an_average_goes_on_where_slots_start_again(fit):
    """Adafactor's slots cannot be matched; those around it can."""
    model = dense("adafactor")
    fit(model, *vectors(), epochs=2, callbacks=[EMA(), GradualThaw(at=[1])], **RUN)
    expected = dense("adafactor")
    average = optimizers.averaging_of(expected.optimizer)
    expected.fit(*vectors(), callbacks=[Goes()], **RUN)
    ftk.thaw(expected, select.named("^b/"))
    counted = optimizers.averaging_of(expected.optimizer)
    assert value(counted._averaged) == value(average._averaged) == 4
    expected.fit(*vectors(), **RUN)
    for path, w in snapshot(model).items():
        np.testing.assert_allclose(w, snapshot(expected)[path], rtol=1e-5, atol=1e-6, err_msg=path)


class Goes(keras.callbacks.Callback):
    """Leaves the weights in the model at the end of ``fit``."""

    def on_epoch_end(self, epoch, logs=None):
        optimizers.averaging_of(self.model.optimizer).goes_on()


# Averages after training


@pytest.mark.parametrize("way", ["l2sp", "thaw"])
def test_checkpoints_with_state_of_ours_are_ingredients(tmp_path, way):
    model, callbacks = dense(momentum=False), []
    model.compile(model.optimizer, "mse")
    before = ftk.snapshot(model)
    if way == "l2sp":
        ftk.l2sp(model, select.named("^[ab]/"))
    else:
        callbacks.append(GradualThaw())
    path = tmp_path / "last.weights.h5"
    callbacks.append(keras.callbacks.ModelCheckpoint(path, save_weights_only=True))
    model.fit(*vectors(), epochs=2, callbacks=callbacks, **RUN)
    weights = snapshot(model)
    before.restore(model)
    made = ftk.soup(model, [path], vectors(), verbose=0)
    assert made.adopted
    assert not moved(weights, model)


# Penalties


def test_the_order_of_reinit_and_l2sp_does_not_matter():
    ends = []
    for first in ("reinit", "l2sp"):
        keras.utils.set_random_seed(7)
        model = chain()
        model.compile("sgd", "mse")
        if first == "l2sp":
            ftk.l2sp(model, select.named("^[ab]/"), alpha=0.5)
        ftk.reinit(model, select.named("^b/"), seed=3)
        if first == "reinit":
            ftk.l2sp(model, select.named("^[ab]/"), alpha=0.5)
        model.fit(*vectors(), epochs=2, **RUN)
        ends.append(model)
    equal(*ends)


def test_a_new_head_keeps_the_penalty_of_what_it_stands_on(tmp_path):
    model = ftk.build(residual(), heads.Classification(3))
    ftk.l2sp(model, alpha=0.5, beta=0.25)
    other = ftk.replace_head(model, heads.Classification(2))
    found = other.ftk_l2sp
    assert set(found.anchored) == set(model.ftk_l2sp.anchored)
    assert found.shrunk == ("ftk_head_output/kernel", "ftk_head_output/bias")
    other.fit(images()[0], images()[1] % 2, **RUN)
    other.save(tmp_path / "m.keras")
    assert ftk.load(tmp_path / "m.keras").ftk_l2sp.value() == pytest.approx(found.value())
    assert found.value() > 0


# Stochastic normalisation


def test_stochastic_normalisations_have_the_rates_of_those_they_replace():
    x = inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(8, name="a")(x))
    model = keras.Model(inputs, keras.layers.Dense(3, name="c")(keras.layers.ReLU()(x)))
    table = [(select.norms(), 0.125), (select.everything(), 0.5)]
    model.compile(ftk.ema(ftk.layerwise("adamw", model, rates=table)), "mse")
    model.fit(*vectors(), **RUN)
    stochastic = ftk.stochastic_norm(model, 0.5)
    for made in (stochastic, ftk.stochastic_norm(stochastic, None)):
        assert rates(made) == rates(model)
        before = snapshot(made)
        made.fit(*vectors(), **RUN)
        assert learning(made) <= moved(before, made)
        found = optimizers.layerwise_of(made.optimizer)
        decayed = [v.name for v in made.trainable_variables if found.rule(v).decays]
        assert decayed == ["kernel", "kernel"]


def learning(model):
    on = {id(v) for v in model.trainable_variables}
    return {u.path for u in ftk.graph.opened(model).units if id(u.variable) in on}


def test_models_with_stochastic_normalisations_are_cloned():
    model = ftk.stochastic_norm(classifier(), 0.3, seed=5)
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    layer = again.get_layer("inner").get_layer("stem_bn")
    assert (type(layer), layer.p, layer.seed) == (ftk.StochasticNormalization, 0.3, 5)
    x = images()[0]
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


# Precision


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_averages_of_half_precision_weights_are_kept_in_float32(policy):
    """In bfloat16 a hundredth of the way to the weights is less than a rounding."""
    keras.config.set_dtype_policy(policy)
    try:
        model = chain()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(ftk.ema(keras.optimizers.SGD(0.1), momentum=0.99), "mse")
    expected = None
    for t in range(60):
        model.train_on_batch(*vectors())
        weights = value(model.get_layer("b").kernel).astype("float32")
        m = min(0.99, t / (9 + t))
        expected = weights if expected is None else m * expected + (1 - m) * weights
    model.optimizer.finalize_variable_values(model.trainable_variables)
    found = value(model.get_layer("b").kernel)
    assert found.dtype == policy
    np.testing.assert_allclose(found.astype("float32"), expected, rtol=2**-7, atol=1e-3)


# Several replicas


MIRRORED = """
import sys
import keras, numpy as np, tensorflow as tf
sys.path.insert(0, sys.argv[1])
from conftest import chain, snapshot, vectors
import finetune_keras as ftk
from finetune_keras import select
from finetune_keras.callbacks import EMA, GradualThaw

two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
x, y = vectors()
run = {"batch_size": 8, "shuffle": False, "verbose": 0, "validation_data": (x, y)}

def made(scope):
    keras.utils.set_random_seed(7)
    with scope:
        model = chain()
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01)), "mse")
    ftk.freeze(model, select.up_to("b"))
    return ftk.compile(model, layer_decay=0.5, ema_momentum=0.5)

def by_hand(model):
    model.fit(x, y, **run, epochs=2)
    ftk.thaw(model, select.named("^b/"), learning_rate=1e-3)
    model.fit(x, y, **run)
    ftk.freeze(model, select.named("^b/"))
    model.fit(x, y, **run)
    ftk.thaw(model, select.named("^[ab]/"), learning_rate=1e-3)
    return model.fit(x, y, **run)

def gradually(model):
    ftk.l2sp(model, select.named("^[ab]/"), alpha=0.1)
    return model.fit(x, y, **run, epochs=4, callbacks=[EMA(), GradualThaw(learning_rate=1e-3)])

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
for trained in (by_hand, gradually):
    ends = []
    for each in (tf.distribute.OneDeviceStrategy("CPU:0"), strategy):
        model = made(each.scope())
        history = trained(model)
        assert len(model.trainable_variables) == 6
        ends.append((snapshot(model), history.history["val_loss"]))
    for path, w in ends[0][0].items():
        np.testing.assert_allclose(w, ends[1][0][path], rtol=1e-4, atol=1e-5, err_msg=path)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-4)

with strategy.scope():
    stack = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *stack])
    model.compile("adam", "mse")
model.fit(x, y, **run)
stochastic = ftk.stochastic_norm(model, 0.5)
stochastic.fit(x, y, **run)
print("equal")
"""


def test_thaws_in_two_replicas_equal_those_in_one():
    if keras.backend.backend() != "tensorflow":
        return  # MirroredStrategy is TensorFlow's
    command = [sys.executable, "-c", MIRRORED, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


# What fails changes nothing, and says in one line what to do


def frozen():
    model = chain()
    ftk.freeze(model, select.up_to("b"))
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(*vectors(), **RUN)
    return model


def of_a_model_that_is_gone():
    found = ftk.l2sp(chain(), select.everything())
    gc.collect()
    return found


def big():
    return np.random.default_rng(0).normal(size=(40, 30))


CALLS = {
    "thaw rate of a step": (
        lambda m: ftk.thaw(m, select.everything(), learning_rate=lambda step: 1e-3),
        "learning_rate as a function takes no arguments and gives a positive number",
    ),
    "thaw rate a layer": (
        lambda m: ftk.thaw(m, select.everything(), learning_rate=keras.layers.Dense(1)),
        "learning_rate as a function",
    ),
    "thaw rate gives a word": (
        lambda m: ftk.thaw(m, select.everything(), learning_rate=lambda: "fast"),
        "gives a positive number; given",
    ),
    "compile rate": (
        lambda m: ftk.compile(m, learning_rate=lambda epoch: 1.0),
        "learning_rate as a function",
    ),
    "rate an array": (lambda m: ftk.compile(m, learning_rate=big()), "given a ndarray of shape"),
    "loss scale by name": (
        lambda m: ftk.layerwise("LossScaleOptimizer", m),
        "unknown optimizer 'LossScaleOptimizer'",
    ),
    "order": (lambda m: ftk.layerwise(m, "adam"), "the optimizer comes first"),
    "schedule": (
        lambda m: ftk.schedules.OneCycle(1e-3, epochs=3, steps_per_epoch=big()),
        "steps_per_epoch is a whole number .* given a ndarray of shape",
    ),
    "thaw by": (lambda m: GradualThaw(by=np.array(["block", "stage"])), "by is 'block' or"),
    "thaw monitor": (
        lambda m: GradualThaw(patience=1, monitor=["val_loss"]),
        "monitor is the name of a metric",
    ),
    "thaw least change": (
        lambda m: GradualThaw(patience=1, min_delta=float("nan")),
        "min_delta is a number of 0 or more; given nan",
    ),
    "thaw epochs": (lambda m: GradualThaw(at=b"x"), "at lists epochs"),
    "thaw before fit": (lambda m: GradualThaw().stage, "pass it to fit"),
    "stochastic seed": (
        lambda m: ftk.stochastic_norm(keras.Sequential([keras.Input((3,)), BN()]), seed=1.5),
        "seed is a whole number from 0 to 2.*32 - 1, or None; given 1.5",
    ),
    "stochastic layer": (lambda m: ftk.StochasticNormalization(seed="x"), "given 'x'"),
    "four in a tuple": (
        lambda m: ftk.wise_ft(m, chain(), (*vectors(), None, None)),
        "the validation data are .* given 4",
    ),
    "the wrong way round": (
        lambda m: ftk.soup(m, [chain()], vectors()[::-1]),
        "the validation data",
    ),
    "batches": (
        lambda m: ftk.wise_ft(m, chain(), vectors(), batch_size=float("inf")),
        "batch_size",
    ),
    "penalty of a model that is gone": (
        lambda m: of_a_model_that_is_gone().value(),
        "the model .* is gone",
    ),
    "snapshot": (lambda m: ftk.Snapshot("mine", [1]), "weights is a dict of arrays by path"),
}
BN = keras.layers.BatchNormalization


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_odd_input_changes_nothing_and_is_told_in_one_line(call, message):
    model = frozen()
    before, flags = state(model), [v.trainable for v in model.weights]
    optimizer, config = model.optimizer, model.get_compile_config()
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)
    assert model.optimizer is optimizer
    assert model.get_compile_config() == config
    assert [v.trainable for v in model.weights] == flags
    after = state(model)
    assert all(np.array_equal(v, after[name]) for name, v in before.items())
