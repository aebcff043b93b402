"""Schedules: held to formulas, and to what becomes of them in a model's life."""

import json

import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, residual, value, vectors

import finetune_keras as ftk
from finetune_keras import heads, optimizers, select
from finetune_keras.schedules import OneCycle, SlantedTriangular, WarmupCosine

ALL = [
    WarmupCosine(0.3, 50, warmup_steps=7, initial_learning_rate=0.01, alpha=0.1),
    OneCycle(0.3, 50, pct_start=0.25, div_factor=10, final_div_factor=100),
    SlantedTriangular(0.3, 50, cut_frac=0.13, ratio=20),
]
KINDS = [WarmupCosine, OneCycle, SlantedTriangular]


def curve(schedule, steps):
    return np.array([float(value(schedule(int(t)))) for t in steps])


def warmup_cosine(t, rate, steps, warmup, initial=0.0, alpha=0.0):
    fall = (np.minimum(t, steps) - warmup) / (steps - warmup)
    down = rate * (alpha + (1 - alpha) * (1 + np.cos(np.pi * fall)) / 2)
    return np.where(t < warmup, initial + (rate - initial) * t / max(warmup, 1), down)


def one_cycle(t, rate, steps, pct=0.3, div=25.0, final=1e4):
    peak, last = pct * steps - 1, steps - 1
    t = np.minimum(t, last)

    def between(a, b, f):
        return a + (b - a) * (1 - np.cos(np.pi * f)) / 2

    down = between(rate, rate / div / final, (t - peak) / (last - peak))
    return np.where(t < peak, between(rate / div, rate, t / peak), down)


def slanted(t, rate, steps, frac=0.1, ratio=32):
    cut = np.floor(steps * frac)
    t = np.minimum(t, steps)
    p = np.where(t < cut, t / cut, 1 - (t - cut) / (cut * (1 / frac - 1)))
    return rate * (1 + p * (ratio - 1)) / ratio


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (WarmupCosine(0.3, 50, warmup_steps=7), lambda t: warmup_cosine(t, 0.3, 50, 7)),
        (ALL[0], lambda t: warmup_cosine(t, 0.3, 50, 7, 0.01, 0.1)),
        (WarmupCosine(1e-5, 50, warmup_steps=0), lambda t: warmup_cosine(t, 1e-5, 50, 0)),
        (OneCycle(0.3, 50), lambda t: one_cycle(t, 0.3, 50)),
        (ALL[1], lambda t: one_cycle(t, 0.3, 50, 0.25, 10, 100)),
        (SlantedTriangular(0.3, 50), lambda t: slanted(t, 0.3, 50)),
        (
            SlantedTriangular(0.3, 200, cut_frac=0.25, ratio=5),
            lambda t: slanted(t, 0.3, 200, 0.25, 5),
        ),
    ],
)
def test_values_are_those_of_the_formula(schedule, formula):
    t = np.arange(260)
    expected = formula(t)
    np.testing.assert_allclose(curve(schedule, t[::3]), expected[::3], rtol=2e-6, atol=1e-8)
    np.testing.assert_allclose(value(schedule(t)), expected, rtol=2e-6, atol=1e-8)  # all at once


def test_warmup_cosine_is_keras_own_on_the_same_numbers():
    own = keras.optimizers.schedules.CosineDecay(
        0.01, 43, alpha=0.1, warmup_target=0.3, warmup_steps=7
    )
    np.testing.assert_allclose(curve(ALL[0], range(60)), curve(own, range(60)), rtol=2e-6)


def test_one_cycle_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    for steps, pct in ((50, 0.3), (25, 0.1), (7, 0.5)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        theirs = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.2, total_steps=steps, pct_start=pct
        )
        expected = []
        for _ in range(steps):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(expected) < steps:
                theirs.step()
        ours = OneCycle(0.2, steps, pct_start=pct)
        np.testing.assert_allclose(curve(ours, range(steps)), expected, rtol=1e-5, atol=1e-9)


