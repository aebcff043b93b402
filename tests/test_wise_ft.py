"""Between the weights before fine-tuning and those after."""

import json

import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, residual, same, snapshot, value, vectors

import finetune_keras as ftk
from finetune_keras import heads, select
from finetune_keras.averaging import refresh
from finetune_keras.cache import forward

layers = keras.layers


def fitted(make=chain, *, loss="mse", **settings):
    """A model, the weights that it had, and those that it has."""
    model = make()
    model.compile("sgd", loss, **settings)
    start = ftk.snapshot(model)
    shift(model, 0.3)
    return model, start, snapshot(model)


def shift(model, size):
    """In place of training: every floating-point weight moves."""
    rng = np.random.default_rng(5)
    for v in model.weights:
        if keras.backend.is_float_dtype(v.dtype):
            v.assign(value(v) + size * rng.random(v.shape))


def between(start, tuned, mix):
    return {p: (1 - mix) * start.weights[p] + mix * tuned[p] for p in tuned}


def best_at(model, start, tuned, mix, x):
    """Targets for which the best mix is known."""
    ftk.Snapshot("mixed", between(start, tuned, mix)).restore(model)
    y = model.predict(x, verbose=0)
    ftk.Snapshot("tuned", tuned).restore(model)
    return y


def unchanged(model, before):
    for path, array in before.items():
        np.testing.assert_array_equal(snapshot(model)[path], array, err_msg=path)


def test_the_best_mix_is_adopted_by_the_formula():
    model, start, tuned = fitted()
    x, _ = vectors()
    y = best_at(model, start, tuned, 0.3, x)
    sweep = ftk.wise_ft(model, start, (x, y), verbose=0)
    assert sweep.chosen == pytest.approx(0.3)
    assert sweep.adopted
    for path, array in between(start, tuned, 0.3).items():
        same(snapshot(model)[path], array, atol=1e-6)
    assert sweep.mixes == pytest.approx(np.linspace(0, 1, 11))
    assert (sweep.monitor, sweep.mode) == ("loss", "min")
    assert sweep.score == pytest.approx(min(sweep.scores)) == pytest.approx(0, abs=1e-6)
    for mix, score in zip(sweep.mixes, sweep.scores, strict=True):
        ftk.Snapshot("one", between(start, tuned, mix)).restore(model)
        assert model.evaluate(x, y, verbose=0) == pytest.approx(score, rel=1e-4, abs=1e-6)


def test_among_equals_the_fine_tuned_weights_stay():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    model.set_weights([np.array([[1.0], [5.0]])])
    start = ftk.snapshot(model)
    model.set_weights([np.array([[1.0], [9.0]])])
    x = np.array([[1.0, 0.0], [2.0, 0.0]])  # the second weight has no say
    sweep = ftk.wise_ft(model, start, (x, x[:, :1] * 3), mixes=3, verbose=0)
    assert not sweep.adopted
    assert model.get_weights()[0][1] == 9.0


def test_a_model_that_no_mix_beats_is_left_as_it_is():
    model, start, tuned = fitted()
    x, _ = vectors()
    sweep = ftk.wise_ft(model, start, (x, model.predict(x, verbose=0)), mixes=4, verbose=0)
    assert (sweep.chosen, sweep.adopted) == (1.0, False)
    unchanged(model, tuned)


@pytest.mark.parametrize(("target", "chosen"), [(0.5, 0.5), (1.0, 1.0)])
def test_equal_accuracies_are_compared_by_the_loss(target, chosen):
    def make():
        return keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, name="d")])

    model = make()
    model.compile("sgd", "mse", metrics=[keras.metrics.BinaryAccuracy(name="accuracy")])
    x = np.ones((4, 1), "float32")
    start, tuned = 0.6, 1.4  # on the same side of the threshold
    model.set_weights([np.array([[start]])])
    before = ftk.snapshot(model)
    model.set_weights([np.array([[tuned]])])
    y = np.full((4, 1), start + target * (tuned - start))
    sweep = ftk.wise_ft(model, before, (x, y), mixes=5, verbose=0)
    assert len(set(sweep.scores)) == 1
    assert sweep.monitor == "accuracy"
    assert sweep.chosen == chosen


