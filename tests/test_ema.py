"""A moving average of the weights: the formula, evaluation, files, a second fit."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import chain, moved, snapshot, value, vectors

import finetune_keras as ftk
from finetune_keras import optimizers, select

RUN = {"batch_size": 8, "shuffle": False, "verbose": 0}


class Each(keras.callbacks.Callback):
    """Keeps the weights after each batch, the state of JAX written back."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.kept.append(snapshot(self.model))


class AtEpochs(keras.callbacks.Callback):
    """Keeps the weights that callbacks see after each epoch."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_epoch_end(self, epoch, logs=None):
        self.kept.append(snapshot(self.model))


def model(momentum=0.9, optimizer="sgd", rate=0.1, **kwargs):
    keras.utils.set_random_seed(7)
    made = chain()
    return ftk.compile(
        made, optimizer=optimizer, loss="mse", learning_rate=rate, ema_momentum=momentum, **kwargs
    )


def formula(kept, momentum):
    average = None
    for t, weights in enumerate(kept):
        m = min(momentum, t / (9 + t))
        average = {k: w if t == 0 else m * average[k] + (1 - m) * w for k, w in weights.items()}
    return average


def close(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for path, w in found.items():
        np.testing.assert_allclose(w, expected[path], rtol=1e-5, atol=atol, err_msg=path)


@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.99])
def test_fit_ends_with_the_average_of_the_formula(momentum):
    mine, each = model(momentum), Each()
    mine.fit(*vectors(), epochs=3, callbacks=[each], **RUN)
    assert len(each.kept) == 12
    close(snapshot(mine), formula(each.kept, momentum))


def test_the_weights_themselves_go_their_way():
    mine, plain, each = model(), model(False), Each()
    mine.fit(*vectors(), epochs=2, callbacks=[each], **RUN)
    plain.fit(*vectors(), epochs=2, **RUN)
    close(each.kept[-1], snapshot(plain))
    assert moved(snapshot(plain), mine)


def test_accumulated_batches_are_no_steps():
    mine, each = model(gradient_accumulation_steps=2), Each()
    mine.fit(*vectors(), epochs=3, callbacks=[each], **RUN)
    close(snapshot(mine), formula(each.kept[1::2], 0.9))


def test_validation_and_later_callbacks_see_averages_and_training_does_not():
    mine, each, after = model(), Each(), AtEpochs()
    data = vectors()
    ema = ftk.callbacks.EMA()
    history = mine.fit(*data, epochs=3, validation_data=data, callbacks=[ema, each, after], **RUN)
    plain = model(False)
    plain.fit(*data, epochs=3, **RUN)
    close(each.kept[-1], snapshot(plain))  # as if nobody had looked
    for epoch, seen in enumerate(after.kept, 1):
        average = formula(each.kept[: 4 * epoch], 0.9)
        close(seen, average)
        other = model(False)
        for unit in ftk.graph.opened(other).units:
            unit.variable.assign(average[unit.path])
        loss = other.evaluate(*data, verbose=0)
        assert history.history["val_loss"][epoch - 1] == pytest.approx(loss, rel=1e-5)
    close(snapshot(mine), after.kept[-1], atol=0)


def test_callbacks_see_averages_without_validation_too():
    mine, each, after = model(), Each(), AtEpochs()
    mine.fit(*vectors(), epochs=2, callbacks=[ftk.callbacks.EMA(), each, after], **RUN)
    close(after.kept[0], formula(each.kept[:4], 0.9))


def test_a_second_fit_goes_on_from_the_average():
    mine, each = model(), Each()
    mine.fit(*vectors(), epochs=2, **RUN)
    first = snapshot(mine)
    mine.fit(*vectors(), epochs=2, callbacks=[each], **RUN)
    close(snapshot(mine), formula(each.kept, 0.9))
    plain = model(False)
    for unit in ftk.graph.opened(plain).units:
        unit.variable.assign(first[unit.path])
    plain.fit(*vectors(), epochs=2, **RUN)
    close(each.kept[-1], snapshot(plain))


def test_weights_set_between_fits_are_where_it_goes_on():
    mine = model(0.99)
    mine.fit(*vectors(), epochs=2, callbacks=[ftk.callbacks.EMA()], **RUN)
    for v in mine.weights:
        v.assign(np.zeros(v.shape))
    mine.optimizer.learning_rate = 0.0
    mine.fit(*vectors(), epochs=1, callbacks=[ftk.callbacks.EMA()], **RUN)
    assert all(not value(v).any() for v in mine.weights)


@pytest.mark.parametrize("through", ["whole", "resumed"])
def test_resuming_from_a_checkpoint_equals_the_uninterrupted_run(through, tmp_path):
    """The file holds averages for who loads it, and the weights for who goes on."""
    path = tmp_path / "{epoch}.keras"
    callbacks = [ftk.callbacks.EMA(), keras.callbacks.ModelCheckpoint(path)]
    mine, after = model(), AtEpochs()
    mine.fit(*vectors(), epochs=4, callbacks=[*callbacks, after], **RUN)
    again = ftk.load(tmp_path / "2.keras")
    assert not moved(after.kept[1], again)
    if through == "resumed":
        again.fit(*vectors(), epochs=4, initial_epoch=2, callbacks=[ftk.callbacks.EMA()], **RUN)
        assert not moved(after.kept[3], again)
    else:
        # A new run takes what the file shows, and no trace of the old weights is left.
        again.optimizer.learning_rate = 0.0
        again.fit(*vectors(), epochs=1, callbacks=[ftk.callbacks.EMA()], **RUN)
        assert not moved(after.kept[1], again)


def test_without_the_callback_a_file_from_within_goes_on_from_its_averages(tmp_path):
    callbacks = [ftk.callbacks.EMA(), keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")]
    mine, each = model(), Each()
    mine.fit(*vectors(), epochs=2, callbacks=callbacks, **RUN)
    again = ftk.load(tmp_path / "1.keras")
    again.fit(*vectors(), epochs=1, callbacks=[each], **RUN)
    close(snapshot(again), formula(each.kept, 0.9))


def test_backup_and_restore_goes_on_from_the_weights(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def callbacks():
        return [ftk.callbacks.EMA(), keras.callbacks.BackupAndRestore(tmp_path / "b")]

    whole = model()
    whole.fit(*vectors(), epochs=4, callbacks=[ftk.callbacks.EMA()], **RUN)
    with pytest.raises(KeyboardInterrupt):
        model().fit(*vectors(), epochs=4, callbacks=[*callbacks(), Stop()], **RUN)
    again = model()
    again.fit(*vectors(), epochs=4, callbacks=callbacks(), **RUN)
    assert not moved(snapshot(whole), again)


def test_early_stopping_restores_averages():
    mine, after = model(), AtEpochs()
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=1, restore_best_weights=True)
    mine.fit(*vectors(), epochs=5, callbacks=[ftk.callbacks.EMA(), after, stop], **RUN)
    assert len(after.kept) == 2
    assert not moved(after.kept[0], mine)


def test_plain_compile_builds_the_optimizer_late():
    keras.utils.set_random_seed(7)
    plain, each = chain(), Each()
    plain.compile(ftk.ema(keras.optimizers.SGD(0.1), momentum=0.9), "mse")
    data = vectors()
    plain.evaluate(*data, verbose=0, callbacks=[ftk.callbacks.EMA()])
    plain.fit(*data, epochs=2, validation_data=data, callbacks=[ftk.callbacks.EMA(), each], **RUN)
    close(snapshot(plain), formula(each.kept, 0.9))


def test_building_twice_keeps_the_averages_and_takes_no_more_memory():
    net = model()
    net.fit(*vectors(), epochs=1, **RUN)
    before = [(id(v), value(v)) for v in net.optimizer.variables]
    net.optimizer.build(net.trainable_variables)
    after = [(id(v), value(v)) for v in net.optimizer.variables]
    assert [i for i, _ in after] == [i for i, _ in before]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(after, before, strict=True))
    net.fit(*vectors(), epochs=1, **RUN)
    changed = [
        not np.array_equal(value(v), old)
        for v, (_, old) in zip(net.optimizer.variables, before, strict=True)
        if v.path.endswith("average")
    ]
    assert changed == [True] * 6


def test_evaluate_with_the_callback_looks_and_leaves():
    mine = model()
    grads = [keras.ops.ones(v.shape) for v in mine.trainable_variables]
    for _ in range(2):
        mine.optimizer.apply(grads, mine.trainable_variables)
    before = snapshot(mine)
    data = vectors()
    seen = mine.evaluate(*data, verbose=0, callbacks=[ftk.callbacks.EMA()])
    assert not moved(before, mine)
    assert seen != mine.evaluate(*data, verbose=0)


def test_freeze_and_thaw_carry_the_averages():
    mine = model()
    ftk.freeze(mine, select.named("^a/"))
    mine.fit(*vectors(), epochs=1, **RUN)
    grads = [keras.ops.ones(v.shape) for v in mine.trainable_variables]
    mine.optimizer.apply(grads, mine.trainable_variables)
    was = optimizers.averaging_of(mine.optimizer)
    kept = [value(v) for v in was._averages]
    ftk.thaw(mine, select.named("^a/"))
    now = optimizers.averaging_of(mine.optimizer)
    averages = [value(v) for v in now._averages]
    a = mine.get_layer("a")
    np.testing.assert_array_equal(averages[0], value(a.kernel))
    for old, new in zip(kept, averages[2:], strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_average_goes_on_through_a_thaw():
    mine = model(0.99)
    ftk.freeze(mine, select.named("^a/"))
    x, y = vectors()
    kernel, kept = mine.get_layer("c").kernel, []
    for step in range(5):
        if step == 3:
            ftk.thaw(mine, select.named("^a/"), learning_rate=0.1)
        mine.train_on_batch(x, y)
        kept.append({"kernel": value(kernel)})
    average = optimizers.averaging_of(mine.optimizer)
    average.exchange()
    ftk.compile(mine, learning_rate=0.01)
    close({"kernel": value(kernel)}, formula(kept, 0.99))
    optimizers.averaging_of(mine.optimizer).exchange()  # the new one knows which of them it has
    close({"kernel": value(kernel)}, kept[-1])
    assert not optimizers.averaging_of(mine.optimizer).exchanged


def test_with_rates_by_depth_and_a_scaled_loss():
    mine = model(optimizer="adam", layer_decay=0.5)
    scaled = keras.optimizers.LossScaleOptimizer(mine.optimizer)
    mine.compile(ftk.layerwise(ftk.ema(scaled, momentum=0.9), mine, decay=0.5), "mse")
    kinds = [type(o).__name__ for o in optimizers.wrapper.chain(mine.optimizer)]
    assert kinds[:3] == ["LossScaleOptimizer", "AveragingOptimizer", "LayerwiseOptimizer"]
    each = Each()
    mine.fit(*vectors(), epochs=2, callbacks=[each], **RUN)
    close(snapshot(mine), formula(each.kept, 0.9), atol=1e-5)
    x, y = vectors()
    before = snapshot(mine)
    mine.fit(np.full_like(x, np.inf), y, **RUN)
    assert not moved(before, mine)  # no step was made


def test_cached_training_evaluates_averages_by_itself():
    found = []
    for fit in (keras.Model.fit, ftk.fit):
        mine = model()
        ftk.freeze(mine, select.named("^a/"))
        callbacks = [ftk.callbacks.EMA()] if fit is keras.Model.fit else None
        history = fit(
            mine, *vectors(), epochs=3, validation_data=vectors(), callbacks=callbacks, **RUN
        )
        found.append((snapshot(mine), history.history["val_loss"]))
    close(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)


MIRRORED = """
import os
import sys
import keras, numpy as np, tensorflow as tf
sys.path.insert(0, sys.argv[1])
from conftest import chain, snapshot, vectors
import finetune_keras as ftk
from finetune_keras import select

