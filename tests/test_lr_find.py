"""The learning-rate range test: it finds a rate, and leaves no trace."""

import random

import keras
import numpy as np
import pytest
from conftest import chain, images, residual, value, vectors

import finetune_keras as ftk
from finetune_keras import _private, heads, optimizers, select
from finetune_keras.lr_find.found import found as read_off
from finetune_keras.lr_find.found import smooth

layers = keras.layers
STEPS = {"steps": 12, "verbose": 0}
# Of twelve steps no rate can be read, which is not what most tests here are about.
pytestmark = pytest.mark.filterwarnings("ignore:lr_find")


def everything(model):
    """All that training could have changed, as arrays."""
    kept = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    state = {str(i): value(v) for i, v in enumerate(kept)}
    seeds = _private.global_seeds()
    state["seeds"] = np.zeros(2) if seeds is None else value(seeds.state)
    state["numpy"], state["python"] = np.random.get_state()[1], np.array(random.getstate()[1])
    return state


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def dropping():
    """A network with dropout and statistics, all of which learn."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="a"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(3, name="c"),
        ]
    )
    model.compile(keras.optimizers.AdamW(1e-3), "mse", metrics=["mae"])
    return model, vectors()


def scheduled():
    model = chain()
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 20)
    many = 1 if keras.backend.backend() == "torch" else 2  # which has no more
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), "mse", steps_per_execution=many)
    return model, vectors()


def scaled():
    model = chain()
    inner = keras.optimizers.Adam(1e-3)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0), "mse")
    return model, vectors()


def frozen():
    """A frozen network under a head with dropout, behind augmentation."""
    model = ftk.build(
        residual(),
        heads.Classification(3, dropout=0.5, feature_noise=0.1),
        freeze=select.backbone(),
        augment=layers.RandomFlip(),
    )
    return model, images(24)


def own_step():
    class Own(keras.Model):
        def train_step(self, *args):
            self.seen = getattr(self, "seen", 0) + 1
            return super().train_step(*args)

    inputs = keras.Input((6,))
    model = Own(inputs, layers.Dense(3)(layers.Dropout(0.2)(inputs)))
    model.compile("adam", "mse", metrics=[keras.metrics.MeanAbsoluteError()])
    return model, vectors()


MODELS = [dropping, scheduled, scaled, frozen, own_step]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore:the augmentation")
def test_training_after_it_equals_training_without_it(make, trained):
    def run(with_it):
        keras.utils.set_random_seed(3)
        model, data = make()
        fit = ftk.fit if make is frozen else keras.Model.fit
        if trained:
            fit(model, *data, batch_size=8, epochs=1, verbose=0)
        if with_it:
            before, names = everything(model), set(vars(model)) | {"seen"}
            objects = model.optimizer, model.train_function, model.loss, model.metrics
            flags = [v.trainable for v in model.variables]
            found = ftk.lr_find(model, data, batch_size=8, **STEPS)
            assert len(found.losses) >= 10
            assert_same(before, everything(model))
            assert set(vars(model)) | {"seen"} == names
            after = model.optimizer, model.train_function, model.loss, model.metrics
            assert all(a is b for a, b in zip(after[:3], objects[:3], strict=True))
            assert [id(m) for m in after[3]] == [id(m) for m in objects[3]]
            assert flags == [v.trainable for v in model.variables]
        fit(model, *data, batch_size=8, epochs=2, verbose=0)
        return everything(model)

    assert_same(run(False), run(True))


def test_an_order_of_ours_stays_in_its_epoch():
    x, y = images(24)
    ds = ftk.data.arrays(x, y, batch_size=8, seed=1)
    model = ftk.build(residual(), heads.Classification(3))
    for _ in ds:
        pass
    before = everything(model)
    found = ftk.lr_find(model, ds, **STEPS)
    assert len(found.losses) == 12
    assert ds.order.epoch == 1
    assert_same(before, everything(model))


class Counted(keras.utils.PyDataset):
    """Batches of made images that counts what is asked of it, and may fail."""

    def __init__(self, batches, fails_at=None, error=KeyboardInterrupt):
        super().__init__()
        self.batches, self.fails_at, self.error = batches, fails_at, error
        self.read = self.told = 0
        self.x, self.y = images(6)

    def __len__(self):
        return self.batches

    def __getitem__(self, i):
        self.read += 1
        np.random.uniform(size=3), random.random()  # as a careless augmentation does
        if self.read == self.fails_at:
            raise self.error("in the middle")
        return self.x + i, self.y

    def on_epoch_end(self):
        self.told += 1


@pytest.mark.parametrize("freeze", [None, select.backbone()])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_data_that_fail_in_the_middle_leave_no_trace(freeze, error):
    model = ftk.build(residual(), heads.Classification(3), freeze=freeze)
    model.fit(*images(), verbose=0)
    before = everything(model)
    with pytest.raises(error, match="in the middle"):
        ftk.lr_find(model, Counted(20, fails_at=9, error=error), **STEPS)
    assert_same(before, everything(model))
    model.fit(*images(), verbose=0)


@pytest.mark.parametrize("make", [dropping, frozen], ids=lambda f: f.__name__)
def test_ctrl_c_in_the_middle_of_training_leaves_no_trace(make, monkeypatch):
    def run(with_it):
        keras.utils.set_random_seed(3)
        model, data = make()
        model.fit(*data, batch_size=8, verbose=0)
        before, function = everything(model), model.train_function
        if with_it:
            plain, calls = keras.Model.train_on_batch, []

            def pressed(self, *args, **kwargs):
                calls.append(plain(self, *args, **kwargs))
                if len(calls) == 7:
                    raise KeyboardInterrupt
                return calls[-1]

            with monkeypatch.context() as patch:
                patch.setattr(keras.Model, "train_on_batch", pressed)
                with pytest.raises(KeyboardInterrupt):
                    ftk.lr_find(model, data, batch_size=8, **STEPS)
            assert_same(before, everything(model))
            assert model.train_function is function
        model.fit(*data, batch_size=8, verbose=0)
        return everything(model)

    assert_same(run(False), run(True))


class Unseeded(Counted):
    """Noise from Keras' global generator, which the first draw makes and any call may replace."""

    def __init__(self, *, starts=False):
        super().__init__(4)
        self.starts = starts

    def __getitem__(self, i):
        if self.starts:
            keras.utils.set_random_seed(3)
        x, y = super().__getitem__(i)
        return x + value(keras.random.normal(x.shape)), y