def test_the_triangle_stays_above_its_lowest_rate_where_the_cut_is_rounded():
    rates = value(SlantedTriangular(0.32, 25)(np.arange(40)))
    assert rates.min() == pytest.approx(0.01)
    assert rates.argmax() == 2
    assert np.all(np.diff(rates[2:26]) < 0)  # the paper's own would be below 0 from step 21 on


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_the_last_rate_holds_after_the_end(schedule):
    end = float(value(schedule(50)))
    for step in (51, 10_000, 2**31 - 1, 2**40):
        assert float(value(schedule(step))) == end
    assert float(value(schedule(-3))) == float(value(schedule(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_short_ones_have_a_positive_first_rate(kind):
    assert float(value(kind(0.1, 1)(0))) == pytest.approx(0.1)
    for steps in (1, 2, 3, 9):
        rates = curve(kind(0.1, steps), range(steps))
        assert np.all(rates >= 0)
        assert rates.max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_in_epochs(kind):
    whole = kind(0.1, 120)
    for given in (
        {"epochs": 4, "steps_per_epoch": 30},
        {"epochs": np.float32(2.5), "steps_per_epoch": np.int64(48)},
        {"steps": np.int32(120)},
        {"steps": 120.0},
    ):
        assert kind(np.float32(0.1), **given).steps == 120
        np.testing.assert_allclose(
            curve(kind(0.1, **given), (0, 50, 90)), curve(whole, (0, 50, 90))
        )
    assert WarmupCosine(0.1, 120, warmup_epochs=1.5, steps_per_epoch=20).warmup_steps == 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmupCosine(0.1), "given neither"),
        (lambda: OneCycle(0.1, 10, epochs=2, steps_per_epoch=5), "given both"),
        (lambda: OneCycle(0.1, epochs=2), "epochs= needs steps_per_epoch="),
        (lambda: OneCycle(0.1, 0), "steps is a whole number from 1 .* given 0"),
        (lambda: OneCycle(0.1, 10.5), "steps is a whole number .* given 10.5"),
        (lambda: OneCycle(0.1, "10"), "steps is a whole number .* given '10'"),
        (lambda: OneCycle(0.1, True), "steps is a whole number"),
        (lambda: OneCycle(0.1, 2**31), "steps is a whole number"),
        (lambda: OneCycle(0.1, float("nan")), "steps is a whole number"),
        (lambda: OneCycle(0.1, epochs=1e-9, steps_per_epoch=5), r"epochs \* steps_per_epoch is a"),
        (lambda: OneCycle(0.0, 10), "learning_rate is a number above 0; given 0.0"),
        (lambda: OneCycle(float("inf"), 10), "learning_rate is a number above 0"),
        (lambda: OneCycle("0.1", 10), "learning_rate is a number above 0"),
        (lambda: OneCycle(0.1, 10, pct_start=30), "pct_start is a number from 0 to 1; given 30"),
        (lambda: OneCycle(0.1, 10, div_factor=0.5), "div_factor is a number of 1 or more"),
        (lambda: SlantedTriangular(0.1, 10, ratio=0), "ratio is a number of 1 or more"),
        (lambda: SlantedTriangular(0.1, 10, cut_frac=-1), "cut_frac is a number from 0 to 1"),
        (lambda: WarmupCosine(0.1, 10, alpha=2), "alpha is a number from 0 to 1"),
        (lambda: WarmupCosine(0.1, 10, warmup_steps=10), "the warm-up of 10 steps leaves nothing"),
        (lambda: WarmupCosine(0.1, 10, warmup_epochs=1), "warmup_epochs= needs steps_per_epoch="),
        (
            lambda: WarmupCosine(0.1, 10, warmup_steps=1, warmup_epochs=1, steps_per_epoch=2),
            "warmup_steps= or warmup_epochs=",
        ),
    ],
)
def test_bad_values_are_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_steps_above_2_to_the_24_are_told_apart():
    steps = 2**25
    schedule = WarmupCosine(1.0, steps, warmup_steps=steps - 8)
    at = np.arange(steps - 9, steps + 1)
    expected = warmup_cosine(at.astype("float64"), 1.0, steps, steps - 8)
    np.testing.assert_allclose(value(schedule(at)), expected, atol=1e-6)
    counted = keras.ops.convert_to_tensor(np.array(steps - 7, "int32"))
    assert float(value(schedule(counted))) == pytest.approx(expected[2], abs=1e-6)


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
def test_half_precision_does_not_round_steps(floatx):
    expected = curve(WarmupCosine(1.0, 100_001, warmup_steps=1), (4_097, 99_999))
    before = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        for schedule in (WarmupCosine(1.0, 100_001, warmup_steps=1), *ALL):
            made = schedule(keras.ops.convert_to_tensor(4_097))
            assert keras.backend.standardize_dtype(made.dtype) == "float32"
        found = curve(WarmupCosine(1.0, 100_001, warmup_steps=1), (4_097, 99_999))
    finally:
        keras.config.set_floatx(before)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_configs_make_the_same_again(schedule):
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    again = keras.optimizers.schedules.deserialize(config)
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    assert repr(again) == repr(schedule)
    assert eval(repr(schedule)).get_config() == schedule.get_config()


