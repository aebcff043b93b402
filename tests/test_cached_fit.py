"""``fit`` with the frozen part computed once is ``model.fit``."""

import gc
import weakref

import keras
import numpy as np
import pytest
from conftest import chain, images, residual, same, value, vectors

import finetune_keras as ftk
from finetune_keras import heads, select
from finetune_keras.cache import FeatureSet, forward

layers = keras.layers


def built(freeze=None, *, head=None, **settings):
    keras.utils.set_random_seed(1)
    head = head or heads.Classification(3, hidden=[8])
    settings = {"optimizer": "adam", "learning_rate": 1e-2, **settings}
    freeze = select.backbone() if freeze is None else freeze
    return ftk.build(ftk.backbone(residual()), head, freeze=freeze, **settings)


def state(model):
    return [value(v) for v in (*model.weights, *model.optimizer.variables)]


def compare(make, given, *, atol=1e-5, **settings):
    """Trains two equal models, one with the cache, and asserts that nothing differs."""
    settings = {"epochs": 3, "verbose": 0, "shuffle": False, **settings}
    histories, states = [], []
    for function in (lambda m, *a, **k: m.fit(*a, **k), ftk.fit):
        model = make()
        keras.utils.set_random_seed(2)
        histories.append(function(model, *given(), **settings))
        states.append(state(model))
    assert histories[0].history.keys() == histories[1].history.keys()
    for name, values in histories[0].history.items():
        np.testing.assert_allclose(histories[1].history[name], values, rtol=1e-4, atol=1e-5)
    assert histories[0].epoch == histories[1].epoch
    for one, other in zip(*states, strict=True):
        same(other, one, atol=atol)
    return model, histories[1]


@pytest.fixture
def ran_once(monkeypatch):
    """Counts the examples that go through a frozen part."""
    seen = []
    arrays = forward.Pass._arrays

    def counting(self, batch, number):
        seen.append(batch.size)
        return arrays(self, batch, number)

    monkeypatch.setattr(forward.Pass, "_arrays", counting)
    return seen


def test_weights_history_and_optimizer_are_those_of_fit(ran_once):
    x, y = images(50)
    weights = {0: 1.0, 1: 3.0, 2: 0.5}
    settings = {"validation_split": 0.2, "batch_size": 8, "class_weight": weights}
    model, history = compare(built, lambda: (x, y), **settings)
    assert sum(ran_once) == 50
    assert model.history is history
    assert int(value(model.optimizer.iterations)) == 15


@pytest.mark.parametrize(("size", "batches"), [(None, 2), (3, 4)])
def test_validation_is_in_batches_of_its_own_size(size, batches):
    class Count(keras.callbacks.Callback):
        seen = 0

        def on_test_batch_end(self, batch, logs=None):
            self.seen += 1

    x, y = images(24)
    for fit in (lambda m, *a, **k: m.fit(*a, **k), ftk.fit):
        count = Count()
        settings = {"validation_data": (x[12:], y[12:]), "validation_batch_size": size}
        fit(built(), x[:12], y[:12], batch_size=8, callbacks=[count], verbose=0, **settings)
        assert count.seen == batches


def test_training_goes_on_with_plain_fit():
    x, y = images(24)
    ends = []
    for function in (keras.Model.fit, ftk.fit):
        model = built()
        function(model, x, y, epochs=2, verbose=0, shuffle=False)
        model.fit(x, y, epochs=2, verbose=0, shuffle=False)
        ends.append(state(model))
    for one, other in zip(*ends, strict=True):
        same(other, one, atol=1e-5)


def test_a_frontier_in_the_middle_and_weights_of_examples():
    x, y = images(24)
    w = np.linspace(0.1, 2.0, 24)
    compare(
        lambda: built(select.backbone() & select.up_to("block1_out")),
        lambda: (x, y),
        sample_weight=w,
        validation_data=(x, y, w),
        validation_freq=2,
        atol=1e-4,
    )


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset", "dict"])
def test_what_fit_takes_it_takes(kind):
    x, y = images(24)
    if kind == "dict":
        given = lambda: ({"image": x}, y)  # noqa: E731
        make = lambda: named()  # noqa: E731
    elif kind == "tf.data":
        import tensorflow as tf

        given = lambda: (tf.data.Dataset.from_tensor_slices((x, y)).batch(5),)  # noqa: E731
        make = built
    else:

        class Batches(keras.utils.PyDataset):
            num_batches = 4

            def __getitem__(self, i):
                return x[i * 6 : i * 6 + 6], y[i * 6 : i * 6 + 6], np.ones(6)

        given, make = lambda: (Batches(),), built
    compare(make, given, validation_data=given()[0] if kind != "dict" else None)


