"""`finetune_keras.fine_tune`: phases, the best of all, the plan."""

import collections

import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, learners, moved, snapshot, value

import finetune_keras as ftk
from finetune_keras import heads, recipes, select
from finetune_keras.cache import engines, forward
from finetune_keras.check.memory import need

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
    # Of equal ones those of the later phase, and in it that with the least loss.
    phases, loss = [p == "probe" for p in told["phase"]], told["val_loss"]
    pairs = [(-a, p, b) for a, p, b in zip(told["val_accuracy"], phases, loss, strict=True)]
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


class Wrong(keras.callbacks.Callback):
    """Turns the answers of a head around, after the probe."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch:
            kernel = self.model.get_layer("c").kernel
            kernel.assign(-value(kernel))


@pytest.mark.parametrize("worse", [False, True])
def test_equal_is_enough_for_a_later_phase_and_worse_is_not(worse):
    x, y = np.eye(6, dtype="float32")[np.arange(12) % 3], np.arange(12) % 3
    model, loss = chain(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ftk.compile(model, loss=loss, optimizer="adam", metrics=["accuracy"])
    settings = {"recipe": "lp_ft", "epochs": 1, "learning_rate": 1e-9, "verbose": 0}
    settings["callbacks"] = [Wrong()] if worse else []
    history = ftk.fine_tune(model, (x, y), validation_data=(x, y), **settings)
    scores, losses = history.history["val_accuracy"], history.history["val_loss"]
    assert scores[0] == 1.0
    assert (scores[1] < 1) == worse
    assert losses[1] > losses[0]  # the head is less sure
    assert (history.best.phase, history.best.value) == ("probe" if worse else "all", 1.0)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] == 1.0


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
        verbose=1,
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
    assert history.history["phase"][:4] == ["probe"] * 2 + ["all"] * 2  # trained, not solved
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


def test_a_probe_that_is_best_is_solved_again_with_what_was_held_out():
    x, y = images(40)
    found = {}
    for name in ("probe", "again", "whole"):
        model = compiled()
        if name == "probe":
            rest = recipes.examples.examples(model, (x, y), None, 0)
            given = {"train": rest.train[:2], "validation_data": rest.validation}
        else:
            given = {"train": (x, y)}
        if name == "whole":
            ftk.freeze(model, ~select.head())
            ftk.fit(model, x, y, batch_size=8, solver="lbfgs", verbose=0)
        else:
            history = ftk.fine_tune(model, **given, recipe="linear_probe", seed=0, verbose=0)
            found[name, "notes"], found[name, "best"] = history.notes, history.best
        found[name] = snapshot(model)
    for path in head(found["probe"]):
        assert not np.allclose(found["again"][path], found["probe"][path], atol=1e-4)
        np.testing.assert_allclose(found["again"][path], found["whole"][path], atol=1e-5)
    # The score is still that of examples that the head had not seen.
    assert found["again", "best"] == found["probe", "best"]
    assert found["probe", "notes"] == ()
    assert "done again, with the 9 examples held out" in found["again", "notes"][0]


def curves(n=60):
    """What a probe on random features cannot learn."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)).astype("float32")
    return x, np.tanh(x[:, :3] * 2)


def of_curves():
    model = chain()
    ftk.compile(model, optimizer="adam", loss="mse")
    return model


def steps(task):
    yield task.probe()
    yield recipes.Phase("worse", select.head(), epochs=1, learning_rate=3.0)
    yield recipes.Phase("all", select.everything(), epochs=task.plan.epochs, learning_rate=3e-3)


