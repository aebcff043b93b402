"""`finetune_keras.fine_tune`: phases, the best of all, the plan."""

import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, learners, moved, snapshot

import finetune_keras as ftk
from finetune_keras import heads, recipes, select

layers = keras.layers
LOSS = "sparse_categorical_crossentropy"


def compiled(optimizer="adam"):
    model = classifier()
    model.compile(optimizer, LOSS, metrics=["accuracy"])
    return model


def head(paths):
    return {p for p in paths if p.startswith("classes/")}


def norms(paths):
    return {p for p in paths if "bn" in p}


@pytest.fixture
def data():
    return images(36), images(18)


class Weights(keras.callbacks.Callback):
    """The weights of the whole model before each epoch, and what learns in it."""

    def __init__(self):
        super().__init__()
        self.seen, self.learn, self.rates = [], [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(snapshot(self.model))
        self.learn.append(learners(self.model) & on(self.model))
        self.rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))


def on(model):
    return {u.path for u in ftk.graph.opened(model).units if u.variable.trainable}


def test_a_probe_moves_the_head_alone(data):
    model = compiled()
    before = snapshot(model)
    history = ftk.fine_tune(
        model, data[0], validation_data=data[1], recipe="linear_probe", verbose=0
    )
    assert moved(before, model) == head(before)
    assert history.history["phase"] == ["probe"]
    assert model.history is history


def test_lp_ft_probes_then_moves_all_but_normalisation(data):
    model = compiled()
    before, watch = snapshot(model), Weights()
    history = ftk.fine_tune(
        model,
        data[0],
        validation_data=data[1],
        recipe="lp_ft",
        epochs=2,
        callbacks=[watch],
        verbose=0,
    )
    assert history.history["phase"] == ["probe", "all", "all"]
    assert history.epoch == [0, 1, 2]
    assert watch.learn[0] == head(before)
    assert watch.learn[1] == {p for p in learners(model) if not norms([p])}
    same = {p for p in before if np.array_equal(watch.seen[1][p], before[p])}
    assert same == set(before) - head(before)  # frozen to the bit, the head solved
    still = {p for p in before if np.array_equal(watch.seen[2][p], before[p])}
    assert still == norms(before)


def test_full_moves_normalisation_too_at_one_rate(data):
    model, watch = compiled(), Weights()
    ftk.fine_tune(
        model,
        data[0],
        validation_data=data[1],
        recipe="full",
        epochs=2,
        callbacks=[watch],
        verbose=0,
    )
    assert watch.learn[1] == learners(model)
    stats = {p for p in watch.seen[1] if "moving" in p}
    assert all(not np.array_equal(watch.seen[1][p], watch.seen[2][p]) for p in stats)
    assert ftk.optimizers.layerwise_of(model.optimizer) is None


