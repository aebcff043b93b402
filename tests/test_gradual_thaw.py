"""Gradual thawing: when, what and at which rate; training goes on where it stopped, to the bit."""

import keras
import numpy as np
import pytest
from conftest import chain, images, learners, moved, residual, snapshot, vectors

import finetune_keras as ftk
from finetune_keras import graph, heads, optimizers, select
from finetune_keras.callbacks import GradualThaw, steps

TOP, MIDDLE, STEM = "block2_out", "block1_out", "stem_relu"


def built(optimizer="adam", **head):
    return ftk.build(
        ftk.backbone(residual()),
        heads.Classification(3, **head),
        freeze=select.backbone(),
        optimizer=optimizer,
    )


def train(model, *callbacks, epochs=4, first=0, **given):
    x, y = images()
    return model.fit(
        x,
        y,
        batch_size=4,
        epochs=epochs,
        initial_epoch=first,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **given,
    )


def plan(thawing):
    return [(t.epoch, t.blocks) for t in thawing.history]


def open_blocks(model):
    on = {
        u.path.split("/")[1].split("_")[0]
        for u in graph.opened(model).units
        if u.variable.trainable and "/" in u.path and u.path.startswith("residual")
    }
    return sorted(on)


def equal(one, other):
    left, right = snapshot(one), snapshot(other)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


