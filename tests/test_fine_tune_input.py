"""`finetune_keras.fine_tune`: labels and losses of all kinds, and what is refused at the start."""

import importlib

import keras
import numpy as np
import pytest
from conftest import moved, snapshot
from test_fine_tune import curves, of_curves

import finetune_keras as ftk
from finetune_keras import recipes, select
from finetune_keras._errors import CacheError
from finetune_keras.recipes.examples import examples

layers = keras.layers
ROWS = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")


def network(loss, units=3, activation="softmax"):
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="tanh", name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(units, activation=activation, name="c")(x))
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def tuned(model, train, **options):
    options = {"recipe": "lp_ft", "epochs": 1, "verbose": 0, "seed": 0, **options}
    return ftk.fine_tune(model, train, **options)


RARE = np.where(np.arange(64) < 60, 0, 1)
FOCAL = keras.losses.BinaryFocalCrossentropy()


@pytest.mark.parametrize(
    ("loss", "weighed"),
    [
        (FOCAL, False),
        (keras.losses.binary_crossentropy, True),
        (["binary_crossentropy"], True),
        ({"c": "binary_crossentropy"}, True),
        ({"c": FOCAL}, False),
    ],
    ids=["focal", "function", "list", "dict", "dict of focal"],
)
def test_rare_classes_are_weighed_where_the_loss_can(loss, weighed):
    model = network(loss, 1, "sigmoid")
    y = RARE[:, None].astype("float32")
    plan = tuned(model, (ROWS, y)).plan
    assert (plan.class_weight is not None) == weighed
    assert ("weighs no classes" in plan.reasons["class_weight"]) != weighed
    if weighed:
        kept = keras.tree.flatten(model.loss)[0]
        assert kept.class_weight == pytest.approx(list(plan.class_weight))
        tuned(model, (ROWS, y), class_weight=False)  # takes them away
        assert not hasattr(keras.tree.flatten(model.loss)[0], "class_weight")


@pytest.mark.parametrize("metrics", [{"c": "accuracy"}, {"c": ["accuracy"]}])
def test_metrics_by_the_name_of_the_only_output(metrics):
    model = network("sparse_categorical_crossentropy")
    model.compile("adam", {"c": "sparse_categorical_crossentropy"}, metrics=metrics)
    history = tuned(model, (ROWS, np.arange(64) % 3))
    assert history.best.monitor == "val_accuracy"


@pytest.mark.parametrize("given", ["balanced", [1.0, 9.0]])
def test_weights_for_a_loss_that_has_none_are_refused(given):
    model = network({"c": FOCAL}, 1, "sigmoid")
    with pytest.raises(ValueError, match="binary_focal_crossentropy"):
        tuned(model, (ROWS, RARE[:, None].astype("float32")), class_weight=given)


def test_a_loss_of_ones_own_around_one_of_keras_is_left_alone():
    class Mine(keras.losses.Loss):
        def __init__(self):
            super().__init__(name="mine")
            self.loss = keras.losses.BinaryCrossentropy()

        def call(self, y_true, y_pred):
            return self.loss.call(y_true, y_pred)

    model = network(Mine(), 1, "sigmoid")
    plan = tuned(model, (ROWS, RARE[:, None].astype("float32"))).plan
    assert plan.class_weight is None


def test_maps_of_classes_are_not_counted():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax", name="c")(x))
    model.compile("adam", "categorical_crossentropy")
    x = np.random.default_rng(0).normal(size=(20, 4, 4, 3))
    y = np.eye(2)[np.zeros((20, 4, 4), int)]
    data = examples(model, (x, y), None, 0)
    made = {"batch_size": 8, "epochs": 1, "verbose": 0}
    assert "not classes" in ftk.fine_tune(model, (x, y), **made).plan.reasons["class_weight"]
    assert data.count == 16