def fitted(schedule, **settings):
    model = chain()
    model.compile(keras.optimizers.Adam(schedule, **settings), "mse")
    model.fit(*vectors(), batch_size=8, epochs=2, verbose=0)  # 8 steps
    return model


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_training_follows_the_schedule_and_goes_on_from_a_file(schedule, tmp_path):
    x, y = vectors()
    model = chain()
    model.compile(keras.optimizers.SGD(schedule), "mse")
    seen = []
    step = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: seen.append(optimizers.rate(model.optimizer))
    )
    model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[step])
    np.testing.assert_allclose(seen, curve(schedule, (0, 2, 4, 6)), rtol=1e-6)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert optimizers.rate(again.optimizer) == pytest.approx(float(value(schedule(8))))
    for each in (model, again):
        each.fit(x, y, batch_size=16, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(value(a), value(b))
    loaded = ftk.load(tmp_path / "m.keras")
    assert optimizers.rate(loaded.optimizer) == pytest.approx(float(value(schedule(8))))


def test_build_and_compile_take_them():
    model = ftk.build(
        residual(), heads.Classification(3), optimizer="sgd", learning_rate=OneCycle(1e-2, 40)
    )
    assert optimizers.rate(model.optimizer) == pytest.approx(1e-2 / 25)
    model.fit(*images(), batch_size=6, epochs=2, verbose=0)
    assert optimizers.rate(model.optimizer) == pytest.approx(
        float(value(OneCycle(1e-2, 40)(4))), rel=1e-5
    )
    assert "SGD, learning rate" in str(ftk.describe(model))
    assert "now, by OneCycle(0.01, steps=40)" in str(ftk.describe(model))


def test_freeze_keeps_the_place_in_the_schedule():
    schedule = WarmupCosine(1e-3, 40, warmup_steps=10)
    model = fitted(schedule)
    ftk.freeze(model, select.up_to("a"))
    assert optimizers.rate(model.optimizer) == pytest.approx(float(value(schedule(8))))
    model.fit(*vectors(), batch_size=8, verbose=0)
    assert optimizers.rate(model.optimizer) == pytest.approx(float(value(schedule(12))), rel=1e-5)


@pytest.mark.parametrize("accumulated", [None, 2])
def test_a_schedule_given_to_thaw_begins_then(accumulated, tmp_path):
    model = fitted(WarmupCosine(1e-3, 40, warmup_steps=10), gradient_accumulation_steps=accumulated)
    ftk.freeze(model, select.up_to("a"))
    new = WarmupCosine(1e-4, 20, warmup_steps=4)
    change = ftk.thaw(model, select.everything(), learning_rate=new)
    assert change.learning_rate[1] == 0.0
    told = "-> 0 now, by WarmupCosine(0.0001, steps=20, warmup_steps=4), from step 8 on"
    assert told in str(change)
    assert "from step 8 on" in str(ftk.describe(model))
    assert not change.schedule_dropped
    model.fit(*vectors(), batch_size=8, verbose=0)  # 4 more steps: at the top now
    assert optimizers.rate(model.optimizer) == pytest.approx(1e-4)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert optimizers.rate(again.optimizer) == pytest.approx(1e-4)
    ftk.freeze(model, select.up_to("a"))  # carried once more, it begins at the same step
    assert optimizers.rate(model.optimizer) == pytest.approx(1e-4)
    ftk.compile(model, learning_rate=new)
    assert optimizers.rate(model.optimizer) == 0.0
    ftk.compile(model, optimizer=model.optimizer)  # a new optimizer, at its step 0
    assert optimizers.rate(model.optimizer) == 0.0
    model.fit(*vectors(), batch_size=8, verbose=0)
    assert optimizers.rate(model.optimizer) == pytest.approx(1e-4)


def test_keras_own_schedules_begin_then_too():
    model = fitted(keras.optimizers.schedules.CosineDecay(1e-3, 8))
    assert optimizers.rate(model.optimizer) == pytest.approx(0, abs=1e-9)
    ftk.compile(model, learning_rate=keras.optimizers.schedules.CosineDecay(1e-2, 8))
    assert optimizers.rate(model.optimizer) == pytest.approx(1e-2)
    model.fit(*vectors(), batch_size=8, verbose=0)
    assert optimizers.rate(model.optimizer) == pytest.approx(5e-3, rel=1e-4)


def test_a_new_head_starts_the_schedule_again():
    model = classifier()
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(*images(), verbose=0)
    ftk.compile(model, learning_rate=OneCycle(1e-2, 10))
    new = ftk.replace_head(model, heads.Classification(2))
    assert optimizers.rate(new.optimizer) == pytest.approx(1e-2 / 25)
    assert "from step" not in str(ftk.describe(new))


def test_thaw_of_the_backbone_ends_a_high_schedule_and_says_so():
    model = fitted(OneCycle(1e-2, 40))
    ftk.freeze(model, select.up_to("b"))
    change = ftk.thaw(model, select.up_to("a"))
    assert change.schedule_dropped
    assert change.learning_rate[1] == pytest.approx(1e-5)
    assert change.schedule == ""


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_plots(schedule, tmp_path):
    pytest.importorskip("matplotlib")
    (axes,) = schedule.plot().axes
    x, y = axes.lines[0].get_data()
    np.testing.assert_array_equal(x, np.arange(51))
    np.testing.assert_allclose(y, curve(schedule, x), rtol=1e-5)
    path = schedule.plot(str(tmp_path / "curve.png"))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]
    with pytest.raises(ValueError, match="there is no folder"):
        schedule.plot(tmp_path / "none" / "curve.png")
