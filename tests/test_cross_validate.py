"""`finetune_keras.cross_validate`: folds, what takes part in which run, and the figures."""

import collections
import gc
import itertools
import json
import shutil
import weakref

import keras
import numpy as np
import pytest
from conftest import classifier, images

import finetune_keras as ftk
from finetune_keras import heads, recipes, select
from finetune_keras.cache import engines, forward, shared
from finetune_keras.cross_validate import Run

layers = keras.layers
PROBE = {"recipe": "linear_probe", "epochs": 1, "folds": 2, "verbose": 0}


@pytest.fixture(scope="module", autouse=True)
def _short_collections():
    """What is imported is not gone through for garbage after each run."""
    gc.freeze()
    yield
    gc.unfreeze()


def small(loss="sparse_categorical_crossentropy", units=3, activation="softmax", metrics=None):
    """A frozen layer, the same in each model, and a head."""
    inputs = keras.Input((4,))
    x = layers.Dense(6, "tanh", kernel_initializer=keras.initializers.Orthogonal(seed=3))(inputs)
    x = layers.Dense(6, "tanh", kernel_initializer=keras.initializers.Orthogonal(seed=4))(x)
    model = keras.Model(inputs, layers.Dense(units, activation, name="classes")(x))
    metrics = ["accuracy"] if metrics is None else metrics
    model.compile("adam", loss, metrics=metrics, run_eagerly=True)  # nothing to compile is faster
    return model


def line():
    return small("mse", 1, None, [])


def numbered(n=30, classes=3):
    """Examples whose first feature tells their number."""
    rng = np.random.default_rng(5)
    y = (np.arange(n) % classes).astype("int32")
    x = rng.normal(size=(n, 4)).astype("float32") + y[:, None]
    x[:, 0] = np.arange(n) / 100
    return x, y


def ids(x):
    return set(np.round(100 * np.asarray(x)[:, 0]).astype(int).tolist())


def freezes(model, train, validation):
    """A ``train`` that trains nothing, after which all but the head is frozen."""
    ftk.freeze(model, select.backbone())


class Took:
    """A ``train`` that trains nothing, and notes which examples it was given."""

    def __init__(self):
        self.learn, self.choose = [], []

    def __call__(self, model, train, validation):
        self.learn.append(ids(train[0]))
        self.choose.append(ids(validation[0]))
        # What the model predicts tells from which run it is.
        head = model.get_layer("classes")
        head.set_weights([0 * head.kernel.numpy(), head.bias.numpy() + len(self.learn)])


# --- who takes part in what


def test_what_is_scored_takes_no_part_in_its_run():
    (x, y), took = numbered(), Took()
    data = x, y.astype("float32") + 0.5
    found = ftk.cross_validate(line, data, folds=3, train=took, verbose=0)
    every = set(range(30))
    assert len(took.learn) == 3
    for number, (learn, choose) in enumerate(zip(took.learn, took.choose, strict=True), 1):
        assert not learn & choose
        rest = every - learn - choose
        by = {round(v) for v in found.predictions[sorted(rest), 0].tolist()}
        assert by == {number}  # each scored by the model that has not seen it
    scored = [every - a - b for a, b in zip(took.learn, took.choose, strict=True)]
    assert sorted(itertools.chain(*scored)) == sorted(every)
    assert [(r.learned, r.chosen, r.scored) for r in found.runs] == [(16, 4, 10)] * 3


def test_fine_tune_gets_the_other_folds_and_chooses_by_a_fifth_of_them():
    seen = []

    def spy(task):
        seen.append((ids(task.data.train[0]), ids(task.data.validation[0])))
        return [task.phase("head", select.head(), epochs=1)]

    found = ftk.cross_validate(small, numbered(), folds=2, recipe=spy, verbose=0)
    for (learn, choose), run in zip(seen, found.runs, strict=True):
        assert not learn & choose
        assert (len(learn), len(choose), run.scored) == (12, 3, 15)
        assert run.best.startswith("val_accuracy")