@pytest.mark.parametrize("freeze", [None, select.backbone()])
@pytest.mark.parametrize("there", [False, True])
def test_the_global_generator_of_random_numbers_is_as_before(freeze, there):
    model = ftk.build(residual(), heads.Classification(3), freeze=freeze)
    _private.set_global_seeds(keras.random.SeedGenerator(4) if there else None)
    given, before = _private.global_seeds(), everything(model)
    for starts in (False, True):
        ftk.lr_find(model, Unseeded(starts=starts), **STEPS)
        assert _private.global_seeds() is given
        assert_same(before, everything(model))


def test_frozen_layers_are_computed_once_and_no_more_batches_than_steps():
    model = ftk.build(residual(), heads.Classification(3), freeze=select.backbone())
    few, many = Counted(3), Counted(40)
    assert len(ftk.lr_find(model, few, **STEPS).losses) == 12
    assert few.read == 3
    ftk.lr_find(model, many, **STEPS)
    assert many.read == 12
    assert few.told == many.told == 0
    open_ = ftk.build(residual(), heads.Classification(3), learning_rate=1e-4)
    few = Counted(3)
    ftk.lr_find(open_, few, end=1e-3, **STEPS)
    assert few.read == 12


def test_the_rate_changes_without_tracing_again():
    calls = []

    def loss(y, p):
        calls.append(1)
        return keras.ops.mean(keras.ops.square(y - p))

    model = chain()
    model.compile("adam", loss)
    ftk.lr_find(model, vectors(), batch_size=8, steps=20, end=1e-2, verbose=0)
    expected = {"tensorflow": 3, "jax": 3}.get(keras.backend.backend(), 21)
    assert len(calls) <= expected


def test_the_curve_is_that_of_training_at_these_rates():
    x, y = vectors()
    model = chain()
    model.compile(keras.optimizers.SGD(0.5, momentum=0.5), "mse")
    start = model.get_weights()
    found = ftk.lr_find(model, x, y, start=1e-3, end=1e-1, steps=10, batch_size=32, verbose=0)
    np.testing.assert_allclose(found.learning_rates, np.geomspace(1e-3, 1e-1, 10))
    again = chain()
    again.set_weights(start)
    again.compile(keras.optimizers.SGD(0.5, momentum=0.5), "mse")
    expected = []
    for rate in found.learning_rates:  # one batch of all examples, so that order is no matter
        again.optimizer.learning_rate = float(rate)
        expected.append(float(again.train_on_batch(x, y)))
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)


