"""The average of several fine-tuned models."""

import json
import weakref

import keras
import numpy as np
import pytest
from conftest import chain, images, residual, same, snapshot, value, vectors

import finetune_keras as ftk
from finetune_keras import heads, select
from finetune_keras.averaging import sources
from finetune_keras.cache import forward

layers = keras.layers


def runs(make=chain, count=3, *, size=0.3, loss="mse", **settings):
    """A compiled model, and the weights of as many trainings from it."""
    model = make()
    model.compile("sgd", loss, **settings)
    start, found = snapshot(model), []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        moved = {p: a + size * rng.normal(size=a.shape) for p, a in start.items()}
        found.append(
            ftk.Snapshot(f"run{seed}", {p: moved[p].astype(start[p].dtype) for p in moved})
        )
    return model, found


def average(found):
    return {p: np.mean([s.weights[p] for s in found], axis=0) for p in found[0].weights}


def predicts(model, weights, x):
    """What the model predicts with other weights."""
    before = ftk.snapshot(model)
    ftk.Snapshot("other", weights).restore(model)
    y = model.predict(x, verbose=0)
    before.restore(model)
    return y


def unchanged(model, before):
    for path, array in before.items():
        np.testing.assert_array_equal(snapshot(model)[path], array, err_msg=path)


def dense():
    """One number: its loss can be told."""
    return keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, name="d")])


def numbers(*values, target, **settings):
    """A soup of models that are one number each."""
    model = dense()
    model.compile("sgd", "mse", metrics=settings.pop("metrics", None))
    model.set_weights([np.array([[9.0]])])
    given = [[np.array([[v]], "float32")] for v in values]
    x = np.ones((4, 1), "float32")
    made = ftk.soup(model, given, (x, np.full((4, 1), target)), verbose=0, **settings)
    return made, float(model.get_weights()[0][0, 0])


def test_the_greedy_recipe():
    # Best first: 2 (error 1), then 4.5: 3.25 is better and it is kept, then 8: 4.83 is worse.
    made, weight = numbers(8.0, 2.0, 4.5, target=3.0)
    assert made.kept == (1, 2)
    assert made.scores == pytest.approx((25.0, 1.0, 2.25))
    assert made.score == pytest.approx(0.0625)
    assert weight == pytest.approx(3.25)
    assert made.adopted
    assert (made.best, made.before) == (pytest.approx(1.0), pytest.approx(36.0))


def test_an_ingredient_with_which_the_score_is_equal_is_kept():
    metric = keras.metrics.BinaryAccuracy(name="accuracy")
    made, weight = numbers(0.8, 1.4, 0.1, target=1.0, metrics=[metric])
    assert made.monitor == "accuracy"
    assert made.scores == (1.0, 1.0, 0.0)
    assert made.kept == (0, 1, 2), "by the loss among equals, and the mean of all is over 0.5"
    assert weight == pytest.approx((0.8 + 1.4 + 0.1) / 3)


def test_greedy_of_one_is_the_best_ingredient():
    made, weight = numbers(3.0, 7.0, 8.0, target=3.0)
    assert made.kept == (0,)
    assert weight == 3.0
    assert made.adopted


def test_uniform_is_adopted_only_if_it_is_not_worse_than_the_best():
    made, weight = numbers(2.0, 4.5, target=3.0, recipe="uniform")
    assert (made.adopted, made.kept) == (True, (0, 1))
    assert weight == pytest.approx(3.25)
    made, weight = numbers(3.0, 8.0, target=3.0, recipe="uniform")
    assert not made.adopted
    assert weight == 9.0
    assert made.score == pytest.approx(6.25)
    assert "not adopted" in repr(made)


def test_a_model_that_is_better_than_the_soup_stays():
    made, weight = numbers(2.0, 3.0, target=9.0)
    assert not made.adopted
    assert weight == 9.0


def test_the_average_is_that_of_numpy():
    model, found = runs()
    x, _ = vectors()
    y = predicts(model, average(found), x)
    made = ftk.soup(model, found, (x, y), recipe="uniform", verbose=0)
    assert made.adopted
    for path, array in average(found).items():
        same(snapshot(model)[path], array, atol=1e-6)


def test_a_soup_of_equals_is_the_same_to_the_bit():
    model, found = runs(count=1)
    x, _ = vectors()
    y = predicts(model, dict(found[0].weights), x)
    assert ftk.soup(model, found * 7, (x, y), recipe="uniform", verbose=0).adopted
    unchanged(model, dict(found[0].weights))