class Counts(layers.Layer):
    """Holds an integer and random state, which are no weights to average."""

    def build(self, shape):
        self.count = self.add_weight(shape=(2,), dtype="int32", trainable=False, name="count")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale


def mixed_kinds():
    x = inputs = keras.Input((6,))
    x = layers.Dense(5, name="a")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5, name="drop", seed=3)(x)
    x = Counts(name="counts")(x)
    return keras.Model(inputs, layers.Dense(3, name="c")(x))


def test_statistics_are_mixed_and_integers_and_seeds_are_not():
    model, start, _ = fitted(mixed_kinds)
    model.get_layer("counts").count.assign(np.array([5, 7]))
    tuned = snapshot(model)
    seed = value(model.get_layer("drop").seed_generator.state)
    x, _ = vectors()
    y = best_at(model, start, tuned, 0.5, x)
    model.get_layer("counts").count.assign(np.array([5, 7]))
    sweep = ftk.wise_ft(model, start, (x, y), mixes=[0.5], verbose=0)
    assert sweep.mixes == (0.5, 1.0)
    assert sweep.chosen == 0.5
    for path, array in between(start, tuned, 0.5).items():
        if path != "counts/count":
            same(snapshot(model)[path], array, atol=1e-6)
    assert value(model.get_layer("counts").count).tolist() == [5, 7]
    np.testing.assert_array_equal(value(model.get_layer("drop").seed_generator.state), seed)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_the_fine_tuned_weights(monkeypatch, error):
    model, start, tuned = fitted()
    evaluate, calls = model.evaluate, []

    def breaks(*args, **kwargs):
        calls.append(snapshot(model)["a/kernel"])
        if len(calls) == 3:
            raise error("stop")
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(model, "evaluate", breaks)
    with pytest.raises(error, match="stop"):
        ftk.wise_ft(model, start, vectors(), verbose=0)
    assert not np.array_equal(calls[-1], tuned["a/kernel"]), "it was in the middle"
    unchanged(model, tuned)


def test_the_start_may_be_a_model_a_file_or_a_list(tmp_path):
    x, y = images()
    model = classifier()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, verbose=0)
    start = ftk.snapshot(model)
    arrays = model.get_weights()
    start.save(tmp_path / "s.npz")
    model.save(tmp_path / "s.keras")
    model.save_weights(tmp_path / "s.weights.h5")
    twin = keras.models.clone_model(model)
    twin.set_weights(arrays)
    model.fit(x, y, epochs=2, verbose=0)
    tuned, optimizer = ftk.snapshot(model), [value(v) for v in model.optimizer.variables]
    found = []
    files = [tmp_path / f for f in ("s.npz", "s.keras", "s.weights.h5")]
    for source in (start, arrays, twin, *files, str(files[0])):
        tuned.restore(model)
        sweep = ftk.wise_ft(model, source, (x, y), mixes=3, verbose=0)
        found.append((sweep.losses, sweep.chosen))
    for losses, chosen in found:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        assert chosen == found[0][1]
    for one, other in zip(optimizer, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, value(other))


def lora():
    model = chain()
    model.get_layer("b").enable_lora(2)
    return model


def quantized():
    model = chain()
    model.quantize("int8")
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [(lora, "'b' in 'chain' has LoRA factors"), (quantized, "has int8 weights")],
)
def test_weights_whose_average_means_nothing_are_refused(make, words):
    model = make()
    model.compile("sgd", "mse")
    start = ftk.snapshot(model)
    with pytest.raises(ftk.WeightsError, match=words):
        ftk.wise_ft(model, start, vectors())
    plain = fitted()[0]
    with pytest.raises(ftk.WeightsError, match=words):
        ftk.wise_ft(plain, model, vectors())