def test_labels_of_a_fold_do_not_change_what_is_predicted_of_it():
    x, y = numbered()
    y = y + 0.25 * x[:, 1]
    settings = {"folds": 2, "epochs": 1, "recipe": "full", "verbose": 0}
    first = ftk.cross_validate(line, (x, y), **settings)
    took = Took()
    ftk.cross_validate(line, (x, y), folds=2, train=took, verbose=0)
    fold = sorted(set(range(30)) - took.learn[0] - took.choose[0])
    changed = y.copy()
    changed[fold] += 7
    second = ftk.cross_validate(line, (x, changed), **settings)
    np.testing.assert_array_equal(first.predictions[fold], second.predictions[fold])
    others = sorted(set(range(30)) - set(fold))
    assert not np.allclose(first.predictions[others], second.predictions[others], atol=1e-3)


def test_each_class_is_in_each_fold_and_each_seed_divides_anew():
    (x, y), took = numbered(), Took()
    found = ftk.cross_validate(small, (x, y), folds=3, seeds=[3, 8], train=took, verbose=0)
    scored = [set(range(30)) - a - b for a, b in zip(took.learn, took.choose, strict=True)]
    shares = [np.bincount(y[sorted(s)]) for s in scored]
    assert {len(s) for s in scored} == {10}
    assert {int(n) for share in shares for n in share} == {3, 4}
    assert sorted(itertools.chain(*scored[3:])) == list(range(30))
    assert not any(s in scored[:3] for s in scored[3:])
    assert [(r.fold, r.seed) for r in found.runs] == [(f, s) for s in (3, 8) for f in range(3)]
    assert found.scores["loss"].shape == (3, 2)


def test_a_group_is_on_one_side_only():
    (x, y), took = numbered(40, 2), Took()
    groups = np.array([f"patient {i // 4}" for i in range(40)])
    ftk.cross_validate(small, (x, y), folds=4, groups=groups, train=took, verbose=0)
    for learn, choose in zip(took.learn, took.choose, strict=True):
        sides = [learn, choose, set(range(40)) - learn - choose]
        assert all(sides)
        of = [{groups[i] for i in side} for side in sides]
        assert sum(map(len, of)) == 10


def test_in_the_end_a_run_learns_from_what_it_chose_by_too(monkeypatch):
    (x, y), took, seen = numbered(40, 2), Took(), []
    groups, plain = np.arange(40) // 4, recipes.run.fit

    def fit(model, x, *args, **kwargs):
        seen.append(ids(x))
        return plain(model, x, *args, **kwargs)

    monkeypatch.setattr(recipes.run, "fit", fit)
    ftk.cross_validate(small, (x, y), groups=groups, train=took, folds=2, verbose=0)
    ftk.cross_validate(small, (x, y), groups=groups, **PROBE)
    learn, choose = took.learn, took.choose
    assert seen == [learn[0], learn[0] | choose[0], learn[1], learn[1] | choose[1]]
    assert not (learn[0] | choose[0]) & (learn[1] | choose[1])
    seen.clear()
    ftk.cross_validate(small, (x, y), validation_data=numbered(6), **PROBE)
    assert [len(s) for s in seen] == [20, 20]


def test_validation_data_of_your_own_leave_all_folds_to_learn_from():
    (x, y), sizes = numbered(), []
    ftk.cross_validate(
        small,
        (x, y),
        folds=3,
        validation_data=numbered(6),
        train=lambda model, train, val: sizes.append((len(train[0]), len(val[0]))),
        verbose=0,
    )
    assert sizes == [(20, 6)] * 3


def test_a_run_is_what_fine_tune_gives_by_itself():
    (x, y), took = numbered(), Took()
    settings = {"recipe": "lp_ft", "epochs": 1, "verbose": 0}
    found = ftk.cross_validate(small, (x, y), folds=2, seeds=[4], **settings)
    ftk.cross_validate(small, (x, y), folds=2, seeds=[4], train=took, verbose=0)
    rest = sorted(took.learn[1] | took.choose[1])
    scored = sorted(set(range(30)) - set(rest))
    keras.utils.set_random_seed(4)
    model = small()
    ftk.fine_tune(model, (x[rest], y[rest]), seed=4, **settings)
    alone = model.evaluate(x[scored], y[scored], verbose=0, return_dict=True)
    assert found.runs[1].scores == pytest.approx(alone, rel=1e-5)