def test_no_weights_is_no_error_for_any_loss():
    x, y = curves()
    assert tuned(of_curves(), (x, y), class_weight=False).plan.class_weight is None


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "binary_crossentropy"])
@pytest.mark.parametrize("kind", ["arrays", "tf.data", "validation"])
def test_labels_that_are_shares_have_a_trained_probe(loss, kind):
    rng = np.random.default_rng(0)
    hard = np.eye(3, dtype="float32")[np.arange(64) % 3]
    soft = 0.7 * hard + 0.3 * hard[rng.permutation(64)]
    activation = "softmax" if loss.startswith("cat") else "sigmoid"
    model = network(loss, 3, activation)
    train, held = (ROWS, soft), (ROWS[:20], hard[:20])
    if kind == "tf.data":
        import tensorflow as tf

        train = tf.data.Dataset.from_tensor_slices(train).batch(16)
    if kind == "validation":
        train, held = (ROWS, hard), (ROWS[:20], soft[:20])
    history = tuned(model, train, validation_data=held, epochs=2, recipe="auto")
    assert history.history["phase"][:2] == ["probe", "probe"]
    assert any("shares of several classes" in note for note in history.notes)
    solved = tuned(network(loss, 3, activation), (ROWS, hard), epochs=2)
    assert solved.history["phase"].count("probe") == 1


class Looks(keras.callbacks.Callback):
    """Reads a score at each epoch, as one's own callbacks do."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(logs["val_loss"])


def test_callbacks_choose_nothing_in_a_refit(tmp_path):
    path = tmp_path / "best.weights.h5"
    stop = keras.callbacks.EarlyStopping(patience=2)
    save = keras.callbacks.ModelCheckpoint(path, save_best_only=True, save_weights_only=True)
    model, looks, best = of_curves(), Looks(), []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if logs["val_loss"] <= min(looks.seen):
                best[:] = self.model.get_weights()

    history = tuned(model, curves(), epochs=4, callbacks=[looks, Keep(), save, stop])
    first = history.history["phase"].index("refit probe")
    assert history.refit
    assert history.epoch[-1] > first
    assert np.isfinite(looks.seen[:first]).all()
    assert np.isnan(looks.seen[first:]).all()
    np.testing.assert_array_equal(history.history["val_loss"], looks.seen)
    other = of_curves()
    other.load_weights(path)
    for a, b in zip(other.get_weights(), best, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_score_of_a_callback_is_monitored_and_a_refit_without_it_is_kept():
    class Scores(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if "val_loss" in logs and np.isfinite(logs["val_loss"]):
                logs["val_own_accuracy"] = 1.0 / (1.0 + logs["val_loss"])

    options = {"callbacks": [Scores()], "monitor": "val_own_accuracy", "epochs": 8}
    history = tuned(of_curves(), curves(), learning_rate=3e-2, batch_size=8, **options)
    assert (history.best.monitor, history.best.phase) == ("val_own_accuracy", "all")
    assert history.refit


def test_no_refit_where_a_callback_sets_the_rate_by_scores():
    callback = keras.callbacks.ReduceLROnPlateau(patience=1)
    history = tuned(of_curves(), curves(), callbacks=[callback])
    assert not history.plan.refit
    assert "ReduceLROnPlateau sets the rate" in history.plan.reasons["refit"]
    assert "refit probe" not in history.history["phase"]


def test_test_data_are_looked_at_first_and_cannot_undo_a_training(monkeypatch):
    model = of_curves()
    before = snapshot(model)
    x, y = curves()
    for wrong, words in (((x, None), "without labels"), ((x, y[:, :2]), "the test data")):
        with pytest.raises(ValueError, match=words):
            tuned(model, (x, y), test_data=wrong)
        assert not moved(before, model)

    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    module = importlib.import_module("finetune_keras.recipes.fine_tune")
    monkeypatch.setattr(module, "_evaluated", broken)
    with pytest.raises(KeyboardInterrupt):
        tuned(model, (x, y), test_data=(x, y))
    assert moved(before, model)
    assert model.history.best is not None


@pytest.mark.parametrize("what", ["training", "validation", "test"])
def test_an_endless_data_set_is_refused_at_once(what):
    import tensorflow as tf

    x, y = curves()
    ends = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    given = {"training": ends, "validation": (x, y), "test": (x, y), what: ends.repeat()}
    with pytest.raises(ValueError, match="has no end"):
        tuned(
            of_curves(),
            given["training"],
            validation_data=given["validation"],
            test_data=given["test"],
        )


def test_labels_in_words_are_refused_with_the_way_out():
    model = network("sparse_categorical_crossentropy")
    for kind in (str, object):
        y = np.array(["cat", "dog"] * 32, dtype=kind)
        with pytest.raises(ValueError, match=r"class_names\.index"):
            tuned(model, (ROWS, y))


def test_validation_data_as_a_list_and_read_once():
    x, y = curves()
    history = tuned(of_curves(), (x, y), validation_data=[x[:10], y[:10]], recipe="auto")
    assert history.plan.reasons["examples"].startswith("for validation 10 others")
    with pytest.raises(ValueError, match="validation data several times, and a generator"):
        tuned(of_curves(), (x, y), validation_data=(batch for batch in [(x, y)]))


def test_amounts_are_no_classes():
    """A fifth of them, not one of each value."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6)).astype("float32")
    model = network("mse", 1, None)
    for y in (np.arange(100), rng.integers(0, 40, 100)):
        found = examples(model, (x, y), None, 0)
        assert (found.count, "at random" in found.why) == (80, True)
    names = network("sparse_categorical_crossentropy")
    found = examples(names, (x, (np.arange(100) % 10 == 0) * 2.0), None, 0)
    assert "in proportion" in found.why
    assert (found.train[1] == 2).sum() == 8