def named():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 3), name="image")
    base = residual()
    base.trainable = False
    outputs = layers.Dense(3, activation="softmax")(layers.GlobalMaxPooling2D()(base(inputs)))
    model = keras.Model({"image": inputs}, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_a_generator_is_read_for_one_epoch(ran_once):
    x, y = images(24)

    def endless():
        while True:
            yield x[:12], y[:12]
            yield x[12:], y[12:]

    model = built()
    history = ftk.fit(model, endless(), epochs=3, steps_per_epoch=2, verbose=0)
    assert len(history.history["loss"]) == 3
    assert sum(ran_once) == 24
    assert int(value(model.optimizer.iterations)) == 6


def test_every_epoch_has_its_own_order_and_shuffle_false_none():
    x, y = images(24)
    for given in ((x, y, 8), (_dataset(x, y),)):
        ends = []
        for shuffle in (True, False, False):
            model = built()
            keras.utils.set_random_seed(5)
            ftk.fit(model, *given, epochs=2, verbose=0, shuffle=shuffle)
            ends.append(value(model.trainable_variables[0]))
        assert not np.allclose(ends[0], ends[1], atol=1e-6)
        np.testing.assert_array_equal(ends[1], ends[2])


def _dataset(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def test_steps_per_epoch_of_data_with_an_end():
    x, y = images(24)
    compare(built, lambda: (_dataset(x, y).repeat(5),), steps_per_epoch=2, epochs=2)


class Watch(keras.callbacks.Callback):
    """What a callback sees."""

    def __init__(self):
        super().__init__()
        self.seen, self.calls = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("batch", batch))
        self.seen.append(value(self.model.trainable_variables[0]))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch", epoch, tuple(sorted(logs))))
        self.predicted = self.model.predict(images(4)[0], verbose=0)


def test_callbacks_see_the_model(tmp_path):
    x, y = images(24)
    model, watch = built(), Watch()
    others = [
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="loss"),
        keras.callbacks.LearningRateScheduler(lambda epoch: 10.0 ** -(epoch + 2)),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        keras.callbacks.TerminateOnNaN(),
    ]
    before = value(model.trainable_variables[0])
    ftk.fit(model, x, y, epochs=2, batch_size=12, verbose=0, callbacks=[watch, *others])
    assert watch.model is model
    assert not np.array_equal(watch.seen[0], before)  # moves from batch to batch
    assert not np.array_equal(watch.seen[1], watch.seen[0])
    assert [c[:2] for c in watch.calls].count(("batch", 1)) == 2
    same(watch.predicted, model.predict(images(4)[0], verbose=0), atol=1e-6)
    loaded = keras.models.load_model(tmp_path / "best.keras")
    same(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)
    assert round(float(value(model.optimizer.learning_rate)), 6) == 1e-3
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


def test_early_stopping_stops_and_restores():
    x, y = images(24)
    settings = {"monitor": "val_loss", "patience": 1, "restore_best_weights": True, "mode": "max"}
    _model, history = compare(
        built,
        lambda: (x, y),
        validation_split=0.25,
        epochs=20,
        callbacks=[keras.callbacks.EarlyStopping(**settings)],
    )
    assert len(history.epoch) < 20