def test_the_suggestion_lies_below_where_the_loss_must_diverge():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 6)).astype("float32")
    y = (x @ rng.normal(size=(6, 3))).astype("float32")
    limit = 2 / np.linalg.eigvalsh(2 * x.T @ x / len(x) / 3).max()  # of gradient descent
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile("sgd", "mse")
    found = ftk.lr_find(model, x, y, end=100, verbose=0)
    assert found.stopped
    assert found.learning_rates[-1] > limit
    for rate in found.suggestions.values():
        assert 1e-4 * limit < rate < limit
    before = model.evaluate(x, y, verbose=0)
    ftk.compile(model, learning_rate=found.suggestion)
    model.fit(x, y, epochs=5, verbose=0)
    assert model.evaluate(x, y, verbose=0) < 0.7 * before


def test_smoothing_is_a_bias_corrected_average():
    losses = np.array([3.0, 2.0, 5.0, 1.0])
    weights = 0.8 ** np.arange(3, -1, -1)
    assert smooth(losses, 0.8)[-1] == pytest.approx((weights * losses).sum() / weights.sum())
    np.testing.assert_array_equal(smooth(losses, 0), losses)


def bowl(noise=0.0, n=100):
    """Flat, then down to a minimum at 1e-1, then up."""
    rates = np.geomspace(1e-7, 10, n)
    z = np.log10(rates)
    losses = 2.0 - 1.5 / (1 + np.exp(-4 * (z + 2))) + np.exp(3 * (z + 0.2))
    return rates, losses + noise * np.random.default_rng(0).normal(size=n)


def test_rules_on_a_curve_that_is_known():
    rates, losses = bowl()
    found = read_off(rates, losses, 0.0, stopped=False)
    assert found.suggestions["steepest"] == pytest.approx(1e-2, rel=0.5)
    low = rates[losses.argmin()]
    assert found.suggestions["minimum/10"] == pytest.approx(low / 10)
    assert found.suggestion == found.suggestions[found.reason]
    noisy = read_off(*bowl(noise=0.2), 0.9, stopped=False)
    assert noisy.suggestion == pytest.approx(found.suggestion, rel=3)


@pytest.mark.parametrize("smoothing", [0.0, 0.9, 0.98])
def test_a_curve_that_is_noise_suggests_nothing(smoothing):
    rates = np.geomspace(1e-7, 10, 100)
    none = 0
    for seed in range(40):
        losses = 2 + 0.3 * np.random.default_rng(seed).normal(size=100)
        found = read_off(rates, losses, smoothing, stopped=False)
        none += found.suggestion is None
    assert none >= 36
    rising = read_off(rates, 2 + rates, smoothing, stopped=False)
    assert rising.suggestion is None
    assert rising.suggestions == {}
    assert "the loss never falls" in repr(rising)
    assert "a lower start=" in repr(rising)
    assert rising.note == f"no suggestion, since {rising.reason}"


def test_a_model_at_its_optimum_gets_none_with_the_reason():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile("sgd", "mse")
    x, _ = vectors()
    found = ftk.lr_find(model, x, value(model(x)), steps=20, verbose=0)
    assert found.suggestion is None
    assert "the loss never falls" in found.reason
    assert "no suggestion, since" in repr(found)


def falling(noise=0.0, n=100):
    """Down to the last rate, as where the sweep ends too early."""
    rates = np.geomspace(1e-7, 1e-3, n)
    losses = 2.0 - 1.5 / (1 + np.exp(-2 * (np.log10(rates) + 3)))
    return rates, losses + noise * np.random.default_rng(0).normal(size=n)


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_a_sweep_that_ends_before_the_loss_rises_says_so(noise, smoothing):
    found = read_off(*falling(noise), smoothing, stopped=False)
    assert found.suggestion == pytest.approx(1e-4, rel=0.5)  # of the last rate, a tenth
    assert "has not risen again at the last rate, 0.001" in found.note
    assert "a lower bound" in found.note
    assert "a higher end=" in found.note
    assert found.note in repr(found)
    assert repr(found).startswith(f"<LRFind: at least {found.suggestion:.2g} by minimum/10")
    for stopped in (False, True):
        risen = read_off(*bowl(noise), smoothing, stopped=stopped)
        assert risen.note == ""
        assert "at least" not in repr(risen)