def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path):
    model, start, tuned = fitted()
    data = vectors()
    nan = dict(start.weights)
    nan["b/bias"] = np.full(8, np.nan, "float32")
    start.save(tmp_path / "start.npz")
    other = classifier()
    cases = [
        (ftk.WeightsError, (ftk.Snapshot("bad", nan), data), {}, "the start has NaN .* 'b/bias'"),
        (ftk.WeightsError, (other, data), {}, "another architecture: it has 'inner/stem_conv/k"),
        (ftk.WeightsError, ([np.zeros(3)], data), {}, "the start has 1 arrays, and .* has 6"),
        (ftk.WeightsError, (tmp_path / "strat.npz", data), {}, "did you mean 'start.npz'"),
        (TypeError, (None, data), {}, "the start is a snapshot, a model .* given a NoneType"),
        (ValueError, (model, data), {}, "have the same weights: take finetune_keras.snapshot"),
        (ValueError, (start, data), {"monitor": "acuracy"}, "monitor='acuracy' .* there are: 'l"),
        (ValueError, (start, data), {"mode": "best"}, "mode is one of 'auto', 'min', 'max'"),
        (TypeError, (start, data), {"monitor": None}, "monitor is the name of a metric"),
        (ValueError, (start, data[0]), {}, "arrays of 32 examples without labels"),
        (ValueError, (start, iter([data])), {}, "can be read only once"),
        (ValueError, (start, data), {"refresh": data[0]}, "batch normalisations that learn"),
    ]
    cases += [
        (ValueError, (start, data), {"mixes": m}, "mixes is a number of steps from 2 on")
        for m in (1, True, 0.5, "0.5", [], [0.5, 2], [float("nan")], ["a"], None)
    ]
    for kind, given, settings, words in cases:
        with pytest.raises(kind, match=words) as caught:
            ftk.wise_ft(model, *given, verbose=0, **settings)
        assert "\n" not in str(caught.value)
        unchanged(model, tuned)
    with pytest.raises(ValueError, match="is not compiled, so there is no validation loss"):
        ftk.wise_ft(chain(), start, data)
    with pytest.raises(TypeError, match="expected a keras.Model; given a Snapshot"):
        ftk.wise_ft(start, model, data)
    model.get_layer("a").bias.assign(np.full(8, np.inf))
    with pytest.raises(ftk.WeightsError, match="the model has NaN or infinity in 'a/bias'"):
        ftk.wise_ft(model, start, data)


@pytest.mark.parametrize(("start", "tuned", "chosen"), [(-1.0, 2.0, 0.7), (2.0, -1.0, 0.3)])
def test_weights_that_give_nan_are_not_chosen(start, tuned, chosen):
    x = inputs = keras.Input((1,))
    x = layers.Dense(1, use_bias=False, name="d")(x)
    model = keras.Model(inputs, keras.ops.log(x))
    model.compile("sgd", "mse")
    model.set_weights([np.array([[start]])])
    before = ftk.snapshot(model)
    model.set_weights([np.array([[tuned]])])
    data = np.ones((2, 1), "float32"), np.zeros((2, 1))  # the weight is best near 1
    sweep = ftk.wise_ft(model, before, data, mixes=[0, 0.3, 0.4, 0.6, 0.7], verbose=0)
    assert [np.isnan(s) for s in sweep.scores].count(True) == 2
    assert sweep.chosen == chosen


def probed():
    """A head on a network of which a part is frozen."""
    keras.utils.set_random_seed(1)
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3), freeze=select.backbone())
    x, y = images(24)
    model.fit(x, y, verbose=0)
    return model, x, y