def test_backup_and_restore_goes_on_at_its_epoch(tmp_path):
    x, y = images(24)

    class Fail(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("killed")

    backup = lambda: keras.callbacks.BackupAndRestore(tmp_path / "backup")  # noqa: E731
    with pytest.raises(RuntimeError, match="killed"):
        ftk.fit(built(), x, y, epochs=4, verbose=0, shuffle=False, callbacks=[backup(), Fail()])
    model = built()
    history = ftk.fit(model, x, y, epochs=4, verbose=0, shuffle=False, callbacks=[backup()])
    assert history.epoch == [2, 3]
    whole = built()
    ftk.fit(whole, x, y, epochs=4, verbose=0, shuffle=False)
    for one, other in zip(state(model), state(whole), strict=True):
        same(one, other, atol=1e-5)


def test_a_callback_that_fails_leaves_a_usable_model():
    x, y = images(24)

    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("no")

    model = built()
    for fail in (True, False):
        if fail:
            with pytest.raises(RuntimeError, match="no"):
                ftk.fit(model, x, y, verbose=0, callbacks=[Fail()])
        else:
            ftk.fit(model, x, y, verbose=0)
            model.fit(x, y, verbose=0)
        assert np.isfinite(model.predict(x, verbose=0)).all()
    assert "jax_state_sync" not in vars(model)


def test_several_heads_by_a_dict_with_uncertainty():
    x, y = images(24)
    head = heads.Multi(
        {"kind": heads.Classification(3), "size": heads.Regression()}, weights="uncertainty"
    )
    labels = {"kind": y, "size": y.astype("float32")}
    compare(lambda: built(head=head), lambda: (x, labels), validation_split=0.25, atol=1e-4)


def test_half_precision_and_scaled_losses():
    x, y = images(24)

    def make():
        keras.utils.set_random_seed(1)
        base = ftk.backbone(residual(), dtype="mixed_float16")
        head = heads.Classification(3)
        return ftk.build(base, head, freeze=select.backbone(), optimizer="adam")

    model, _ = compare(make, lambda: (x, y), atol=1e-3)
    assert model.optimizer.get_config()


def test_a_task_takes_its_raw_texts():
    import keras_hub

    def make():
        keras.utils.set_random_seed(1)
        tokenizer = keras_hub.tokenizers.BertTokenizer(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
        )
        pre = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=6)
        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            max_sequence_length=6,
            dropout=0.0,
        )
        backbone.trainable = False
        task = keras_hub.models.BertTextClassifier(
            backbone=backbone, num_classes=2, preprocessor=pre, dropout=0.0
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        task.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
        return task

    texts = ["good film", "bad film", "film", "good good"] * 4
    compare(make, lambda: (texts, np.array([1, 0, 0, 1] * 4)), batch_size=8, epochs=2)


def test_the_cache_in_a_folder_serves_the_next_run(tmp_path, ran_once):
    x, y = images(24)
    for times in (1, 1):
        ftk.fit(built(), x, y, epochs=2, validation_split=0.25, verbose=0, cache=tmp_path / "c")
        assert sum(ran_once) == 24 * times
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["train", "validation"]


def test_memory_bounds_what_training_reads_too(tmp_path, monkeypatch):
    x, y = images(24)
    read = []
    dataset = FeatureSet.dataset
    monkeypatch.setattr(
        FeatureSet, "dataset", lambda self, *a, **k: read.append(1) or dataset(self, *a, **k)
    )
    ftk.fit(built(), x, y, verbose=0, cache=tmp_path, memory=100)
    assert read == [1]  # from the files, not loaded
    ftk.fit(built(), x, y, verbose=0, cache=tmp_path)
    assert read == [1]


def test_features_in_half_precision_train_too():
    x, y = images(24)
    exact, half = built(), built()
    ftk.fit(exact, x, y, epochs=2, verbose=0, shuffle=False)
    ftk.fit(half, x, y, epochs=2, verbose=0, shuffle=False, dtype="float16")
    for one, other in zip(exact.trainable_variables, half.trainable_variables, strict=True):
        same(one, value(other), atol=2e-2)


def test_a_probe_is_solved():
    x, y = images(60)
    x += np.random.default_rng(0).normal(0, 30, x.shape).astype("float32")
    trained, probe = (built(head=heads.Classification(3)) for _ in range(2))
    steps = int(value(probe.optimizer.iterations))
    seen = Watch()
    ftk.fit(trained, x, y, epochs=60, verbose=0, validation_split=0.5)
    history = ftk.fit(
        probe, x, y, verbose=0, validation_split=0.5, solver="lbfgs", callbacks=[seen]
    )
    assert history.epoch == [0]
    assert history.history["val_loss"][0] <= 1.05 * min(trained.history.history["val_loss"])
    loss = probe.evaluate(x[30:], y[30:], verbose=0)[0]
    assert loss == pytest.approx(history.history["val_loss"][0], rel=1e-3)
    assert history.solution.converged
    assert int(value(probe.optimizer.iterations)) == steps
    assert seen.calls == [("epoch", 0, ("accuracy", "loss", "val_accuracy", "val_loss"))]


def test_a_solved_probe_knows_weights_of_classes():
    x, y = images(60)
    plain, heavy = (built(head=heads.Classification(3)) for _ in range(2))
    ftk.fit(plain, x, y, verbose=0, solver="lbfgs")
    ftk.fit(heavy, x, y, verbose=0, solver="lbfgs", class_weight={0: 1.0, 1: 50.0, 2: 1.0})
    mean = [m.predict(x, verbose=0)[:, 1].mean() for m in (plain, heavy)]
    assert mean[1] > mean[0]


def test_what_cannot_be_solved_is_said_before_the_pass(ran_once):
    x, y = images(12)
    with pytest.raises(ValueError, match="no solver 'newton'.*'lbfgs'"):
        ftk.fit(built(), x, y, solver="newton")
    with pytest.raises(ValueError, match="one dense layer"):
        ftk.fit(built(select.nothing()), x, y, solver="lbfgs")
    with pytest.raises(ValueError, match="hidden|two|2"):
        ftk.fit(built(), x, y, solver="lbfgs")
    assert ran_once == []


def test_augmentation_becomes_views():
    x, y = images(24)
    make = lambda: built(augment=layers.RandomTranslation(0.4, 0.4))  # noqa: E731
    with pytest.warns(UserWarning, match="augmentation .* is off .* views=4"):
        ftk.fit(make(), x, y, verbose=0)
    losses = ftk.fit(make(), x, y, epochs=4, verbose=0, views=2, shuffle=False, batch_size=24)
    model = make()
    rate = model.optimizer.learning_rate
    rate.assign(0.0)
    history = ftk.fit(model, x, y, epochs=4, verbose=0, views=2, batch_size=24).history["loss"]
    assert history[0] == pytest.approx(history[2], abs=1e-6)  # the first view again
    assert abs(history[0] - history[1]) > 1e-6
    assert len(losses.history["loss"]) == 4


def test_plain_fit_where_nothing_is_frozen_or_can_be_read(ran_once):
    x, y = vectors()
    model = chain()
    model.compile("sgd", "mse")
    assert len(ftk.fit(model, x, y, epochs=2, verbose=0).epoch) == 2

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.low, self.high = layers.Dense(4, trainable=False), layers.Dense(3)

        def call(self, x):
            return self.high(self.low(x))

    own = Own()
    own(x)
    own.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="plain model.fit.*call of its own"):
        ftk.fit(own, x, y, verbose=0)

    class Loss(keras.Model):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    inputs = keras.Input((6,))
    low = layers.Dense(4, trainable=False)(inputs)
    other = Loss(inputs, layers.Dense(3)(low))
    other.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="Loss has a compute_loss of its own"):
        ftk.fit(other, x, y, verbose=0)
    penal = layers.Dense(4, trainable=False, activity_regularizer="l2", name="low")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(penal))
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="'low' adds a loss"):
        ftk.fit(model, x, y, verbose=0)
    assert ran_once == []