@pytest.mark.parametrize("rate", [1e-3, 30.0])
def test_the_best_of_all_epochs_is_what_remains(data, rate):
    model = compiled()
    history = ftk.fine_tune(
        model,
        data[0],
        validation_data=data[1],
        recipe="lp_ft",
        epochs=3,
        learning_rate=rate,
        verbose=0,
    )
    found = model.evaluate(*data[1], verbose=0, return_dict=True)
    told = history.history
    pairs = [(-a, b) for a, b in zip(told["val_accuracy"], told["val_loss"], strict=True)]
    at = min(range(len(pairs)), key=lambda i: pairs[i])
    assert (history.best.epoch, history.best.phase) == (at, told["phase"][at])
    assert found["accuracy"] == pytest.approx(told["val_accuracy"][at])
    assert found["loss"] == pytest.approx(told["val_loss"][at], rel=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the loss may be infinite too
def test_where_fine_tuning_fails_the_probe_remains(data):
    probe, model = compiled(), compiled()
    model.set_weights(probe.get_weights())
    settings = {"validation_data": data[1], "verbose": 0}
    first = ftk.fine_tune(probe, data[0], recipe="linear_probe", **settings)
    last = ftk.fine_tune(model, data[0], recipe="lp_ft", epochs=2, learning_rate=1e4, **settings)
    assert last.best.phase == "probe"
    assert last.best.value == first.best.value
    for a, b in zip(probe.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class Poison(keras.callbacks.Callback):
    """A loss that is no number, from an epoch on."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            variable = self.model.trainable_variables[0]
            variable.assign(np.full(variable.shape, np.nan, "float32"))


def test_nan_ends_with_the_best_so_far_and_says_where(data):
    model = compiled()
    with pytest.warns(RuntimeWarning, match=r"phase 'all', as loss is nan in epoch 3.*try learn"):
        history = ftk.fine_tune(
            model,
            data[0],
            validation_data=data[1],
            recipe="lp_ft",
            epochs=9,
            callbacks=[Poison(2)],
            verbose=0,
        )
    assert history.epoch == [0, 1, 2]
    found = model.evaluate(*data[1], verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx(history.best.value)
    assert model.fit(*data[0], verbose=0).history["loss"][0] < 50  # optimizer and weights are sound


def test_nan_from_the_start_leaves_the_model_as_it_was(data):
    model = compiled()
    before, optimizer = snapshot(model), model.optimizer
    settings = {"validation_data": data[1], "epochs": 1, "verbose": 0}
    with pytest.raises(ValueError, match=r"loss is nan.*check"):
        ftk.fine_tune(model, data[0], recipe=train_the_probe, callbacks=[Poison(0)], **settings)
    assert not moved(before, model)
    assert model.optimizer is optimizer


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch, error=KeyboardInterrupt):
        super().__init__()
        self.at, self.error, self.epoch = epoch, error, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.at:
            raise self.error("now")


def test_an_interruption_leaves_the_best_so_far(data, capsys):
    model = compiled()
    history = ftk.fine_tune(
        model,
        data[0],
        validation_data=data[1],
        recipe="lp_ft",
        epochs=9,
        callbacks=[Interrupt(2)],
        verbose=0,
    )
    assert history.interrupted
    assert "interrupted in phase 'all'" in capsys.readouterr().out
    found = model.evaluate(*data[1], verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx(history.best.value)
    again = ftk.fine_tune(
        model, data[0], validation_data=data[1], recipe="lp_ft", epochs=1, verbose=0
    )
    assert not again.interrupted


@pytest.mark.parametrize(("error", "epoch"), [(OSError, 2), (KeyboardInterrupt, 0)])
def test_an_error_leaves_the_model_as_it_was(data, error, epoch):
    model = compiled()
    model.fit(*data[0], verbose=0)
    ftk.compile(model, learning_rate=0.01)
    before, learn, optimizer = snapshot(model), on(model), model.optimizer
    recipe = "lp_ft" if epoch else train_the_probe
    with pytest.raises(error):
        ftk.fine_tune(
            model,
            data[0],
            validation_data=data[1],
            recipe=recipe,
            epochs=3,
            callbacks=[Interrupt(epoch, error)],
            verbose=0,
        )
    assert not moved(before, model)
    assert on(model) == learn
    assert model.optimizer is optimizer
    model.fit(*data[0], verbose=0)
    assert moved(before, model) >= head(before)


def train_the_probe(task):
    return [recipes.Phase("own", select.head(), epochs=2, learning_rate=1e-3)]


def test_a_recipe_of_ones_own(data):
    def top(task):
        yield task.probe()
        task.say("the last block is next")
        yield task.phase("top", select.blocks(-1) | select.head(), epochs=2)

    model = compiled()
    before = snapshot(model)
    history = ftk.fine_tune(model, data[0], validation_data=data[1], recipe=top, verbose=0)
    assert history.history["phase"] == ["probe", "top", "top"]
    assert history.notes == ("the last block is next",)
    last = {u.path for u in select.resolve(model, select.blocks(-1))}
    assert moved(before, model) <= last | head(before)
    assert history.plan.recipe == "top"


def test_the_model_goes_on_with_plain_fit(data):
    model = compiled()
    ftk.fine_tune(
        model,
        data[0],
        validation_data=data[1],
        recipe="lp_ft",
        epochs=1,
        learning_rate=1e-3,
        verbose=0,
    )
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)
    before = snapshot(model)
    model.fit(*data[0], verbose=0)
    assert moved(before, model)


def test_the_rate_rises_and_falls_and_a_callback_may_set_it_instead(data):
    settings = {"validation_data": data[1], "recipe": "lp_ft", "epochs": 4, "verbose": 0}
    settings |= {"learning_rate": 1e-3, "patience": 9}
    watch = Weights()
    ftk.fine_tune(compiled(), data[0], callbacks=[watch], **settings)
    rates = watch.rates[1:]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) <= 1e-3
    assert rates[3] < rates[1]
    plateau, watch = keras.callbacks.ReduceLROnPlateau(patience=99), Weights()
    history = ftk.fine_tune(compiled(), data[0], callbacks=[watch, plateau], **settings)
    assert watch.rates[1:] == pytest.approx([1e-3] * 4)
    assert "ReduceLROnPlateau" in history.plan.reasons["warm"]


def test_patience_ends_a_phase(data):
    model = compiled(keras.optimizers.SGD())
    history = ftk.fine_tune(
        model,
        data[0],
        validation_data=data[1],
        recipe="lp_ft",
        epochs=20,
        learning_rate=1e-12,
        patience=2,
        verbose=0,
    )
    assert len(history.epoch) < 8
    assert history.plan.patience == 2


def test_a_regression_head():
    model = chain()
    ftk.compile(model, optimizer="adamw", loss="mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)).astype("float32")
    y = np.tanh(x[:, :3] * 2)
    first = model.evaluate(x, y, verbose=0)
    history = ftk.fine_tune(model, (x, y), recipe="lp_ft", epochs=2, test_data=(x, y), verbose=0)
    assert history.best.monitor == "val_loss"
    assert model.evaluate(x, y, verbose=0) < first
    assert history.test["loss"] == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    assert history.plan.class_weight is None


def test_several_outputs_and_dict_inputs():
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((2,), name="b")}
    x = layers.Concatenate()([inputs["a"], inputs["b"]])
    base = keras.Model(inputs, layers.Dense(8, "relu", name="inner")(x), name="two")
    model = ftk.build(
        base, heads.Multi({"kind": heads.Classification(3), "size": heads.Regression(1)})
    )
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(40, 6)), "b": rng.normal(size=(40, 2))}
    y = {"kind": np.arange(40) % 3, "size": rng.normal(size=(40, 1))}
    before = snapshot(model)
    history = ftk.fine_tune(model, (x, y), recipe="lp_ft", epochs=2, verbose=0)
    assert history.history["phase"] == ["probe"] * 2 + ["all"] * 2  # trained, not solved
    assert moved(before, model)
    assert history.best.monitor == "val_loss"


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, size=6):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, i):
        at = slice(i * self.size, (i + 1) * self.size)
        return self.x[at], self.y[at]


@pytest.mark.parametrize("kind", ["tf.data", "ftk.data", "PyDataset", "weights"])
def test_all_kinds_of_data(data, kind):
    tf = pytest.importorskip("tensorflow")
    (x, y), held = data
    settings = {"validation_data": held}
    if kind == "tf.data":
        train = tf.data.Dataset.from_tensor_slices((x, y)).batch(6)
        settings["validation_data"] = tf.data.Dataset.from_tensor_slices(held).batch(6)
        train = train.filter(lambda *_: True)  # of a length that nobody knows
    elif kind == "ftk.data":
        train, settings = ftk.data.arrays(x, y, batch_size=6), {}
    elif kind == "PyDataset":
        train = Batches(x, y)
    else:
        train = (x, y, np.ones(len(x)))
    model = compiled()
    before = snapshot(model)
    history = ftk.fine_tune(model, train, recipe="lp_ft", epochs=1, verbose=0, **settings)
    assert moved(before, model) >= head(before)
    n = {"ftk.data": 30}.get(kind, 36)
    assert history.plan.examples == n
    assert history.plan.batch_size == (8 if kind == "weights" else 6)


def test_a_fifth_is_held_out_in_proportion(data):
    x, y = images(30)
    y = np.where(np.arange(30) < 20, 0, 1)
    model, seen = compiled(), []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)

    history = ftk.fine_tune(
        model, (x, y), recipe="linear_probe", callbacks=Look(), seed=1, verbose=0
    )
    assert history.plan.examples == 24
    assert "20% held out" in history.plan.reasons["examples"]
    assert seen == [0]
    held = recipes.examples.examples(model, (x, y), None, 1)
    assert np.bincount(held.validation[1]).tolist() == [4, 2]
    rest = {a.tobytes() for a in held.train[0]}
    assert len(rest) == 24
    assert not rest & {a.tobytes() for a in held.validation[0]}


def test_wrong_input_is_told_in_one_line(data):
    model = compiled()
    before = snapshot(model)
    cases = [
        (ValueError, "give validation_data=", {"train": Batches(*data[0])}),
        (ValueError, "did you mean 'lp_ft'", {"recipe": "lpft"}),
        (TypeError, "a function of a task", {"recipe": 3}),
        (ValueError, "epochs is a whole number", {"epochs": 0}),
        (ValueError, "learning_rate takes", {"learning_rate": -1.0}),
        (ValueError, "batches of its own", {"train": Batches(*data[0]), "batch_size": 4}),
        (ValueError, "read only once", {"train": iter([data[0]])}),
        (ValueError, "without labels", {"train": data[0][0]}),
        (ValueError, "monitor", {"monitor": "val_acuracy"}),
    ]
    for error, words, changes in cases:
        given = {"train": data[0], "recipe": "lp_ft", "epochs": 1, **changes}
        if "give validation" not in words:
            given["validation_data"] = data[1]
        with pytest.raises(error, match=words) as e:
            ftk.fine_tune(model, given.pop("train"), verbose=0, **given)
        assert "\n" not in str(e.value)
        assert not moved(before, model)
    with pytest.raises(ValueError, match="not compiled"):
        ftk.fine_tune(classifier(), data[0])
    with pytest.raises(TypeError, match=r"expected a keras\.Model"):
        ftk.fine_tune("model", data[0])