def test_a_plateau_at_the_end_is_no_rise():
    rates = np.geomspace(1e-7, 10, 100)
    losses = np.maximum(2.0 - 0.03 * np.arange(100), 0.3)
    for noise in (0.0, 0.05):
        noisy = losses + noise * np.random.default_rng(1).normal(size=100)
        found = read_off(rates, noisy, 0.9, stopped=False)
        assert "has not risen again" in found.note


def test_lr_find_warns_of_what_its_suggestion_is_worth():
    x, y = vectors()
    model = chain()
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"lr_find: the loss has not risen again .* 0\.03"):
        found = ftk.lr_find(model, x, y, start=1e-3, end=0.03, batch_size=32, steps=40, verbose=0)
    assert found.suggestion is not None
    with pytest.warns(UserWarning, match="lr_find: no suggestion, since the loss never falls"):
        found = ftk.lr_find(model, x, y, end=1e-6, batch_size=32, steps=40, verbose=0)
    assert found.suggestion is None
    assert "up to the last rate, 1e-06" in found.reason
    assert "a higher end=" in found.reason


@pytest.fixture
def half_frozen():
    model = chain()
    model.compile("adam", "mse")
    ftk.freeze(model, select.up_to("a"))
    return model


@pytest.mark.parametrize("open_", [False, True])
def test_all_kinds_of_data(half_frozen, open_):
    import tensorflow as tf

    model, (x, y) = half_frozen, vectors()
    if open_:
        ftk.thaw(model, select.everything())
    ds = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)  # the last one smaller
    tensors = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
    for data in ((x, y, np.ones(32)), (x.tolist(), y.tolist()), tensors, ds, ds.repeat()):
        assert len(ftk.lr_find(model, data, **STEPS).losses) == 12
    assert len(ftk.lr_find(model, x, y, **STEPS).losses) == 12
    with pytest.warns(UserWarning, match="what is read from a generator is gone"):
        made = ftk.lr_find(model, ((x[:8], y[:8]) for _ in range(3)), **STEPS)
    assert len(made.losses) == 12


def test_a_shuffled_torch_loader_leaves_the_random_state(half_frozen):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(*map(torch.tensor, vectors()))
    own = torch.Generator()
    before = torch.get_rng_state(), own.get_state()
    for generator in (None, own):
        loader = torch.utils.data.DataLoader(data, 8, shuffle=True, generator=generator)
        assert len(ftk.lr_find(half_frozen, loader, **STEPS).losses) == 12
    for a, b in zip(before, (torch.get_rng_state(), own.get_state()), strict=True):
        assert bool((a == b).all())


def task(*, trainable):
    """A KerasHub classifier of texts in two classes, with four of them sixteen times."""
    keras_hub = pytest.importorskip("keras_hub")
    tokenizer = keras_hub.tokenizers.BertTokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    )
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    backbone.trainable = trainable
    made = keras_hub.models.BertTextClassifier(
        backbone=backbone,
        num_classes=2,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=6),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.Adam(1e-2), loss)
    return made, ["good film", "bad film", "film", "good good"] * 16, np.array([1, 0, 0, 1] * 16)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_task_takes_its_raw_texts(trainable):
    model, texts, y = task(trainable=trainable)
    before = everything(model)
    found = ftk.lr_find(model, texts, y, batch_size=8, **STEPS)
    assert np.isfinite(found.losses).all()
    assert_same(before, everything(model))


@pytest.mark.parametrize("trainable", [False, True])
def test_a_label_that_a_task_cannot_take_is_told_before_the_sweep(trainable, monkeypatch):
    model, texts, y = task(trainable=trainable)
    before = everything(model)
    monkeypatch.setattr(keras.Model, "train_on_batch", None)  # nothing may be trained
    y[:] += 1
    with pytest.raises(ValueError, match=r"the data: .* labels are outside .*\(2\)"):
        ftk.lr_find(model, texts, y, batch_size=8, **STEPS)
    with pytest.raises(ValueError, match="the data: .*label"):
        ftk.lr_find(model, texts, y.astype(str), batch_size=8, **STEPS)
    assert_same(before, everything(model))


@pytest.mark.parametrize("make", [task, "open", "frozen"])
def test_a_wrong_label_in_a_later_batch_ends_the_sweep(make):
    if make is task:
        model, x, y = task(trainable=True)
        x = np.array(x)
    else:
        model = ftk.build(
            residual(),
            heads.Classification(3),
            freeze=select.backbone() if make == "frozen" else None,
        )
        x, y = images(64)
    y[50] = 7  # in the seventh batch

    class Data(keras.utils.PyDataset):
        num_batches = None  # read in order

        def __getitem__(self, i):
            at = slice(8 * (i % 8), 8 * (i % 8) + 8)
            return x[at], y[at]

    before = everything(model)
    with pytest.raises(ValueError, match=r"the data: 1 of \d+ labels are outside .*\(7\)"):
        ftk.lr_find(model, Data(), **STEPS)
    assert_same(before, everything(model))