two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)

def trained(scope):
    keras.utils.set_random_seed(7)
    with scope:
        model = chain()
        adam = keras.optimizers.AdamW(0.05, weight_decay=0.1)
        optimizer = ftk.ema(ftk.layerwise(adam, model, decay=0.5), momentum=0.5)
        model.compile(keras.optimizers.LossScaleOptimizer(optimizer), "mse")
    x, y = vectors()
    callbacks = [ftk.callbacks.EMA()]
    run = {"batch_size": 8, "shuffle": False, "verbose": 0, "validation_data": (x, y)}
    history = model.fit(x, y, epochs=3, callbacks=callbacks, **run)
    return snapshot(model), history.history

one = trained(tf.distribute.OneDeviceStrategy("CPU:0").scope())
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
both = trained(strategy.scope())
for path, w in one[0].items():
    np.testing.assert_allclose(w, both[0][path], rtol=1e-4, atol=1e-5, err_msg=path)
np.testing.assert_allclose(one[1]["val_loss"], both[1]["val_loss"], rtol=1e-4)
print("equal")
"""


def test_two_replicas_equal_one():
    if keras.backend.backend() != "tensorflow":
        return  # MirroredStrategy is TensorFlow's
    done = subprocess.run(
        [sys.executable, "-c", MIRRORED, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def test_describe_tells():
    assert "weights averaged with momentum 0.9" in str(ftk.describe(model()))


@pytest.mark.parametrize("momentum", [1.0, -0.1, "0.9", True, float("nan")])
def test_bad_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match="from 0 to below 1; given"):
        ftk.ema("adam", momentum=momentum)


def test_keras_own_average_is_refused():
    with pytest.raises(ValueError, match="use_ema=True, which is an average of its own"):
        ftk.ema(keras.optimizers.Adam(use_ema=True))


def test_the_callback_names_what_it_needs():
    mine = model(False)
    with pytest.raises(ValueError, match="ema_momentum=0.99"):
        mine.fit(*vectors(), callbacks=[ftk.callbacks.EMA()], **RUN)