def test_a_model_goes_when_nobody_holds_it():
    x, y = images(12)
    model = built()
    ftk.fit(model, x, y, verbose=0)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_cache_false_is_plain_fit(ran_once):
    x, y = images(24)
    ftk.fit(built(), x, y, verbose=0, cache=False)
    assert ran_once == []


def test_flags_changed_by_hand_count(ran_once):
    x, y = images(24)
    model = built()
    ftk.fit(model, x, y, verbose=0)
    model.get_layer("residual").get_layer("block2_conv2").trainable = True
    before = value(model.get_layer("residual").get_layer("block2_conv2").kernel)
    with pytest.warns(UserWarning, match="changed since it was compiled"):
        ftk.fit(model, x, y, verbose=0)
    after = value(model.get_layer("residual").get_layer("block2_conv2").kernel)
    assert not np.array_equal(before, after)


def test_freezing_and_thawing_between_two_calls():
    x, y = images(24)

    ends = []
    for function in (keras.Model.fit, ftk.fit):
        model = built()
        function(model, x, y, verbose=0, shuffle=False)
        ftk.thaw(model, select.after("block1_out"), learning_rate=1e-3)
        function(model, x, y, verbose=0, shuffle=False)
        ends.append(state(model))
    for one, other in zip(*ends, strict=True):
        same(other, one, atol=1e-4)


def test_what_is_wrong_is_said_and_the_model_stays(tmp_path):
    x, y = images(24)
    model = built()
    before = state(model)
    with pytest.raises(ValueError, match="0 examples"):
        ftk.fit(model, x[:0], y[:0], verbose=0)
    with pytest.raises(ValueError, match="views must be"):
        ftk.fit(model, x, y, views=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ftk.CacheError, match="directory"):
        ftk.fit(model, x, y, verbose=0, cache=tmp_path / "file")
    with pytest.raises(TypeError, match="expected a keras.Model"):
        ftk.fit("resnet50", x, y)
    uncompiled = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="compile"):
        ftk.fit(uncompiled, np.ones((4, 6)), np.ones((4, 2)))
    ordinary = chain()
    ordinary.compile("sgd", "mse")
    with pytest.raises(ValueError, match="a generator can be read once"):
        ftk.fit(ordinary, ((np.ones((4, 6)), np.ones((4, 3))) for _ in range(2)), epochs=2)
    for one, other in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(one, other)