def test_ingredients_of_every_kind(tmp_path):
    model, found = runs()
    x, _ = vectors()
    y = predicts(model, average(found), x)
    before = ftk.snapshot(model)
    twin = keras.models.clone_model(model)
    found[0].restore(model)
    model.save_weights(tmp_path / "one.weights.h5")
    found[1].save(tmp_path / "two.npz")
    found[2].restore(twin)
    twin.save(tmp_path / "three.keras")
    found[1].restore(twin)
    kinds = [
        [tmp_path / "one.weights.h5", tmp_path / "two.npz", str(tmp_path / "three.keras")],
        [list(found[0].weights.values()), twin, found[2]],
        (x for x in found),
    ]
    for given in kinds:
        before.restore(model)
        made = ftk.soup(model, given, (x, y), recipe="uniform", verbose=0)
        assert made.adopted
        for path, array in average(found).items():
            same(snapshot(model)[path], array, atol=1e-6)
    for path, array in found[1].weights.items():  # an ingredient stays what it was
        np.testing.assert_array_equal(snapshot(twin)[path], array)
    before.restore(model)
    made = ftk.soup(model, dict(zip("abc", found, strict=True)), (x, y), verbose=0)
    assert made.names == ("a", "b", "c")
    before.restore(model)
    assert ftk.soup(model, kinds[0], (x, y), verbose=0).names[0] == "one.weights.h5"


def test_checkpoints_of_a_trained_model_are_ingredients(tmp_path):
    x, y = images(24)
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3, dropout=0.2))
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[save])
    files = sorted(tmp_path.glob("*.h5"))
    optimizer = [value(v) for v in model.optimizer.variables]
    made = ftk.soup(model, files, (x, y), verbose=0)
    assert made.names == ("1.weights.h5", "2.weights.h5", "3.weights.h5")
    assert made.scores[2] == made.before, "the last file is the model as it was"
    rank = max if made.mode == "max" else min
    assert rank(made.score, made.best) == made.score
    for one, other in zip(optimizer, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, value(other))
    model.fit(x, y, verbose=0)


def test_the_model_itself_may_be_an_ingredient():
    model, found = runs(count=2)
    x, _ = vectors()
    found[0].restore(model)
    y = predicts(model, average(found), x)
    sharing = keras.Model(model.inputs, model.outputs)
    for own in (model, sharing):
        found[0].restore(model)
        made = ftk.soup(model, [found[1], own], (x, y), recipe="uniform", verbose=0)
        assert made.adopted
        for path, array in average(found).items():
            same(snapshot(model)[path], array, atol=1e-6)


def test_files_are_not_held_all_at_once(tmp_path, monkeypatch):
    model, found = runs(count=6)
    files = [s.save(tmp_path / f"{i}.npz") for i, s in enumerate(found)]
    alive, most = [], []
    load = sources.snapshot

    def watched(source):
        made = load(source)
        alive.append(weakref.ref(made))
        most.append(sum(r() is not None for r in alive))
        return made

    monkeypatch.setattr(sources, "snapshot", watched)
    made = ftk.soup(model, files, vectors(), verbose=0)
    assert len(made.scores) == 6
    assert len(most) == 12
    assert max(most) <= 2