def test_one_hot_data_sets_are_balanced():
    ds = ftk.data.one_hot(ftk.data.arrays(ROWS, RARE))
    history = tuned(network("categorical_crossentropy", 2), ds)
    assert history.plan.class_weight == pytest.approx([51 / 96, 51 / 6])
    unknown = network("crossentropy", 2)
    assert tuned(unknown, (ROWS, np.eye(2)[RARE])).plan.class_weight is None
    with pytest.raises(ValueError, match="do not tell the classes: give a dict or a list"):
        tuned(unknown, (ROWS, np.eye(2)[RARE]), class_weight="balanced")


def test_labels_of_a_users_own_data_set_are_its_own():
    class Own(keras.utils.PyDataset):
        labels = np.array(["cat", "dog"])

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return ROWS[16 * i : 16 * (i + 1)], np.arange(16) % 3

    found = examples(network("sparse_categorical_crossentropy"), Own(), (ROWS, RARE), 0)
    assert (found.count, found.labels) == (64, None)


def test_without_room_for_features_a_phase_is_trained_plainly(monkeypatch):
    plain = ftk.recipes.run.fit

    def full(model, *args, cache=True, solver=None, **options):
        if cache and solver is None:
            raise CacheError("3 GB are needed and 1 GB free")
        return plain(model, *args, cache=cache, solver=solver, **options)

    def top(task):
        yield task.probe()
        top = select.blocks(slice(-1, None)) | select.head()
        yield task.phase("top", top, learning_rate=3e-2)

    def none(task, prefix):
        raise CacheError("3 GB are needed and 1 GB free")

    monkeypatch.setattr("finetune_keras.recipes.run.fit", full)
    monkeypatch.setattr("finetune_keras.recipes.refit.features", none)
    history = tuned(of_curves(), curves(), recipe=top, epochs=8, batch_size=8)
    assert history.history["phase"][:3] == ["probe", "top", "top"]
    assert history.refit
    assert any("phase 'refit top'" in n and "3 GB are needed" in n for n in history.notes)