def test_what_is_frozen_is_computed_once_with_equal_scores(monkeypatch):
    seen = []
    arrays = forward.Pass._arrays

    def counting(self, batch, number):
        seen.append(batch.size)
        return arrays(self, batch, number)

    monkeypatch.setattr(forward.Pass, "_arrays", counting)
    model, x, y = probed()
    start = ftk.snapshot(model)
    ftk.thaw(model, select.blocks(-1), learning_rate=1e-2)
    model.fit(x, y, epochs=2, verbose=0)
    tuned = ftk.snapshot(model)
    ran = []
    monkeypatch.setattr(model, "evaluate", lambda *a, **k: ran.append(1))
    sweep = ftk.wise_ft(model, start, (x, y), mixes=5, batch_size=8, verbose=0)
    monkeypatch.undo()
    assert sum(seen) == 24
    assert not ran, "the whole model was not needed"
    for mix, score, loss in zip(sweep.mixes, sweep.scores, sweep.losses, strict=True):
        ftk.Snapshot("one", between(start, tuned.weights, mix)).restore(model)
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        assert logs["accuracy"] == pytest.approx(score)
        assert logs["loss"] == pytest.approx(loss, rel=1e-4)
    model.fit(x, y, verbose=0)


def test_what_is_frozen_but_differs_is_computed_for_each():
    model, x, y = probed()
    start = ftk.snapshot(model)
    shift(model, 0.05)  # the frozen part too
    tuned = ftk.snapshot(model)
    sweep = ftk.wise_ft(model, start, (x, y), mixes=3, verbose=0)
    for mix, loss in zip(sweep.mixes, sweep.losses, strict=True):
        ftk.Snapshot("one", between(start, tuned.weights, mix)).restore(model)
        assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(loss, rel=1e-4)


def test_refresh_gives_averages_the_statistics_of_their_own_activations():
    model, start, _ = fitted(mixed_kinds)
    x, _ = vectors()
    rng = np.random.default_rng(0)
    more = rng.normal(2.0, 3.0, (24, 6)).astype("float32")
    ftk.Snapshot("start", dict(start.weights)).restore(model)
    shift(model, 0.3)
    tuned, seed = snapshot(model), value(model.get_layer("drop").seed_generator.state)
    middle = between(start, tuned, 0.5)
    hidden = more @ middle["a/kernel"] + middle["a/bias"]
    norm = model.get_layer("norm")
    settings = {"mixes": [0.5], "batch_size": 16, "refresh": more, "verbose": 0}
    target = {**middle, "norm/moving_mean": hidden.mean(0)}
    batches = np.split(hidden, [16])
    target["norm/moving_variance"] = np.average(
        [b.var(0) for b in batches], axis=0, weights=[len(b) for b in batches]
    )
    ftk.Snapshot("target", target).restore(model)
    y = model.predict(x, verbose=0)
    ftk.Snapshot("tuned", tuned).restore(model)
    sweep = ftk.wise_ft(model, start, (x, y), **settings)
    assert sweep.chosen == 0.5
    for path, array in target.items():
        same(snapshot(model)[path], array, atol=1e-4)
    assert norm.momentum == 0.99
    np.testing.assert_array_equal(value(model.get_layer("drop").seed_generator.state), seed)
    assert sweep.losses[0] == pytest.approx(0, abs=1e-5)


def test_refresh_leaves_start_and_tuned_as_they_are_and_frozen_norms():
    model, start, tuned = fitted(mixed_kinds)
    x, y = vectors()
    with_ = ftk.wise_ft(model, start, (x, y), mixes=[0, 1], refresh=x * 9, verbose=0)
    ftk.Snapshot("tuned", tuned).restore(model)
    without = ftk.wise_ft(model, start, (x, y), mixes=[0, 1], verbose=0)
    assert with_.losses == pytest.approx(without.losses, rel=1e-5)
    model.get_layer("norm").trainable = False
    ftk.Snapshot("tuned", tuned).restore(model)
    with pytest.raises(ValueError, match="batch normalisations that learn"):
        ftk.wise_ft(model, start, (x, y), refresh=x, verbose=0)