def test_the_best_training_is_done_again_with_what_was_held_out(monkeypatch):
    x, y = curves()
    model, seen, rows = of_curves(), Weights(), []
    start, plain = snapshot(model), ftk.recipes.run.fit

    def fit(model, x, *args, **kwargs):
        rows.append((len(x), kwargs["epochs"] - kwargs["initial_epoch"]))
        return plain(model, x, *args, **kwargs)

    monkeypatch.setattr("finetune_keras.recipes.run.fit", fit)
    history = ftk.fine_tune(
        model, (x, y), recipe=steps, epochs=4, batch_size=8, callbacks=[seen], seed=0, verbose=0
    )
    phases = history.history["phase"]
    assert history.best.phase == "all"
    epochs = history.best.epoch - phases.index("all") + 1
    assert phases[-1 - epochs :] == ["refit probe"] + ["refit all"] * epochs
    assert "refit worse" not in phases
    assert rows[-2:] == [(60, 1), (60, epochs)]
    again = phases.index("refit probe")
    assert all(np.array_equal(seen.seen[again][p], start[p]) for p in start)
    solved = {p for p in start if not np.array_equal(seen.seen[again + 1][p], start[p])}
    assert solved == {"c/kernel", "c/bias"}
    # What it has learned from gives no score; the best is still of what it had not seen.
    scores = history.history["val_loss"]
    assert np.isnan(scores[again:]).all()
    assert history.best.value == min(scores[:again])
    assert history.refit is True
    assert "with the 12 examples held out" in history.notes[-1]
    assert history.plan.reasons["refit"]