def test_no_room_after_an_epoch_is_an_error(monkeypatch):
    plain = ftk.recipes.run.fit

    def late(model, *args, cache=True, solver=None, **options):
        found = plain(model, *args, cache=cache, solver=solver, **options)
        if solver is None and cache:
            raise CacheError("the disk is full")
        return found

    monkeypatch.setattr("finetune_keras.recipes.run.fit", late)
    model = of_curves()
    before = snapshot(model)
    with pytest.raises(CacheError, match="the disk is full"):
        tuned(model, curves())
    assert not moved(before, model)


def test_ctrl_c_while_weights_are_put_back_leaves_the_best(monkeypatch):
    plain, broken = recipes.best.Values.restore, []

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.last = epoch

    stop = Stop()

    def restore(self):
        if not broken and getattr(stop, "last", 0) == 2:
            broken.append(True)
            self._variables[0].assign(self.arrays[0] + 1)
            raise KeyboardInterrupt
        plain(self)

    monkeypatch.setattr(recipes.best.Values, "restore", restore)
    model = of_curves()
    x, y = curves()
    history = tuned(
        model, (x, y), validation_data=(x, y), epochs=2, callbacks=[stop], monitor="val_loss"
    )
    assert broken
    assert history.interrupted
    assert model.evaluate(x, y, verbose=0) == pytest.approx(history.best.value, rel=1e-5)


def test_a_head_that_stays_as_it_was_solved_is_not_softened():
    y = ROWS[:, :3].argmax(1)

    def below(task):
        yield task.probe()
        yield task.phase("below", select.backbone(), epochs=1, learning_rate=1e-6)

    model = network("sparse_categorical_crossentropy", 3)
    history = tuned(model, (ROWS, y), validation_data=(ROWS, y), recipe=below)
    assert history.best.phase == "below"  # as good is enough
    loss, _ = model.evaluate(ROWS, y, verbose=0)
    assert loss == pytest.approx(history.history["val_loss"][1], rel=1e-4)


def test_no_head_is_told_before_anything_is_trained():
    inputs = keras.Input((6,))
    x = layers.Dense(4, name="a")(inputs)
    model = keras.Model(inputs, [layers.Dense(2, name="p")(x), layers.Dense(1, name="q")(x)])
    model.compile("adam", ["mse", "mse"])
    y = [ROWS[:, :2], ROWS[:, :1]]
    with pytest.raises(ftk.SelectionError, match="'auto' trains the head first, and 'functional"):
        ftk.fine_tune(model, (ROWS, y), verbose=0)

    def own(task):
        yield task.phase("all", select.everything(), epochs=1)
        yield task.phase("more", select.everything(), epochs=1)

    history = tuned(model, (ROWS, y), recipe=own, refit=False)
    assert history.history["phase"] == ["all", "more"]


def test_a_callback_of_ones_own_may_set_the_rate():
    class Sets(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.optimizer.learning_rate = 0.0
            self.before = self.model.get_weights()

        def on_epoch_end(self, epoch, logs=None):
            now = zip(self.before, self.model.get_weights(), strict=True)
            moved = any((a != b).any() for a, b in now)
            self.seen.append((float(self.model.optimizer.learning_rate) > 0, moved))

    model, sets = of_curves(), Sets()
    x, y = curves()
    tuned(model, (x, y), validation_data=(x, y), epochs=4, patience=9, callbacks=[sets])
    # The last step's rate is 0 by itself.
    assert sets.seen[1:] == [(True, True), (False, False), (False, False), (False, False)]
    assert float(model.optimizer.learning_rate) > 0


def test_a_long_pass_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr("finetune_keras.recipes.progress._LONG", 0.0)
    for verbose, told in ((1, True), (0, False), (2, False)):
        x, y = curves()
        tuned(of_curves(), (x, y), validation_data=(x, y), batch_size=20, verbose=verbose)
        text = capsys.readouterr().out
        assert ("features of what is frozen: batch 2 of 3, " in text) == told