class Watch(keras.callbacks.Callback):
    """What moved in each epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.before = snapshot(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.found = [*getattr(self, "found", []), moved(self.before, self.model)]


def test_each_epoch_a_block_more_learns_and_nothing_else():
    model, thawing, watch = built(), GradualThaw(verbose=0), Watch()
    history = train(model, thawing, watch)
    assert plan(thawing) == [(1, (TOP,)), (2, (MIDDLE,)), (3, (STEM,))]
    tops = [{p.split("/")[-2].split("_")[0] for p in paths} for paths in watch.found]
    assert tops == [
        {"ftk"},
        {"ftk", "block2"},
        {"ftk", "block2", "block1"},
        {"ftk", "block2", "block1", "stem"},
    ]
    assert not any("_bn" in p for paths in watch.found for p in paths)
    assert len(history.history["accuracy"]) == 4


def test_norms_thaw_on_request():
    model, watch = built(), Watch()
    train(model, GradualThaw(norms=True), watch, epochs=2)
    assert {"residual/block2_bn/gamma", "residual/block2_bn/moving_mean"} <= watch.found[1]
    assert "residual/block1_bn/gamma" not in watch.found[1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"every": 2}, [(2, (TOP,))]),
        ({"every": np.int64(3)}, [(3, (TOP,))]),
        ({"at": [0, 3]}, [(0, (TOP,)), (3, (MIDDLE,))]),
        ({"at": np.array([1, 2])}, [(1, (TOP,)), (2, (MIDDLE,))]),
        ({"thaws": 1}, [(1, (TOP,))]),
        ({"by": "stage"}, [(1, (TOP,)), (2, (MIDDLE, STEM))]),
    ],
)
def test_when_and_what(given, expected):
    thawing = GradualThaw(**given)
    train(built("sgd"), thawing)
    assert plan(thawing) == expected


def test_on_a_plateau():
    class Scripted(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_score"] = [1.0, 2.0, 2.0, 2.0, 2.5, 2.5, 2.5][epoch]

    thawing = GradualThaw(patience=2, monitor="val_score", mode="max")
    train(built("sgd"), Scripted(), thawing, epochs=7)
    assert plan(thawing) == [(4, (TOP,))]  # no gain in epochs 2 and 3
    thawing = GradualThaw(patience=1, monitor="val_score", mode="max", min_delta=0.6)
    train(built("sgd"), Scripted(), thawing, epochs=7)
    assert [e for e, _ in plan(thawing)] == [3, 4, 5]


def test_a_plateau_of_what_is_not_reported_is_said():
    with pytest.warns(UserWarning, match="'val_loss', which is not reported.*'loss'"):
        train(built("sgd"), GradualThaw(patience=1), epochs=1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [1e-5, 1e-5, 1e-5]),
        ({"decay": 0.5}, [1e-5, 5e-6, 2.5e-6]),
        ({"learning_rate": 1e-3, "decay": 0.1}, [1e-3, 1e-4, 1e-5]),
        ({"learning_rate": [3e-4, 1e-4]}, [3e-4, 1e-4, 1e-4]),
        ({"learning_rate": np.array([3e-4, 1e-4])}, [3e-4, 1e-4, 1e-4]),
        ({"learning_rate": lambda n: 1e-3 / n}, [1e-3, 5e-4, 1e-3 / 3]),
    ],
)
def test_rates(given, expected):
    model, thawing = built(), GradualThaw(**given)
    train(model, thawing)
    np.testing.assert_allclose([t.learning_rate for t in thawing.history], expected, rtol=1e-6)
    np.testing.assert_allclose(optimizers.rate(model.optimizer), expected[-1], rtol=1e-6)


def test_a_schedule_begins_at_the_first_thaw_and_goes_on():
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-2, 3, 0.5, staircase=True)
    model = built()
    thawing = GradualThaw(learning_rate=schedule, at=[1, 3])
    train(model, thawing, epochs=5)  # of three steps each
    assert plan(thawing) == [(1, (TOP,)), (3, (MIDDLE,))]
    assert optimizers.scheduled(model.optimizer)
    np.testing.assert_allclose(optimizers.rate(model.optimizer), 1e-2 * 0.5**4, rtol=1e-6)


def test_each_schedule_of_a_list_begins_at_its_thaw():
    halves = [
        keras.optimizers.schedules.ExponentialDecay(rate, 3, 0.5, staircase=True)
        for rate in (1e-2, 1e-3)
    ]
    model = built()
    train(model, GradualThaw(learning_rate=halves, at=[1, 3]), epochs=5)
    np.testing.assert_allclose(optimizers.rate(model.optimizer), 1e-3 * 0.5**2, rtol=1e-6)


def test_what_learns_is_what_thaw_by_hand_gives():
    model, by_hand = built(), built()
    by_hand.set_weights(model.get_weights())
    train(model, GradualThaw(decay=0.5), epochs=3)
    train(by_hand, epochs=1)
    ftk.thaw(by_hand, select.blocks(slice(-1, None)))
    train(by_hand, epochs=2, first=1)
    ftk.thaw(by_hand, select.blocks(slice(-2, None)), learning_rate=5e-6)
    train(by_hand, epochs=3, first=2)
    equal(model, by_hand)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_second_fit_with_a_fresh_callback_goes_on(stop):
    whole, parted = built(), built()
    parted.set_weights(whole.get_weights())
    train(whole, GradualThaw(decay=0.5))
    train(parted, GradualThaw(decay=0.5), epochs=stop)
    second = GradualThaw(decay=0.5)
    train(parted, second, first=stop)
    assert [e for e, _ in plan(second)] == list(range(stop, 4))
    equal(whole, parted)


def test_a_loaded_model_goes_on(tmp_path):
    whole, parted = built(), built()
    parted.set_weights(whole.get_weights())
    train(whole, GradualThaw(decay=0.5))
    train(parted, GradualThaw(decay=0.5), epochs=3)
    parted.save(tmp_path / "parted.keras")
    loaded = ftk.load(tmp_path / "parted.keras")
    train(loaded, GradualThaw(decay=0.5), first=3)
    equal(whole, loaded)


class Fails(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("order", ["thaw first", "backup first"])
def test_a_backup_is_restored_into_a_fresh_model(tmp_path, order):
    whole, parted, fresh = built(), built(), built()
    for model in (parted, fresh):
        model.set_weights(whole.get_weights())
    train(whole, GradualThaw(decay=0.5))

    def callbacks():
        both = [GradualThaw(decay=0.5), keras.callbacks.BackupAndRestore(tmp_path / "backup")]
        return both if order == "thaw first" else both[::-1]

    with pytest.raises(KeyboardInterrupt):
        train(parted, *callbacks(), Fails(3))
    again = callbacks()
    train(fresh, *again)
    thawing = next(c for c in again if isinstance(c, GradualThaw))
    assert plan(thawing) == [(3, (STEM,))]
    equal(whole, fresh)


def test_a_plateau_survives_a_backup(tmp_path):
    class Scripted(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = [2.0, 1.0, 1.0, 1.0, 1.0, 1.0][epoch]

    def callbacks():
        thawing = GradualThaw(patience=4, monitor="score", mode="max")
        return [Scripted(), thawing, keras.callbacks.BackupAndRestore(tmp_path / "backup")]

    with pytest.raises(KeyboardInterrupt):
        train(built("sgd"), *callbacks(), Fails(3), epochs=6)
    again = callbacks()
    train(built("sgd"), *again, epochs=6)
    assert plan(again[1]) == [(5, (TOP,))]


def test_files_saved_meanwhile_are_plain(tmp_path):
    model = built()
    train(model, GradualThaw(), keras.callbacks.ModelCheckpoint(tmp_path / "at_{epoch}.keras"))
    x, _ = images()
    for epoch, blocks in ((1, 0), (3, 2)):
        plain = keras.models.load_model(tmp_path / f"at_{epoch}.keras", compile=False)
        loaded = ftk.load(tmp_path / f"at_{epoch}.keras")
        np.testing.assert_array_equal(plain.predict(x, verbose=0), loaded.predict(x, verbose=0))
        assert len(open_blocks(loaded)) == blocks
    assert not [name for name in vars(model) if name.startswith("ftk_")]


def test_other_callbacks_see_the_same_training(tmp_path):
    model, x, y = built(), *images()
    reduce = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=100.0)
    stop = keras.callbacks.EarlyStopping(
        "loss", patience=4, min_delta=100.0, restore_best_weights=True
    )
    csv = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = train(
        model, GradualThaw(), reduce, stop, csv, epochs=9, validation_data=(x, y)
    ).history
    assert len(history["loss"]) == 5  # stopped after four epochs without such a gain
    rates = history["learning_rate"]
    # The head's rate; halved, and down to the open rate with the first thaw; halved from there.
    np.testing.assert_allclose(rates[:2], [1e-3, 1e-5], rtol=1e-6)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 1e-5
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 6
    found = model.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["loss"], history["val_loss"][0], rtol=1e-4)


def test_metrics_go_on(capsys):
    model = ftk.build(
        ftk.backbone(residual()),
        heads.Classification(3),
        freeze=select.backbone(),
        metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
    )
    history = train(model, GradualThaw(verbose=1), epochs=3).history
    assert list(history) == ["loss", "top2"]
    assert len(history["top2"]) == 3
    lines = [x for x in capsys.readouterr().out.splitlines() if "thaw" in x]
    assert lines == [
        "Epoch 2: thawed block2_out, learning rate 1e-05",
        "Epoch 3: thawed block1_out, learning rate 1e-05",
    ]


def test_a_model_of_ones_own():
    model = chain()
    ftk.freeze(model, select.up_to("b"))
    model.compile("sgd", "mse")
    x, y = vectors()
    thawing = GradualThaw()
    model.fit(x, y, epochs=3, verbose=0, callbacks=[thawing])
    assert plan(thawing) == [(1, ("b",)), (2, ("a",))]
    assert learners(model) == {f"{n}/{w}" for n in "abc" for w in ("kernel", "bias")}


def test_nothing_to_thaw_is_said():
    model = built()
    ftk.thaw(model, select.everything())
    with pytest.warns(UserWarning, match="nothing to thaw in 'residual_fine_tuned'.*freeze"):
        train(model, GradualThaw(), epochs=1)


def test_stages_of_a_model_without_maps():
    model = chain()
    ftk.freeze(model, select.up_to("b"))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="all blocks of 'chain' have in common.*by='block'"):
        model.fit(*vectors(), verbose=0, callbacks=[GradualThaw("stage")])


def classifier_of_texts():
    """A KerasHub task with a transformer layer, without dropout, and its texts and labels."""
    keras_hub = pytest.importorskip("keras_hub")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.tokenizers.BertTokenizer(words), sequence_length=6
    )
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dropout=0.0,
        max_sequence_length=6,
        name="bert",
    )
    task = keras_hub.models.BertTextClassifier(
        backbone=backbone, num_classes=2, preprocessor=preprocessor, dropout=0.0
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    task.compile(keras.optimizers.Adam(1e-2), loss)
    ftk.freeze(task, select.backbone())
    return task, np.array(["good film", "bad film", "film", "good good"]), np.array([1, 0, 0, 1])


def test_a_transformer_has_no_stages():
    task, x, y = classifier_of_texts()
    with pytest.raises(ValueError, match="all blocks of 'bert_text_classifier.*by='block'"):
        task.fit(x, y, verbose=0, callbacks=[GradualThaw("stage")])


def test_a_classifier_of_texts_goes_on_in_the_middle(tmp_path):
    whole, x, y = classifier_of_texts()
    parted, fresh = classifier_of_texts()[0], classifier_of_texts()[0]
    for model in (parted, fresh):
        model.set_weights(whole.get_weights())
    given = {"x": x, "y": y, "batch_size": 2, "shuffle": False, "verbose": 0}

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    thawing = GradualThaw(decay=0.5)
    whole.fit(**given, epochs=3, callbacks=[thawing])
    assert plan(thawing) == [(1, ("pooled_dense",)), (2, ("transformer_layer_0",))]
    with pytest.raises(KeyboardInterrupt):
        parted.fit(**given, epochs=3, callbacks=[GradualThaw(decay=0.5), backup(), Fails(2)])
    again = GradualThaw(decay=0.5)
    fresh.fit(**given, epochs=3, callbacks=[again, backup()])
    assert plan(again) == [(2, ("transformer_layer_0",))]
    equal(whole, fresh)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "layer"}, "by is 'block' or 'stage'; given 'layer'"),
        ({"every": 1, "patience": 1}, "every= n epochs, at= given epochs, or after patience="),
        ({"every": 0}, "every must be an integer of 1 or more; given 0"),
        ({"every": True}, "every must be an integer"),
        ({"patience": 1.5}, "patience must be an integer of 1 or more; given 1.5"),
        ({"at": [3, 1]}, "at lists epochs from 0, each later"),
        ({"at": []}, "at lists epochs"),
        ({"at": 3}, r"such as \[1, 3, 6\]; given 3"),
        ({"patience": 1, "mode": "up"}, "mode is 'auto', 'min' or 'max'; given 'up'"),
        ({"decay": 0}, "decay is a factor above 0; given 0"),
        ({"decay": 0.5, "learning_rate": [1e-3]}, "decay= goes with one learning rate"),
        ({"learning_rate": -1.0}, "learning_rate takes a positive number"),
        ({"learning_rate": []}, "learning_rate has no rate in it"),
        ({"learning_rate": "fast"}, "learning_rate is a number, a list or a function"),
        ({"thaws": 0}, "thaws must be an integer of 1 or more; given 0"),
    ],
)
def test_errors(given, message):
    with pytest.raises(ValueError, match=message):
        GradualThaw(**given)


def test_a_stage_ends_with_its_pooling():
    base = residual()
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(base.output)
    model = keras.Model(base.input, keras.layers.Dense(3)(pooled))
    assert [s.blocks for s in steps.steps(model, "stage")] == [("pool",), (MIDDLE, STEM)]
    inside = ftk.build(keras.Model(base.input, pooled), heads.Classification(3))
    assert [s.blocks for s in steps.steps(inside, "stage")] == [("pool",), (MIDDLE, STEM)]


def test_stages_of_unknown_size_are_said():
    network = residual(size=None)
    with pytest.raises(ValueError, match="has maps of unknown size: give .* input_shape"):
        steps.steps(network, "stage")


def test_steps_leave_out_what_cannot_learn():
    model = built()
    with_norms = steps.steps(model, norms=True)
    without = steps.steps(model)
    assert [s.blocks for s in with_norms] == [s.blocks for s in without]
    assert all(a.variables < b.variables for a, b in zip(without, with_norms, strict=True))


def cached(model, *callbacks, epochs=4, first=0, **given):
    x, y = images()
    return ftk.fit(
        model,
        x,
        y,
        batch_size=4,
        epochs=epochs,
        initial_epoch=first,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **given,
    )


class Told(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        self.seen.append("begin")

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(epoch)

    def on_train_end(self, logs=None):
        self.seen.append("end")


def close(one, other):
    left, right = snapshot(one), snapshot(other)
    for path in left:
        np.testing.assert_allclose(left[path], right[path], rtol=2e-4, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("given", [{}, {"at": [1, 3]}], ids=["every", "at"])
def test_cached_training_is_the_same(given):
    plain, model = built("sgd"), built("sgd")
    model.set_weights(plain.get_weights())
    x, y = images()
    told, thawing = Told(), GradualThaw(learning_rate=1e-3, **given)
    expected = train(plain, GradualThaw(learning_rate=1e-3, **given), validation_data=(x, y))
    found = cached(model, thawing, told, validation_data=(x, y))
    assert [e for e, _ in plan(thawing)] == given.get("at", [1, 2, 3])
    assert told.seen == ["begin", 0, 1, 2, 3, "end"]
    assert found is model.history
    assert found.epoch == [0, 1, 2, 3]
    for name, values in expected.history.items():
        np.testing.assert_allclose(found.history[name], values, rtol=1e-3, err_msg=name)
    close(plain, model)


def test_cached_training_computes_each_frozen_part_once(tmp_path):
    model = built("sgd")
    cached(model, GradualThaw(at=[1, 3]), cache=tmp_path / "kept", epochs=5)
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        "thawed_1",
        "thawed_2",
        "train",
    ]
    shapes = [
        np.load(next((tmp_path / "kept" / stage).glob("features*.npy"))).shape[1:]
        for stage in ("train", "thawed_1/train", "thawed_2/train")
    ]
    assert [len(s) for s in shapes] == [1, 3, 3]  # after the pooling, and maps from there on


def test_cached_training_stops_and_restores_once():
    model, stop = (
        built("sgd"),
        keras.callbacks.EarlyStopping(
            "loss", patience=3, min_delta=100.0, restore_best_weights=True
        ),
    )

    class First(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.after = snapshot(self.model) if epoch == 0 else self.after

    first = First()
    found = cached(model, GradualThaw(), first, stop, epochs=9)
    assert found.epoch == [0, 1, 2, 3]
    assert stop.best_epoch == 0
    assert stop.stopped_epoch == 3
    assert not moved(first.after, model)


def test_cached_training_on_a_plateau():
    class Scripted(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = [2.0, 1.0, 1.0, 1.0, 1.0][epoch]

    thawing = GradualThaw(patience=2, monitor="score", mode="max")
    found = cached(built("sgd"), Scripted(), thawing, epochs=5)
    assert plan(thawing) == [(3, (TOP,))]
    assert found.epoch == [0, 1, 2, 3, 4]


def test_cached_training_goes_on_from_a_backup(tmp_path):
    whole, parted, fresh = built(), built(), built()
    for model in (parted, fresh):
        model.set_weights(whole.get_weights())
    cached(whole, GradualThaw())
    backup = keras.callbacks.BackupAndRestore
    with pytest.raises(KeyboardInterrupt):
        cached(parted, GradualThaw(), backup(tmp_path / "backup"), Fails(3))
    told = Told()
    cached(fresh, GradualThaw(), backup(tmp_path / "backup"), told)
    assert told.seen == ["begin", 3, "end"]
    equal(whole, fresh)


def test_an_evaluation_right_after_is_of_its_data_alone():
    """The objects of the metrics go through each thaw, and what they counted does not."""
    model, (x, y) = built(), images()
    train(model, GradualThaw(), epochs=3)
    ftk.compile(model, learning_rate=1e-4)
    found = model.evaluate(x[:5], y[:5], verbose=0, return_dict=True)
    right = (model.predict(x[:5], verbose=0).argmax(1) == y[:5]).mean()
    np.testing.assert_allclose(found["accuracy"], right, rtol=1e-6)
    assert found["loss"] > 0


@pytest.mark.parametrize("ema", [False, 0.5])
def test_rates_by_depth_and_averages_go_through_thaws(ema):
    found = []
    for fit in (keras.Model.fit, ftk.fit):
        keras.utils.set_random_seed(7)
        model = built(optimizer="sgd")
        model = ftk.compile(model, layer_decay=0.5, learning_rate=0.01)
        callbacks = [GradualThaw(learning_rate=0.01)]
        if ema:
            ftk.compile(model, ema_momentum=ema)
            callbacks.insert(0, ftk.callbacks.EMA())
        x, y = images()
        history = fit(
            model,
            x,
            y,
            batch_size=4,
            epochs=3,
            shuffle=False,
            verbose=0,
            validation_data=(x, y),
            callbacks=callbacks,
        )
        scaled = optimizers.layerwise_of(model.optimizer)
        stem = model.get_layer("residual").get_layer("stem_conv").kernel
        assert scaled.multiplier(stem) == 0.5**3
        found.append((snapshot(model), history.history["val_loss"]))
    for path, w in found[0][0].items():
        np.testing.assert_allclose(w, found[1][0][path], rtol=1e-4, atol=1e-5, err_msg=path)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)