# --- several seeds on one division


def test_several_seeds_on_test_data():
    (x, y), took = numbered(), Took()
    held = numbered(9)
    found = ftk.cross_validate(
        small, (x, y), folds=None, seeds=3, test_data=held, train=took, verbose=0
    )
    assert found.scores["loss"].shape == (1, 3)
    assert [len(s) for s in took.learn] == [24] * 3
    assert all(a | b == set(range(30)) for a, b in zip(took.learn, took.choose, strict=True))
    assert found.predictions.shape == (9, 3)
    losses = found.scores["loss"][0]
    half = 4.302652729696142 * losses.std(ddof=1) / np.sqrt(3)  # Student's t, two degrees
    low, high = found.interval()["loss"]
    assert (low, high) == pytest.approx((losses.mean() - half, losses.mean() + half))
    assert "fold" not in str(found)


def test_predictions_of_test_data_are_in_their_order():
    x, y = numbered()

    def first():
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layers.Dense(1, name="classes")(inputs))
        model.compile("adam", "mse", run_eagerly=True)
        return model

    def copies(model, train, validation):
        kernel = np.zeros((4, 1))
        kernel[0] = 100
        model.get_layer("classes").set_weights([kernel, np.zeros(1)])

    settings = {"folds": None, "seeds": 2, "train": copies, "verbose": 0}
    for test in ((x, y), ftk.data.arrays(x, y, batch_size=8)):  # which shuffles
        found = ftk.cross_validate(first, (x, y), test_data=test, **settings)
        np.testing.assert_allclose(found.predictions[:, 0], np.arange(30), atol=1e-4)
    found = ftk.cross_validate(first, (x, y), test_data=stream(), **settings)
    assert found.predictions is None
    assert found.scores["loss"].shape == (1, 2)


def test_seeds_train_differently_and_the_same_again():
    (x, y), settings = numbered(), {"recipe": "linear_probe", "epochs": 1, "verbose": 0}
    given = {"folds": None, "test_data": numbered(9), **settings}
    first = ftk.cross_validate(small, (x, y), seeds=2, **given)
    again = ftk.cross_validate(small, (x, y), seeds=[1], **given)
    losses = first.scores["loss"][0]
    assert losses[0] != losses[1]
    assert losses[1] == again.scores["loss"][0, 0]


# --- the figures


def record(values, folds=5, seeds=(0,), **changes):
    at = [(f, s) for s in seeds for f in range(folds)]
    runs = [
        Run(f, s, {"loss": v}, "", 64, 16, 20, 1.0) for (f, s), v in zip(at, values, strict=False)
    ]
    settings = {"folds": folds, "seeds": seeds, "predictions": None, **changes}
    return ftk.CrossValidation(tuple(runs), **settings)


def test_figures_against_the_formulas():
    scipy = pytest.importorskip("scipy.stats")
    values = np.array([0.3, 0.5, 0.4, 0.45, 0.7, 0.2, 0.6, 0.5, 0.4, 0.3])
    found = record(values, seeds=(0, 1))
    assert found.mean["loss"] == pytest.approx(values.mean())
    assert found.std["loss"] == pytest.approx(values.std(ddof=1))
    for confidence in (0.9, 0.95):
        # Nadeau and Bengio 2003: 1/n + scored/trained in place of 1/n.
        error = values.std(ddof=1) * np.sqrt(1 / 10 + 20 / 80)
        ends = scipy.t.interval(confidence, 9, values.mean(), error)
        assert found.interval(confidence)["loss"] == pytest.approx(ends)
    np.testing.assert_array_equal(found.scores["loss"], values.reshape(2, 5).T)


def test_one_run_has_a_mean_and_nothing_else():
    found = record([0.5])
    assert found.mean == {"loss": 0.5}
    assert np.isnan(found.std["loss"])
    assert np.isnan(found.interval()["loss"]).all()


@pytest.mark.parametrize("confidence", [0, 1, 95, True, "high"])
def test_a_confidence_is_between_0_and_1(confidence):
    with pytest.raises(ValueError, match=r"between 0 and 1; given"):
        record([0.5, 0.6]).interval(confidence)