def test_of_phases_with_one_name_each_is_done_again_for_its_own_length():
    def twice(task):
        for rate in (1e-2, 1e-3):
            yield recipes.Phase("all", select.everything(), epochs=3, learning_rate=rate)

    model, made = of_curves(), []

    class Note(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            made.append(self.params["epochs"])

    history = ftk.fine_tune(
        model, curves(), recipe=twice, batch_size=8, callbacks=[Note()], seed=0, verbose=0
    )
    scores, phases = history.history["val_loss"], history.history["phase"]
    assert phases[:6] == ["all"] * 6
    assert history.best.epoch == int(np.argmin(scores[:6]))
    assert history.best.epoch >= 3
    first = int(np.argmin(scores[:3])) + 1
    second = history.best.epoch - 3 + 1
    assert made[2:] == [6 + first, 6 + first + second]
    assert phases[6:] == ["refit all"] * (first + second)


def test_a_refit_computes_what_is_frozen_no_second_time(monkeypatch):
    seen, choose = collections.Counter(), engines.choose

    def counting(*args, **kwargs):
        engine = choose(*args, **kwargs)

        def run(arrays):
            seen.update({a.tobytes() for a in arrays[0]})
            return engine.run(arrays)

        return engines.Engine(engine.record, run)

    monkeypatch.setattr(forward.engines, "choose", counting)
    x, y = images(40)
    model = compiled()
    history = ftk.fine_tune(model, (x, y), recipe="linear_probe", verbose=0)
    assert history.refit is True
    assert len(seen) == 40
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("given", ["refit=False", "validation_data"])
def test_without_a_refit_the_best_weights_remain(given):
    x, y = curves()
    settings = {"refit": False} if given == "refit=False" else {"validation_data": curves(20)}
    model = of_curves()
    history = ftk.fine_tune(model, (x, y), recipe="lp_ft", epochs=2, verbose=0, **settings)
    assert history.history["phase"] == ["probe", "all", "all"]
    assert history.refit is False
    assert ("refit" in history.plan.reasons) == (given == "refit=False")


class Spoil(keras.callbacks.Callback):
    """Ends a refit badly."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def on_epoch_begin(self, epoch, logs=None):
        value = {"nan": np.nan, "worse": 7.0}.get(self.end)
        if epoch >= 6 and value is not None:
            for variable in self.model.trainable_variables:
                variable.assign(np.full(variable.shape, value, "float32"))

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 6 and self.end == "ctrl-c":
            raise KeyboardInterrupt
        if epoch == 6 and self.end == "stopped":
            self.model.stop_training = True


def learning(task):
    """Better at each epoch, so far from the end is it."""
    yield recipes.Phase("probe", select.head(), epochs=1, learning_rate=1e-3)
    yield recipes.Phase("all", select.everything(), epochs=4, learning_rate=1e-3)


@pytest.mark.parametrize("end", ["nan", "worse", "ctrl-c", "stopped"])
def test_a_refit_that_fails_leaves_the_best(end):
    x, y = curves()
    model, plain = of_curves(), of_curves()
    model.set_weights(plain.get_weights())
    settings = {"recipe": learning, "epochs": 4, "batch_size": 8, "seed": 0, "verbose": 0}
    best = ftk.fine_tune(plain, (x, y), refit=False, **settings).best
    assert best.epoch == 4
    if end == "nan":
        with pytest.warns(RuntimeWarning, match="stopped in phase 'refit all'"):
            history = ftk.fine_tune(model, (x, y), callbacks=[Spoil(end)], **settings)
    else:
        history = ftk.fine_tune(model, (x, y), callbacks=[Spoil(end)], **settings)
    assert history.history["phase"][5] == "refit probe"
    assert history.best == best
    assert history.refit is False
    assert history.interrupted == (end == "ctrl-c")
    assert ("not kept" in history.notes[-1]) == (end in ("worse", "stopped"))
    for a, b in zip(plain.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("norms", [True, False])
def test_statistics_follow_the_new_data_where_they_learn(norms):
    """By a momentum of 0.99 they would be those of the old images for hundreds of steps."""
    x, y = images(64)
    model, seen = compiled(), []
    ftk.freeze(model, ~select.head())
    layer = model.get_layer("inner").get_layer("stem_bn")
    before = value(layer.moving_mean)
    assert layer.momentum == 0.99

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(layer.momentum)

        def on_epoch_end(self, epoch, logs=None):  # in the end they are those of the best epoch
            self.mean = value(layer.moving_mean)

    look = Look()

    def recipe(task):
        yield recipes.Phase("all", select.everything(), epochs=4, learning_rate=1e-12, norms=norms)

    ftk.fine_tune(model, (x, y), validation_data=(x, y), recipe=recipe, callbacks=[look], verbose=0)
    assert layer.momentum == 0.99
    assert seen == [0.9 if norms else 0.99]
    moved_by = look.mean - before
    if not norms:
        assert not moved_by.any()
        return
    # After 32 batches of 8 all but 0.9 ** 32 of the difference is gone.
    network = model.get_layer("inner")
    inner = keras.Model(network.inputs, layer.input)
    batches = [value(inner(x[i : i + 8])) for i in range(0, 64, 8)]
    difference = np.concatenate(batches).mean((0, 1, 2)) - before
    np.testing.assert_allclose(moved_by, difference, rtol=0.1, atol=1e-3)


def test_a_fifth_is_held_out_in_proportion(data):
    x, y = images(30)
    y = np.where(np.arange(30) < 20, 0, 1)
    model, seen = compiled(), []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)

    history = ftk.fine_tune(
        model, (x, y), recipe="linear_probe", refit=False, callbacks=Look(), seed=1, verbose=0
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


def test_what_the_plan_prints_is_what_is_used(data, capsys):
    model, watch = compiled(), Weights()
    ftk.fine_tune(
        model, data[0], validation_data=data[1], recipe="lp_ft", callbacks=[watch], epochs=1
    )
    plan, text = model.history.plan, capsys.readouterr().out
    printed = {line.split()[0]: line for line in str(plan).splitlines()}
    assert str(plan) in text
    for name in ("batch_size", "epochs", "learning_rate", "layer_decay", "patience"):
        assert printed[name].split(":")[0].split()[1] == f"{getattr(plan, name):.3g}"
        assert plan.reasons[name] in printed[name]
    assert "time" in printed
    assert "phase 'probe': select.head() learns" in text
    assert f"best: {model.history.best}" in text
    assert model.history.params["steps"] == plan.steps == 5  # 36 in batches of 8
    assert float(model.optimizer.learning_rate) == pytest.approx(plan.learning_rate)
    shares = {row.rate for row in ftk.describe(model).rows if row.rate}
    assert min(shares) == pytest.approx(plan.learning_rate * plan.layer_decay**3)


def test_length_goes_by_the_number_of_examples(data):
    def epochs(n):
        x, y = np.zeros((n, 16, 16, 3), "float32"), np.arange(n) % 3
        plan = task_of(compiled(), ((x, y), data[1])).plan
        return plan.epochs, plan.batch_size

    assert [epochs(n) for n in (40, 4000)] == [(30, 8), (8, 32)]


def test_a_batch_shrinks_to_the_memory(data, monkeypatch):
    x, y = np.zeros((4000, 16, 16, 3), "float32"), np.arange(4000) % 3
    whole = compiled()
    ftk.thaw(whole, select.backbone())
    wanted = need(whole)  # of a step in which all learns, whatever does at first
    for fits, size in ((33, 32), (31, 16), (9, 8), (0, 1)):
        room = wanted.step(fits)
        monkeypatch.setattr("finetune_keras.recipes.plan.free", lambda r=room: (r, "the GPU"))
        plan = task_of(compiled(), ((x, y), data[1])).plan
        assert plan.batch_size == size
        assert ("free on the GPU" in plan.reasons["batch_size"]) is (size < 32)
        assert task_of(compiled(), ((x, y), data[1]), batch_size=64).plan.batch_size == 64


def test_rare_classes_get_weights_unless_told_otherwise():
    x, _ = images(66)
    y = np.where(np.arange(66) < 60, 0, np.arange(66) % 2 + 1)
    settings = {"validation_data": (x, y), "recipe": "linear_probe", "verbose": 0}
    model = compiled()
    history = ftk.fine_tune(model, (x, y), **settings)
    assert history.plan.class_weight == pytest.approx([66 / 180, 22 / 3, 22 / 3])
    assert history.best.monitor == "val_loss"
    assert model.loss.class_weight == pytest.approx([66 / 180, 22 / 3, 22 / 3])
    recall = np.mean(model.predict(x, verbose=0).argmax(1)[60:] == y[60:])
    other = compiled()
    assert ftk.fine_tune(other, (x, y), class_weight=False, **settings).plan.class_weight is None
    plain = np.mean(other.predict(x, verbose=0).argmax(1)[60:] == y[60:])
    assert recall >= plain
    own = ftk.fine_tune(compiled(), (x, y), class_weight={1: 3.0}, **settings).plan
    assert own.class_weight == (1.0, 3.0, 1.0)
    again = ftk.fine_tune(model, (x, y), **settings).plan  # its loss has them already
    assert "already" in again.reasons["class_weight"]
    few = ftk.fine_tune(
        compiled(), Batches(x, y), class_weight="balanced", **settings
    ).plan.class_weight
    assert few == pytest.approx([66 / 180, 22 / 3, 22 / 3])


def test_numbers_override_the_plan(data):
    history = ftk.fine_tune(
        compiled(),
        data[0],
        validation_data=data[1],
        recipe="linear_probe",
        epochs=np.int64(3),
        batch_size=np.int32(12),
        learning_rate=np.float32(0.01),
        monitor="val_loss",
        verbose=0,
    )
    assert history.history["phase"] == ["probe"] * 3  # trained: solving takes no epochs and rate
    assert history.params["steps"] == 3
    assert history.best.monitor == "val_loss"
    assert history.plan.reasons["epochs"] == history.plan.reasons["batch_size"] == "as given"


def test_gradual_thaws_from_the_end(data):
    model, watch = compiled(), Weights()
    before = snapshot(model)
    history = ftk.fine_tune(
        model,
        data[0],
        validation_data=data[1],
        recipe="gradual",
        epochs=4,
        callbacks=[watch],
        verbose=0,
    )
    phases = history.history["phase"]
    assert phases[0] == "probe"
    assert phases[-1] == "all"
    assert len(phases) == 5
    learn = watch.learn
    assert all(a < b or p == "all" for a, b, p in zip(learn, learn[1:], phases[1:], strict=False))
    assert learn[-1] == {p for p in learners(model) if not norms([p])}
    assert not moved(before, model) & norms(before)
    stem = [
        not np.array_equal(s["inner/stem_conv/kernel"], before["inner/stem_conv/kernel"])
        for s in watch.seen
    ]
    assert not any(stem[: phases.index("all") + 1])


def test_surgical_thaws_the_blocks_with_the_largest_gradients(data):
    model, watch = compiled(), Weights()
    kernel = next(u for u in ftk.graph.opened(model).units if u.path == "inner/block1_conv1/kernel")
    kernel.variable.assign(np.array(keras.ops.convert_to_numpy(kernel.variable)) * 1e-3)
    before = snapshot(model)
    history = ftk.fine_tune(
        model,
        data[0],
        validation_data=data[1],
        recipe="surgical",
        epochs=1,
        callbacks=[watch],
        verbose=0,
    )
    assert not moved(before, model) & norms(before)
    start = {p: v for p, v in watch.seen[1].items() if not head([p])}
    assert all(np.array_equal(v, before[p]) for p, v in start.items())  # measuring moves nothing
    chosen = watch.learn[1] - head(before)
    blocks = [{u.path for u in b.units} for b in ftk.blocks.blocks(model)]
    assert {i for i, b in enumerate(blocks) if b & chosen} < set(range(len(blocks)))
    assert moved(before, model) <= chosen | head(before)
    assert "relative gradients" in history.notes[0]


def test_relative_gradients_are_those_of_the_loss():
    from finetune_keras.recipes import measure

    model = chain()
    ftk.compile(model, optimizer="sgd", loss="mse", learning_rate=0.1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 6)).astype("float32"), rng.normal(size=(16, 3)).astype("float32")
    task = task_of(model, ((x, y), (x, y)))
    before = model.get_weights()
    found = measure.gradient_norms(task)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    a, a0, b, b0, c, c0 = (w.astype("float64") for w in before)
    h = np.tanh(x @ a + a0)
    g = np.tanh(h @ b + b0)
    out = 2 * (g @ c + c0 - y) / y.size
    back = (out @ c.T) * (1 - g**2)
    low = (back @ b.T) * (1 - h**2)
    expected = [
        np.sqrt((d**2).sum() + (e**2).sum()) / np.sqrt((w**2).sum() + (w0**2).sum())
        for d, e, w, w0 in [(x.T @ low, low.sum(0), a, a0), (h.T @ back, back.sum(0), b, b0)]
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_auto_keeps_the_first_quarter_where_it_serves(data):
    model, watch = compiled(), Weights()
    before = snapshot(model)
    # The mean colour tells the classes, and the stem passes it on.
    history = ftk.fine_tune(
        model, data[0], validation_data=data[1], epochs=1, callbacks=[watch], verbose=0
    )
    assert history.history["phase"] == ["probe", "after stem_relu"]
    assert "100% of the way and stay" in history.notes[0]
    learn = watch.learn[1] - head(before)
    assert {p.split("/")[1].split("_")[0] for p in learn} == {"block1", "block2"}
    assert not norms(learn)
    assert moved(before, model) <= watch.learn[1] | head(before)


def test_auto_trains_batch_normalised_networks_at_one_higher_rate(data):
    for given, rate in ((None, 3e-3), (1e-4, 1e-4)):  # of SGD
        _, phase = recipes.auto(task_of(compiled(), data, learning_rate=given))
        assert (phase.learning_rate, phase.layer_decay) == (pytest.approx(rate), None)
    model = of_curves()
    found = task_of(model, (curves(), curves()))
    _, phase = recipes.auto(found)
    assert phase.learning_rate == pytest.approx(1e-3)
    assert phase.layer_decay == found.plan.layer_decay is not None


def task_of(model, data, **given):
    from finetune_keras.recipes import examples, plan

    found = examples.examples(model, *data, None)
    names = ["epochs", "batch_size", "learning_rate", "class_weight", "patience"]
    made = plan.make(
        model,
        found,
        keras.optimizers.SGD(),
        recipe="auto",
        monitor="auto",
        refit=True,
        callbacks=[],
        timed=False,
        **dict.fromkeys(names) | given,
    )
    return recipes.Task(model, found, made, keras.optimizers.SGD())


def test_a_stage_that_forgets_has_the_loss_of_chance(data):
    from finetune_keras.recipes import measure

    model = compiled()
    for name in ("block2_short", "block2_conv1", "block2_conv2"):
        for unit in ftk.graph.opened(model).units:
            if unit.path == f"inner/{name}/kernel":
                unit.variable.assign(np.zeros(unit.variable.shape, "float32"))
    losses = measure.probe_losses(task_of(model, data))
    chance, *losses = losses
    assert len(losses) == 3
    assert chance == pytest.approx(np.log(3), abs=1e-3)
    assert losses[0] < 0.5 * losses[2]
    assert losses[2] == pytest.approx(chance, abs=1e-3)


@pytest.mark.parametrize(
    ("losses", "start", "why"),
    [
        ((1.1, 0.5, 0.6, 0.7), 1, "100% of the way and stay"),
        ((1.1, 0.86, 0.5, 0.4), 1, "34% of the way and stay"),
        ((1.1, 0.9, 0.4, 0.4), 0, "29% of the way, so everything is thawed"),
        ((1.1, 1.4, 0.4, 0.5), 0, " 0% of the way, so everything is thawed"),
        ((1.1, 1.4, 1.2, 1.3), 0, " 0% of the way, so everything is thawed"),
    ],
)
def test_auto_thaws_everything_unless_the_first_features_serve(
    data, monkeypatch, losses, start, why
):
    from finetune_keras.recipes import named

    task = task_of(compiled(), data)
    monkeypatch.setattr(named, "probe_losses", lambda task: losses)
    _, phase = recipes.auto(task)
    expected = {id(u.variable) for b in task.blocks[start:] for u in b.units}
    found = {id(u.variable) for u in select.resolve(task.model, phase.learn)}
    assert expected == found - {id(v) for v in task.model.layers[-1].weights}
    assert why in task.notes[0]


def test_auto_says_why_it_thaws_all_where_nothing_can_be_solved(data):
    model = classifier()
    model.compile("adam", keras.losses.CategoricalFocalCrossentropy(), metrics=["accuracy"])
    x, y = data[0]
    one_hot = np.eye(3, dtype="float32")
    history = ftk.fine_tune(
        model,
        (x, one_hot[y]),
        validation_data=(data[1][0], one_hot[data[1][1]]),
        epochs=1,
        verbose=0,
    )
    assert history.history["phase"] == ["probe", "all"]
    assert "cannot be compared" in history.notes[0]


def test_each_epoch_is_one_line_with_rate_and_time_left(data, capsys):
    ftk.fine_tune(compiled(), data[0], validation_data=data[1], recipe="lp_ft", epochs=3, seed=1)
    lines = capsys.readouterr().out.splitlines()
    told = [line.strip() for line in lines if line.startswith("  epoch ")]
    assert [line.split(":")[0] for line in told] == [
        "epoch 1/1",
        *(f"epoch {i}/3" for i in (1, 2, 3)),
    ]
    assert all("val_accuracy" in line and "loss" in line for line in told)
    assert "rate" not in told[0]
    assert "best so far" in told[0]
    assert all("; rate " in line for line in told[1:])
    assert all("left at most" in line for line in told[1:3])
    assert "left" not in told[3]
    phases = [line for line in lines if line.startswith("phase ")]
    assert len(phases) == 2
    assert lines.index(phases[1]) == lines.index("  " + told[0]) + 1


def test_a_long_epoch_says_how_far_it_is(data, capsys, monkeypatch):
    from finetune_keras.recipes import progress

    monkeypatch.setattr(progress, "_LONG", 0.0)
    settings = {"validation_data": data[1], "recipe": train_the_probe, "epochs": 1, "batch_size": 9}
    ftk.fine_tune(compiled(), data[0], **settings)
    out = capsys.readouterr().out
    for batch in (1, 2, 3, 4):
        assert f"  epoch 1: batch {batch} of 4, " in out
    assert "to its end; accuracy" in out


@pytest.mark.parametrize("verbose", [0, 2])
def test_silence_and_keras_own_bars(verbose, data, capsys):
    settings = {"validation_data": data[1], "recipe": "lp_ft", "epochs": 1, "verbose": verbose}
    ftk.fine_tune(compiled(), data[0], **settings)
    out = capsys.readouterr().out
    assert bool(out) == (verbose == 2)
    assert ("━" in out and "Epoch 2/2" in out) == (verbose == 2)
    assert "best so far" not in out


def test_tensorboard_sees_one_run(data, tmp_path):
    pytest.importorskip("tensorboard")  # which Keras writes by, through TensorFlow
    from tensorflow.compat.v1.train import summary_iterator

    board = keras.callbacks.TensorBoard(tmp_path)
    settings = {"validation_data": data[1], "recipe": "lp_ft", "epochs": 3, "verbose": 0}
    history = ftk.fine_tune(compiled(), data[0], callbacks=[board], **settings)
    seen = {}
    for path in sorted((tmp_path / "validation").iterdir()):
        for event in summary_iterator(str(path)):
            for point in event.summary.value:
                if point.tag == "epoch_loss":
                    seen[event.step] = np.frombuffer(point.tensor.tensor_content, "float32").item()
    assert list(seen) == history.epoch
    np.testing.assert_allclose(list(seen.values()), history.history["val_loss"], rtol=1e-6)