@pytest.mark.parametrize("how", ["equal", "different", "augmented"])
def test_refresh_computes_what_is_frozen_and_equal_once(how, monkeypatch):
    augment = layers.RandomBrightness(0.0) if how == "augmented" else None
    network, head = ftk.backbone(residual()), heads.Classification(3)
    model = ftk.build(network, head, freeze=select.backbone(), augment=augment)
    x, y = images(24)
    start = ftk.snapshot(model)
    ftk.thaw(model, select.blocks(-1), learning_rate=1e-2, norms=True)
    model.fit(x, y, epochs=2, verbose=0)
    if how == "different":
        shift(model, 0.02)
    tuned = ftk.snapshot(model)
    ftk.Snapshot("middle", between(start, tuned.weights, 0.5)).restore(model)
    refresh.refresh(model, refresh.moving(model), [x[:16], x[16:]])
    middle = snapshot(model)
    tuned.restore(model)
    ran, rows, plain, arrays = [], [], refresh.refresh, forward.Pass._arrays

    def recording(part, *args):
        plain(part, *args)
        ran.append((part is model, snapshot(model)))

    def counting(self, batch, number):
        rows.append(batch.size)
        return arrays(self, batch, number)

    monkeypatch.setattr(refresh, "refresh", recording)
    monkeypatch.setattr(forward.Pass, "_arrays", counting)
    given = {"mixes": [0.25, 0.5], "batch_size": 16, "verbose": 0}
    ftk.wise_ft(model, start, (x, y), refresh=x, **given)
    assert [whole for whole, _ in ran] == [how != "equal"] * 2
    assert sum(rows) == (48 if how == "equal" else 24)
    for path, array in middle.items():
        same(ran[0][1][path], array, atol=1e-4)


def test_training_goes_on():
    model, start, tuned = fitted(loss="mse")
    model.compile("adam", "mse")
    x, _ = vectors()
    model.fit(*vectors(), verbose=0)
    tuned = snapshot(model)
    y = best_at(model, start, tuned, 0.5, x)
    assert ftk.wise_ft(model, start, (x, y), mixes=3, verbose=0).chosen == 0.5
    before = snapshot(model)
    for _ in range(2):
        model.fit(x, vectors()[1], verbose=0)
    assert all(not np.array_equal(snapshot(model)[p], before[p]) for p in before)
    assert int(value(model.optimizer.iterations)) == 3
    for path, array in start.weights.items():  # JAX took no memory of ours
        assert np.isfinite(array).all(), path


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_other_precisions(policy):
    def make():
        dense = layers.Dense
        return keras.Sequential(
            [keras.Input((6,)), dense(8, dtype=policy, name="a"), dense(3, dtype=policy, name="c")]
        )

    model, start, tuned = fitted(make)
    x, _ = vectors()
    model_y = best_at(model, start, tuned, 0.5, x)
    sweep = ftk.wise_ft(model, start, (x, model_y), mixes=3, verbose=0)
    assert sweep.chosen == 0.5
    for path, found in snapshot(model).items():
        assert found.dtype == tuned[path].dtype
        a, b = (w[path].astype("float32") for w in (start.weights, tuned))
        np.testing.assert_allclose(found.astype("float32"), (a + b) / 2, rtol=1e-2, atol=1e-2)


def two_outputs():
    x = inputs = keras.Input((6,))
    one = layers.Dense(1, name="one")(x)
    model = keras.Model(inputs, {"one": one, "two": layers.Dense(1, name="two")(x)})
    return model


def test_what_is_monitored():
    def error(y, z):
        return keras.ops.mean(keras.ops.abs(y - z))

    model, start, tuned = fitted(metrics=["mae", keras.metrics.R2Score(name="r2")])
    data = vectors()
    modes = {"mae": "min", "val_mae": "min", "r2": "max", "loss": "min", "auto": "min"}
    for monitor, mode in modes.items():
        ftk.Snapshot("tuned", tuned).restore(model)
        sweep = ftk.wise_ft(model, start, data, mixes=3, monitor=monitor, verbose=0)
        assert sweep.mode == mode
        pick = max if mode == "max" else min
        assert sweep.score == pick(sweep.scores)
        assert sweep.monitor == ("loss" if monitor == "auto" else monitor.removeprefix("val_"))
    model.compile("sgd", "mse", metrics=[error])
    ftk.Snapshot("tuned", tuned).restore(model)
    with pytest.raises(ValueError, match="a larger 'error' is better: give mode='max' or"):
        ftk.wise_ft(model, start, data, monitor="error", verbose=0)
    ftk.Snapshot("tuned", tuned).restore(model)
    sweep = ftk.wise_ft(model, start, data, monitor="error", mode="min", mixes=3, verbose=0)
    assert sweep.score == min(sweep.scores)
    model.compile("sgd", "mse", metrics=[keras.metrics.F1Score(name="f1")])
    ftk.Snapshot("tuned", tuned).restore(model)
    with pytest.raises(ValueError, match="has to be one number, and is 3 of them"):
        ftk.wise_ft(model, start, data, monitor="f1", verbose=0)