def test_the_record_is_plain_numbers(capsys):
    found = ftk.cross_validate(small, numbered(), **{**PROBE, "verbose": 1})
    out = capsys.readouterr().out
    assert "fold 1 of 2, seed 0: " in out
    assert "left)" in out
    told = json.loads(json.dumps(found.to_dict()))
    assert told["runs"][1]["scores"]["accuracy"] == found.scores["accuracy"][1, 0]
    text = str(found)
    assert text.splitlines()[0].split() == ["fold", "seed", *found.mean]
    assert [row.split()[0] for row in text.splitlines()[1:]] == ["1", "2", "mean", "std", "95"]


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = record([0.3, 0.5, 0.4]).plot(tmp_path / "runs.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


# --- features that runs share


@pytest.fixture
def rows_computed(monkeypatch):
    """How often each row went through the frozen part."""
    seen = collections.Counter()
    choose = engines.choose

    def counting(*args, **kwargs):
        engine = choose(*args, **kwargs)

        def run(arrays):
            seen.update({a.tobytes() for a in arrays[0]})  # what fills up a batch is in it twice
            return engine.run(arrays)

        return engines.Engine(engine.record, run)

    monkeypatch.setattr(forward.engines, "choose", counting)
    return seen


def unshared(monkeypatch):
    monkeypatch.setattr(shared, "through", lambda engine, network: engine)


@pytest.mark.parametrize("conv", [False, True], ids=["dense", "convolutions"])
def test_features_are_computed_once_for_all_runs(conv, rows_computed, monkeypatch):
    data = images(24) if conv else numbered()
    weights = classifier().get_weights()

    def build():
        if not conv:
            return small()
        model = classifier()
        model.set_weights(weights)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    whole = []
    for name in ("fit", "evaluate", "predict"):
        own = getattr(keras.Model, name)

        def noted(self, *args, _own=own, **kwargs):
            whole.append(self.count_params())
            return _own(self, *args, **kwargs)

        monkeypatch.setattr(keras.Model, name, noted)
    found = ftk.cross_validate(build, data, **PROBE)
    assert set(rows_computed.values()) == {1}
    assert len(rows_computed) == len(data[0])
    assert max(whole) < build().count_params()  # nobody computes the frozen part but this pass

    rows_computed.clear()
    unshared(monkeypatch)
    ftk.cross_validate(build, data, **PROBE, refit=False)
    assert set(rows_computed.values()) == {2}
    again = ftk.cross_validate(build, data, **PROBE)
    assert max(rows_computed.values()) > 4
    assert [r.scores for r in again.runs] == [r.scores for r in found.runs]
    # What else is in its batch shows in the last bit of a row on PyTorch.
    np.testing.assert_allclose(again.predictions, found.predictions, rtol=1e-6)


def test_recipes_that_go_on_share_the_features_of_their_probe(rows_computed):
    found = ftk.cross_validate(small, numbered(), folds=2, recipe="full", epochs=1, verbose=0)
    assert set(rows_computed.values()) == {1}
    assert len(found.runs) == 2


def test_networks_that_differ_share_nothing(rows_computed):
    def build():
        model = small()
        frozen = model.layers[1]
        frozen.kernel.assign(frozen.kernel + np.float32(next(count)))
        return model

    count = itertools.count()
    ftk.cross_validate(build, numbered(), **PROBE)
    assert set(rows_computed.values()) == {2}


def test_a_random_layer_before_the_network_is_no_other_network(rows_computed):
    def build():
        inputs = keras.Input((4,))
        x = layers.GaussianNoise(0.1, seed=int(np.random.randint(1000)))(inputs)
        kernel = keras.initializers.Orthogonal(seed=3)
        x = layers.Dense(6, "tanh", kernel_initializer=kernel)(x)
        model = keras.Model(inputs, layers.Dense(3, "softmax", name="classes")(x))
        model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        return model

    ftk.cross_validate(build, numbered(), folds=2, seeds=2, train=freezes, verbose=0)
    assert set(rows_computed.values()) == {1}


def test_calls_share_with_each_other_within_sharing(rows_computed):
    from finetune_keras.cache import sharing

    with sharing():
        for folds in (2, 3):
            ftk.cross_validate(small, numbered(), folds=folds, train=freezes, verbose=0)
    assert set(rows_computed.values()) == {1}
    ftk.cross_validate(small, numbered(), folds=2, train=freezes, verbose=0)
    assert set(rows_computed.values()) == {2}  # outside nothing is kept


def frozen(outputs=1, width=5):
    x = inputs = keras.Input((4,))
    x = layers.Dense(width)(x)
    made = [x, layers.Activation("relu", dtype="float16")(x), keras.ops.greater(x, 0)]
    return keras.Model(inputs, made[:outputs] if outputs > 1 else x)


@pytest.mark.parametrize("memory", [1, 200, 10**6], ids=["a file", "both", "memory"])
def test_what_does_not_fit_into_memory_is_in_a_file(memory, rows_computed):
    from finetune_keras.cache import sharing

    x, network = numbered()[0], frozen(3)
    alone = ftk.features(network, (x,), batch_size=8, verbose=0)
    rows_computed.clear()
    with sharing(memory=memory):
        first = ftk.features(network, (x[::-1],), batch_size=8, verbose=0)
        again = ftk.features(network, (x,), batch_size=8, verbose=0)
    assert set(rows_computed.values()) == {1}
    for a, b, c in zip(alone.features, first.features, again.features, strict=True):
        assert a.dtype == c.dtype
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b[::-1], c)