@pytest.mark.parametrize("at", [2, 5])
def test_an_interruption_leaves_the_model_as_it_was(monkeypatch, at):
    model, found = runs()
    before = snapshot(model)
    evaluate, calls = model.evaluate, []

    def breaks(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(model, "evaluate", breaks)
    with pytest.raises(KeyboardInterrupt):
        ftk.soup(model, found, vectors(), verbose=0)
    assert len(calls) == at
    unchanged(model, before)


def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path):
    model, found = runs()
    before, data = snapshot(model), vectors()
    nan = dict(found[1].weights)
    nan["c/kernel"] = np.full((8, 3), np.inf, "float32")
    wrong = keras.Sequential([keras.Input((6,)), layers.Dense(7, name="a")])
    wrong.save_weights(tmp_path / "wrong.weights.h5")
    lora = chain()
    lora.get_layer("b").enable_lora(2)
    bad = ftk.Snapshot("bad", nan)
    bad.save(tmp_path / "bad.npz")
    cases = [
        (ftk.WeightsError, [found[0], bad], {}, "^ingredient 1 has NaN or infinity in 'c/kernel'"),
        (ftk.WeightsError, [tmp_path / "bad.npz"], {}, r"^ingredient 0 \(bad.npz\) has NaN"),
        (ftk.WeightsError, {"mine": bad}, {}, "^ingredient 'mine' has NaN"),
        (ftk.WeightsError, [found[0], wrong], {}, "ingredient 1 is of another architecture: .*7"),
        (ftk.WeightsError, [tmp_path / "wrong.weights.h5"], {}, "holds 2 weight arrays and 'chain"),
        (ftk.WeightsError, [tmp_path / "none.keras"], {}, "no file 'none.keras'"),
        (ftk.WeightsError, [lora], {}, "LoRA factors"),
        (ValueError, [], {}, "a soup needs an ingredient"),
        (TypeError, "run.keras", {}, "ingredients is a list .* given a str"),
        (TypeError, found[0], {}, "ingredients is a list .* given a Snapshot"),
        (TypeError, None, {}, "ingredients is a list .* given a NoneType"),
        (TypeError, [3], {}, "ingredient 0 is a snapshot, a model .* given a int"),
        (ValueError, found, {"recipe": "greedi"}, "did you mean 'greedy'"),
        (ValueError, found, {"monitor": "auc"}, "monitor='auc' is nothing"),
    ]
    for kind, given, settings, words in cases:
        with pytest.raises(kind, match=words) as caught:
            ftk.soup(model, given, data, verbose=0, **settings)
        assert "\n" not in str(caught.value)
        unchanged(model, before)
    calls = []
    model.evaluate = lambda *a, **k: calls.append(1)
    with pytest.raises(ftk.WeightsError, match="did you mean 'bad.npz'"):
        ftk.soup(model, [found[0], tmp_path / "bda.npz"], data)
    assert not calls, "a path is looked at before hours of evaluation"
    with pytest.raises(ValueError, match="is not compiled"):
        ftk.soup(chain(), found, data)


def test_what_is_frozen_is_computed_once_with_equal_scores(monkeypatch):
    seen = []
    arrays = forward.Pass._arrays

    def counting(self, batch, number):
        seen.append(batch.size)
        return arrays(self, batch, number)

    monkeypatch.setattr(forward.Pass, "_arrays", counting)
    x, y = images(24)
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3), freeze=select.backbone())
    found = []
    for _ in range(3):
        model.fit(x, y, verbose=0)
        found.append(ftk.snapshot(model))
    made = ftk.soup(model, found, (x, y), monitor="loss", verbose=0)
    assert sum(seen) == 24
    for one, score in zip(found, made.scores, strict=True):
        one.restore(model)
        assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(score, rel=1e-4)


def with_norm():
    x = inputs = keras.Input((6,))
    x = layers.Dense(5, name="a")(x)
    x = layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, layers.Dense(3, name="c")(x))


def test_refresh_is_for_averages_and_goes_with_the_weights_that_are_adopted():
    model, found = runs(with_norm, 2, size=0.1)
    x, _ = vectors()
    target = average(found)
    hidden = x @ target["a/kernel"] + target["a/bias"]
    target |= {"norm/moving_mean": hidden.mean(0), "norm/moving_variance": hidden.var(0)}
    y = predicts(model, target, x)
    for recipe in ("greedy", "uniform"):
        plain = ftk.soup(model, found, (x, y), recipe=recipe, verbose=0)
        model, _ = runs(with_norm, 0)
        made = ftk.soup(model, found, (x, y), recipe=recipe, refresh=x, batch_size=32, verbose=0)
        assert made.scores == pytest.approx(plain.scores, rel=1e-4), "ingredients stay as they are"
        assert made.score == pytest.approx(0, abs=1e-6)
        for path, array in target.items():
            same(snapshot(model)[path], array, atol=1e-5)


def test_the_record(tmp_path, capsys):
    model, found = runs(count=2)
    made = ftk.soup(model, found, vectors())
    assert capsys.readouterr().out.splitlines()[0].startswith("ingredient 0: loss ")
    assert repr(made).startswith(f"<Soup of {len(made.kept)} of 2, greedy: loss {made.score:.4f}, ")
    kept = json.loads(json.dumps(made.to_dict()))
    assert kept["scores"] == list(made.scores)
    assert kept["best"] == min(made.scores)
    assert made._repr_html_().count("<tr>") == 3
    pytest.importorskip("matplotlib")
    path = made.plot(tmp_path / "soup.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert made.plot().axes[0].get_ylabel() == "validation loss"