def test_several_outputs_go_by_the_loss_and_can_be_told_apart():
    model, start, tuned = fitted(two_outputs, metrics={"one": ["accuracy", "mae"], "two": ["mae"]})
    x, y = vectors()
    data = (x, {"one": y[:, :1], "two": y[:, 1:2]})
    assert ftk.wise_ft(model, start, data, mixes=3, verbose=0).monitor == "loss"
    ftk.Snapshot("tuned", tuned).restore(model)
    sweep = ftk.wise_ft(model, start, data, mixes=3, monitor="val_two_mae", verbose=0)
    assert (sweep.monitor, sweep.mode) == ("two_mae", "min")


def test_data_of_other_kinds():
    x, y = vectors()
    model, start, tuned = fitted()

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]

    def losses(data, **settings):
        ftk.Snapshot("tuned", tuned).restore(model)
        return ftk.wise_ft(model, start, data, mixes=3, verbose=0, **settings).losses

    whole = losses((x, y))
    assert losses(Batches()) == pytest.approx(whole, rel=1e-5)
    half = losses((x[:16], y[:16]))
    assert losses(Batches(), steps=2) == pytest.approx(half, rel=1e-5)
    assert losses((x, y), steps=2, batch_size=8) == pytest.approx(half, rel=1e-5)
    weights = np.arange(32.0)
    assert losses((x, y, weights)) != pytest.approx(whole, rel=1e-3)
    tf = pytest.importorskip("tensorflow")
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat()
    assert losses(endless, steps=2) == pytest.approx(half, rel=1e-5)
    with pytest.raises(ValueError, match="steps"):
        losses(endless)


def test_the_record(tmp_path, capsys):
    model, start, tuned = fitted()
    x, _ = vectors()
    y = best_at(model, start, tuned, 0.5, x)
    sweep = ftk.wise_ft(model, start, (x, y), mixes=np.int64(3))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["mix 1", "mix 0.5", "mix 0"]
    assert repr(sweep).startswith("<Sweep of 3 mixes: 0.5 adopted, loss 0.0000; fine-tuned ")
    kept = json.loads(json.dumps(sweep.to_dict()))
    assert kept["chosen"] == 0.5
    assert kept["adopted"] is True
    assert "<td>0.5 (chosen)</td>" in sweep._repr_html_()
    pytest.importorskip("matplotlib")
    assert sweep.plot().axes[0].get_ylabel() == "validation loss"
    path = sweep.plot(tmp_path / "sweep.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="there is no folder"):
        sweep.plot(tmp_path / "none" / "sweep.png")


def test_a_subclass_without_a_graph_is_averaged_too(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(4), layers.Dense(3)

        def call(self, x):
            return self.two(self.one(x))

    model = Own()
    x, _ = vectors()
    model(x)
    model.compile("sgd", "mse")
    start = ftk.snapshot(model)
    model.save_weights(tmp_path / "own.weights.h5")
    shift(model, 0.3)
    tuned = snapshot(model)
    target = best_at(model, start, tuned, 0.5, x)
    with pytest.raises(ftk.WeightsError, match=r"pass finetune_keras.snapshot\(of_that\)"):
        ftk.wise_ft(model, tmp_path / "own.weights.h5", (x, target), verbose=0)
    assert ftk.wise_ft(model, start, (x, target), mixes=3, verbose=0).chosen == 0.5