def test_the_network_not_used_for_longest_makes_room(rows_computed):
    from finetune_keras.cache import sharing

    x, networks = numbered()[0], [frozen() for _ in range(3)]
    each = 30 * 5 * 4
    with sharing(memory=2 * each):
        for i in (0, 1, 0, 2, 0):
            ftk.features(networks[i], (x,), verbose=0)
        assert set(rows_computed.values()) == {3}  # one pass of each so far
        ftk.features(networks[1], (x,), verbose=0)
    assert set(rows_computed.values()) == {4}


def test_a_full_disk_costs_a_pass_and_no_more(monkeypatch, rows_computed):
    from finetune_keras.cache import sharing

    def full(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared._Made, "add", full)
    x, network = numbered()[0], frozen()
    alone = ftk.features(network, (x,), verbose=0)
    with sharing():
        found = ftk.features(network, (x,), verbose=0)
    np.testing.assert_array_equal(alone.features[0], found.features[0])


# --- what goes wrong


class Spoils:
    """A ``train`` that goes wrong in one run."""

    def __init__(self, at, error=None):
        self.at, self.error, self.count = at, error, 0

    def __call__(self, model, train, validation):
        self.count += 1
        if self.count - 1 != self.at:
            return
        if self.error is not None:
            raise self.error
        model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])


@pytest.mark.parametrize(
    ("spoils", "why"),
    [
        (Spoils(0), "the loss on what is scored is nan"),
        (Spoils(2), "the loss on what is scored is nan"),
        (Spoils(1, RuntimeError("out of\nmemory")), "out of memory"),
    ],
    ids=["nan first", "nan last", "error"],
)
def test_a_failed_run_is_reported_and_not_counted(spoils, why):
    spoils.count = 0
    with pytest.warns(RuntimeWarning, match=f"fold {spoils.at + 1} of 3, seed 0 failed: {why}"):
        found = ftk.cross_validate(small, numbered(), folds=3, train=spoils, verbose=0)
    assert [r.fold for r in found.failed] == [spoils.at]
    assert found.failed[0].failed == why
    good = np.delete(found.scores["loss"][:, 0], spoils.at)
    assert np.isnan(found.scores["loss"][spoils.at, 0])
    assert found.mean["loss"] == pytest.approx(good.mean())
    assert "1 of 3 runs failed, and are in no figure" in str(found)
    assert f"failed: {why}" in str(found)
    assert np.isnan(found.predictions).any(axis=1).sum() == 10