def test_a_network_in_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = chain()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("adam", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    x, _ = vectors()
    model.fit(x, x[:, :3], verbose=0)
    before = everything(model)
    found = ftk.lr_find(model, x, x[:, :3], steps=40, verbose=0)
    assert_same(before, everything(model))
    assert found.smoothed.min() < found.losses[0]


def test_a_schedule_is_in_force_again_at_its_place():
    model, data = scheduled()
    model.fit(*data, batch_size=8, verbose=0)
    now = optimizers.rate(model.optimizer)
    ftk.lr_find(model, data, **STEPS)
    assert optimizers.rate(model.optimizer) == now
    assert optimizers.scheduled(model.optimizer)


def test_clear_errors():
    x, y = vectors()
    model = chain()
    with pytest.raises(ValueError, match="is not compiled"):
        ftk.lr_find(model, (x, y))
    model.compile("adam", "mse")
    before = everything(model)
    with pytest.raises(TypeError, match="expected a keras.Model; given a ndarray"):
        ftk.lr_find(x, model)
    with pytest.raises(ValueError, match="0 examples"):
        ftk.lr_find(model, (x[:0], y[:0]))
    with pytest.raises(ValueError, match="gives no batch"):
        ftk.lr_find(model, iter([]))
    with pytest.raises(ValueError, match="labels are given twice"):
        ftk.lr_find(model, (x, y), y)
    with pytest.raises(TypeError, match="x is missing"):
        ftk.lr_find(model, None)
    for given, message in (
        ({"start": 0}, "start is a rate above 0; given 0"),
        ({"start": 1.0, "end": 0.1}, "rates grow from start to end"),
        ({"end": float("inf")}, "end is a rate above 0"),
        ({"steps": 9}, "steps is a whole number from 10 on; given 9"),
        ({"smoothing": 1}, "smoothing is a number from 0 to below 1; given 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ftk.lr_find(model, (x, y), **given)
    with pytest.raises(ValueError, match="NaN"):
        ftk.lr_find(model, (x * np.nan, y))
    assert_same(before, everything(model))
    model.trainable = False
    with pytest.raises(ValueError, match="nothing learns"):
        ftk.lr_find(model, (x, y))


def test_labels_that_the_loss_cannot_take_are_told_before_a_step_is_made():
    x, y = images(24)
    model = ftk.build(residual(), heads.Classification(3), freeze=select.backbone())
    for wrong in (y + 1, y.astype("str"), y[:, None] * [1, 1]):
        with pytest.raises((ValueError, TypeError)) as caught:
            ftk.lr_find(model, (x, wrong), **STEPS)
        assert "label" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_at_once():
    model = chain()
    model.compile("sgd", lambda y, p: keras.ops.log(keras.ops.sum(p) * 0))
    with pytest.raises(ValueError, match="the loss is -inf at the first step"):
        ftk.lr_find(model, vectors(), **STEPS)


def test_plot_and_text(tmp_path):
    pytest.importorskip("matplotlib")
    found = read_off(*bowl(noise=0.05), 0.9, stopped=True)
    (axes,) = found.plot().axes
    assert axes.get_xscale() == "log"
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), found.smoothed)
    path = found.plot(tmp_path / "curve.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "\n" not in repr(found)
    assert f"{found.suggestion:.2g} by {found.reason}" in repr(found)
    assert "where the loss diverged" in repr(found)
    assert "base64" in found._repr_html_()
    assert axes.get_title() == ""
    for curve in (falling(), (rates := falling()[0], rates + 2)):
        told = read_off(*curve, 0.9, stopped=False)
        (axes,) = told.plot().axes
        assert " ".join(axes.get_title().split()) == told.note
    rates = np.geomspace(1e-7, 1e-5, 100)
    flat = read_off(rates, 1 + np.random.default_rng(0).normal(size=100), 0.9, stopped=False)
    (axes,) = flat.plot().axes
    assert axes.get_ylim()[0] < flat.smoothed.min()
    assert axes.get_ylim()[1] > flat.smoothed.max()
    with pytest.raises(ValueError, match="read-only"):
        found.losses[0] = 1