def test_a_loss_that_is_nan_from_the_start_is_a_failed_run_too():
    class Poison(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            kernel = self.model.get_layer("classes").kernel
            kernel.assign(np.full(kernel.shape, np.nan, "float32"))

    with pytest.warns(RuntimeWarning, match="failed: nothing was learned, as the loss is nan"):
        found = ftk.cross_validate(
            small,
            numbered(),
            folds=2,
            recipe="linear_probe",
            epochs=1,
            callbacks=[Poison()],
            verbose=0,
        )
    assert len(found.failed) == len(found.runs) == 2
    assert found.mean == {}
    assert "2 of 2 runs failed" in str(found)


def test_an_error_of_the_first_run_is_raised():
    with pytest.raises(RuntimeError, match="mine"):
        ftk.cross_validate(small, numbered(), train=Spoils(0, RuntimeError("mine")), verbose=0)


@pytest.mark.parametrize("verbose", [0, 1])
def test_an_interruption_gives_the_runs_that_are_done(verbose, capsys):
    spoils = Spoils(2, KeyboardInterrupt())
    given = {"folds": 3, "seeds": 2, "train": spoils, "verbose": verbose}
    found = ftk.cross_validate(small, numbered(), **given)
    assert found.interrupted
    assert [(r.fold, r.seed) for r in found.runs] == [(0, 0), (1, 0)]
    assert found.scores["loss"].shape == (3, 2)
    assert np.isfinite(found.mean["loss"])
    assert str(found).endswith("interrupted after 2 of 6 runs")
    assert ("interrupted in fold 3 of 3, seed 0" in capsys.readouterr().out) == bool(verbose)
    with pytest.raises(KeyboardInterrupt):
        ftk.cross_validate(small, numbered(), train=Spoils(0, KeyboardInterrupt()), verbose=0)


def test_a_run_that_fine_tune_cut_short_is_not_counted():
    class Interrupts(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.epochs = 0

        def on_epoch_begin(self, epoch, logs=None):
            self.epochs += 1
            if self.epochs == 4:  # a probe and an epoch in each: in the second run
                raise KeyboardInterrupt

    found = ftk.cross_validate(
        small,
        numbered(),
        folds=3,
        recipe="full",
        epochs=1,
        refit=False,
        callbacks=[Interrupts()],
        verbose=0,
    )
    assert found.interrupted
    assert [r.fold for r in found.runs] == [0]


def test_with_a_directory_it_goes_on_where_it_was(tmp_path):
    settings = {**PROBE, "directory": tmp_path}
    whole = ftk.cross_validate(small, numbered(), **PROBE)
    ftk.cross_validate(small, numbered(), **settings)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["seed_0_fold_1", "seed_0_fold_2"]
    shutil.rmtree(tmp_path / "seed_0_fold_2")  # as if it had been killed in between
    again = ftk.cross_validate(small, numbered(), **settings)
    # What else is in its batch, here of another fold, shows in the last bit of a row on PyTorch.
    np.testing.assert_allclose(again.predictions, whole.predictions, rtol=1e-6)


def test_models_of_earlier_runs_are_let_go():
    alive, most = [], []

    def build():
        most.append(sum(ref() is not None for ref in alive))
        model = small()
        alive.append(weakref.ref(model))
        return model

    ftk.cross_validate(build, numbered(), folds=2, recipe="full", epochs=1, verbose=0)
    gc.collect()
    assert max(most) == 0
    assert len(most) == 3


# --- data of other kinds


def test_a_data_set_of_files(tmp_path):
    from PIL import Image

    for i in range(12):
        folder = tmp_path / ("dark" if i % 2 else "light")
        folder.mkdir(exist_ok=True)
        shade = np.full((8, 8, 3), 20 * i, "uint8")
        Image.fromarray(shade).save(folder / f"{i:02}.png")
    data = ftk.data.images(tmp_path, size=8, batch_size=4)
    data = ftk.data.augmented(data, layers.RandomBrightness(0.5, value_range=(0, 255)))
    broken = tmp_path / "dark" / "11.png"
    broken.write_bytes(broken.read_bytes()[:40])

    def build():
        inputs = keras.Input((8, 8, 3))
        x = layers.GlobalAveragePooling2D()(inputs)
        model = keras.Model(inputs, layers.Dense(2, "softmax", name="classes")(x))
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    def train(model, learn, choose):
        assert learn.plan.transforms  # and not looked at here
        assert not choose.plan.transforms
        # The predictions then tell the mean of the image.
        kernel, bias = np.zeros((3, 2)), np.zeros(2)
        kernel[:, 0] = 0.01 / 3
        model.get_layer("classes").set_weights([kernel, bias])

    with pytest.warns(UserWarning, match="could not be read"):
        found = ftk.cross_validate(build, data, folds=3, train=train, verbose=0)
    ratio = found.predictions[:, 0] / found.predictions[:, 1]
    shades = [20.0 * int(p[-6:-4]) for p in data.file_paths]
    expected = [np.nan if s == 220 else s for s in shades]
    np.testing.assert_allclose(100 * np.log(ratio), expected, atol=0.1)


def test_files_that_are_there_several_times_are_in_one_fold():
    x, y = numbered(24, 2)
    data = ftk.data.arrays(x, y)
    data.file_paths = [f"{i // 3}.png" for i in range(24)]

    def train(model, learn, choose):
        sides.append([ids(np.concatenate([b for b, _ in d])) for d in (learn, choose)])

    sides = []
    ftk.cross_validate(small, data, folds=2, train=train, verbose=0)
    for learn, choose in sides:
        parts = [learn, choose, set(range(24)) - learn - choose]
        assert sum(len({i // 3 for i in part}) for part in parts) == 8


def test_several_inputs_outputs_and_weights():
    x, y = numbered(20, 2)

    def build():
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        h = layers.Dense(4, "tanh")(layers.Add()([a, b]))
        out = {
            "one": layers.Dense(2, "softmax", name="one")(h),
            "two": layers.Dense(1, name="two")(h),
        }
        model = keras.Model({"a": a, "b": b}, out)
        model.compile("adam", {"one": "sparse_categorical_crossentropy", "two": "mse"})
        return model

    weights = np.ones(20, "float32")
    targets = {"one": y, "two": x[:, 1:2]}

    def train(model, train, validation):
        x, y, weights = train
        assert {len(v) for v in (*x.values(), *y.values(), *weights.values())} == {8}
        assert len(validation) == 3

    data = {"a": x, "b": x}, targets, {"one": weights, "two": weights}
    found = ftk.cross_validate(build, data, folds=2, train=train, verbose=0)
    assert found.predictions["one"].shape == (20, 2)
    assert found.predictions["two"].shape == (20, 1)
    assert np.isfinite(found.predictions["two"]).all()


def test_outputs_that_are_no_row_of_numbers_are_not_kept():
    def build():
        inputs = keras.Input((4, 1))
        model = keras.Model(inputs, layers.Dense(1, name="classes")(layers.Dense(3)(inputs)))
        model.compile("adam", "mse")
        return model

    x = numbered()[0][..., None]
    found = ftk.cross_validate(
        build, (x, x), folds=2, train=lambda model, train, val: None, verbose=0
    )
    assert found.predictions is None
    assert len(found.runs) == 2


def test_built_models_and_their_frozen_part(rows_computed):
    def build():
        base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        return ftk.build(base, heads.Classification(3, dropout=0.2))

    data = images(18, size=24)
    settings = {"folds": 2, "recipe": "linear_probe", "verbose": 0}  # the head is solved
    found = ftk.cross_validate(build, data, **settings)
    assert set(rows_computed.values()) == {1}
    assert np.allclose(found.predictions.sum(axis=1), 1, atol=1e-5)

    def train(model, train, validation):
        ftk.freeze(model, select.backbone())
        ftk.fit(model, *train, validation_data=validation, verbose=0)

    rows_computed.clear()
    ftk.cross_validate(build, data, folds=2, train=train, verbose=0)
    assert set(rows_computed.values()) == {1}


# --- wrong input


BASE = small()


def head_on_the_same_network():
    x = BASE.layers[-2].output
    model = keras.Model(BASE.input, layers.Dense(3, "softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def uncompiled():
    return classifier()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (BASE, TypeError, "a function without arguments .*; given a Functional"),
        (None, TypeError, "a function without arguments .*; given a NoneType"),
        (lambda: BASE, ValueError, "share .* variables.* make everything in build"),
        (head_on_the_same_network, ValueError, "share 4 variables, such as .*the backbone too"),
        (uncompiled, ValueError, "is not compiled.*finetune_keras.compile"),
        (lambda: BASE.layers, TypeError, "gives a compiled keras.Model; it gave a list"),
    ],
)
def test_a_function_that_gives_no_new_model_is_refused(build, error, message):
    before = BASE.get_weights()
    with pytest.raises(error, match=message):
        ftk.cross_validate(build, numbered(), **PROBE)
    for a, b in zip(before, BASE.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def stream():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(numbered()).batch(4)


@pytest.mark.parametrize(
    ("data", "settings", "error", "message"),
    [
        (stream, {}, TypeError, "arrays .x, y., or a data set of finetune_keras.data.*given a _B"),
        (lambda: iter([]), {}, TypeError, "given a list_iterator"),
        (lambda: numbered()[0], {}, ValueError, "without labels"),
        (lambda: (numbered()[0], numbered(9)[1]), {}, ValueError, "30 of x, 9 of y"),
        (numbered, {"folds": 1}, ValueError, "folds=1 leaves nothing.*folds=None.*test_data="),
        (numbered, {"folds": 31}, ValueError, "folds=31 needs as many examples.*there are 30"),
        (numbered, {"folds": 2.5}, ValueError, "folds is a whole number from 2 on; given 2.5"),
        (lambda: {"a": stream()}, {}, TypeError, r"a dict of the data sets .a.: pass one, data"),
        (numbered, {"folds": None}, ValueError, "give test_data= to score on$"),
        (
            numbered,
            {"folds": None, "validation_data": numbered()},
            ValueError,
            "give test_data= to score on, since the best epoch is chosen by validation_data=",
        ),
        (numbered, {"test_data": numbered()}, ValueError, "folds=5 are scored themselves"),
        (
            stream,
            {"folds": None, "test_data": numbered()},
            ValueError,
            "comes without validation data.*give validation_data=",
        ),
        (numbered, {"seeds": 0}, ValueError, "seeds is a whole number from 1 on; given 0"),
        (numbered, {"seeds": [1, 1]}, ValueError, r"different whole numbers.*given \[1, 1\]"),
        (numbered, {"seeds": []}, ValueError, r"different whole numbers.*given \[\]"),
        (numbered, {"seeds": [0.5]}, ValueError, "each of seeds is a whole number"),
        (numbered, {"seeds": True}, ValueError, "given True"),
        (numbered, {"groups": [1, 2]}, ValueError, r"one value an example, 30 in all.*\(2,\)"),
        (numbered, {"groups": [None] * 30}, ValueError, "without a group"),
        (numbered, {"groups": [1] * 30}, ValueError, "needs as many groups.*there are 1"),
        (
            numbered,
            {"groups": np.arange(30) % 2, "folds": 2},
            ValueError,
            "is of one group: give validation_data=",
        ),
        (numbered, {"recipee": "auto"}, TypeError, "'recipee': did you mean 'recipe'"),
        (numbered, {"seed": 3}, TypeError, "'seed': seeds= are given instead"),
        (numbered, {"train": "full"}, TypeError, "train is a function .*; given 'full'"),
        (
            numbered,
            {"train": lambda *a: None, "epochs": 3},
            TypeError,
            "epochs= is for fine_tune, and train= is trained by",
        ),
    ],
)
def test_wrong_input(data, settings, error, message):
    with pytest.raises(error, match=message) as caught:
        ftk.cross_validate(small, data(), **{"verbose": 0, **settings})
    assert "\n" not in str(caught.value)


def test_a_class_of_fewer_examples_than_folds_is_told():
    x, y = numbered()
    y[:] = y % 2
    y[:3] = 2
    with pytest.warns(UserWarning, match="class 2 has 3 of 30 examples, fewer than folds=4"):
        found = ftk.cross_validate(
            small, (x, y), folds=4, train=lambda model, train, val: None, verbose=0
        )
    assert [r.scored for r in found.runs] == [8, 8, 7, 7]


def test_numbers_of_numpy_are_taken():
    found = ftk.cross_validate(
        small, numbered(), folds=np.int64(2), seeds=np.array([5, 6]), train=Took(), verbose=0
    )
    assert found.seeds == (5, 6)
    assert [type(s) for s in found.seeds] == [int, int]
    assert json.dumps(found.to_dict())
