"""Phases' optimizers: a rate that goes up and down, and a step that a refit uses again."""

import keras
import numpy as np
import pytest
from conftest import classifier, images, snapshot
from test_soften import LOGITS, examples, network

import finetune_keras as ftk
from finetune_keras import optimizers, recipes, schedules, select
from finetune_keras.recipes import prepared

SETTINGS = {"batch_size": 8, "seed": 0, "verbose": 0}


def fitted(optimizer):
    """Weights of a small training, and the rate after each step."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2)]
    )
    model.compile(optimizer, "mse")
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))

    rng = np.random.default_rng(0)
    data = rng.normal(size=(80, 4)), rng.normal(size=(80, 2))
    model.fit(*data, batch_size=8, epochs=2, shuffle=False, callbacks=[Rates()], verbose=0)
    if keras.backend.backend() == "jax":
        rates = rates[:1]  # there variables are written at the end of an epoch
    return model, rates


@pytest.mark.parametrize(
    "inner",
    [
        keras.optimizers.AdamW(weight_decay=0.1),
        keras.optimizers.SGD(momentum=0.9, gradient_accumulation_steps=2),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    ],
    ids=["adamw", "accumulated", "scaled"],
)
def test_the_rate_is_that_of_a_warm_up_and_a_cosine(inner):
    schedule = schedules.WarmupCosine(
        0.05, 20, warmup_steps=3, initial_learning_rate=0.005, name="up"
    )
    expected, _ = fitted(optimizers.make(inner, schedule))
    found, rates = fitted(optimizers.up_and_down(inner, 0.05, 20, 3))
    assert type(optimizers.innermost(found.optimizer)) is type(optimizers.innermost(inner))
    np.testing.assert_allclose(
        rates, np.array(schedule(np.arange(20)))[: len(rates)], rtol=1e-5, atol=1e-9
    )
    for a, b in zip(expected.get_weights(), found.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("built", [False, True])
def test_a_rate_that_is_set_stays(built, tmp_path):
    made = optimizers.up_and_down(keras.optimizers.Adam(), 0.05, 20, 3)
    weight = keras.Variable([1.0])
    if built:
        made.build([weight])
    made.learning_rate = np.float32(0.5)
    made.build([weight])
    for each in (made, type(made).from_config(made.get_config())):
        each.build([weight])
        assert float(each.learning_rate) == 0.5
        each.apply([keras.ops.ones(1)], [weight])
        assert float(each.learning_rate) == 0.5
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="from 0 on"):
            made.learning_rate = wrong
    with pytest.raises((TypeError, ValueError)):
        made.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)


def test_a_model_with_it_can_be_stored_and_goes_on(tmp_path):
    model, _ = fitted(optimizers.up_and_down(keras.optimizers.Adam(), 0.05, 40, 3))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    data = np.ones((24, 4)), np.ones((24, 2))
    for each in (model, again):
        each.fit(*data, batch_size=8, verbose=0)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    rate = float(keras.ops.convert_to_numpy(again.optimizer.learning_rate))
    assert rate == pytest.approx(
        float(schedules.WarmupCosine(0.05, 40, warmup_steps=3, initial_learning_rate=0.005)(23))
    )


def test_no_variable_is_tracked_twice():
    model, _ = fitted(optimizers.up_and_down(keras.optimizers.Adam(), 0.05, 40, 3))
    found = [id(v) for v in model.optimizer.variables]
    assert len(found) == len(set(found))


class Optimizers(keras.callbacks.Callback):
    """The optimizer of each phase, and the steps it had made before."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        optimizer = self.model.optimizer
        if not self.seen or self.seen[-1][0] is not optimizer or self._ended:
            self.seen.append((optimizer, int(optimizer.iterations) if optimizer.built else 0))
        self._ended = False

    def on_train_end(self, logs=None):
        self._ended = True


def run(*phases, model=None, data=None, **settings):
    seen = Optimizers()
    model = network() if model is None else model
    data = examples() if data is None else data
    history = ftk.fine_tune(
        model, data, recipe=lambda task: phases, callbacks=[seen], **{**SETTINGS, **settings}
    )
    return model, history, seen.seen


TOP = select.last(2)


def phase(name, learn=TOP, **given):
    return recipes.Phase(name, learn, **{"epochs": 3, "learning_rate": 1e-2, **given})


@keras.saving.register_keras_serializable(package="test")
class Traced(keras.layers.Layer):
    """Counts how often it is traced in training."""

    count = 0

    def call(self, x, training=None):
        Traced.count += bool(training)
        return x


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="nothing is traced there")
@pytest.mark.parametrize(
    ("count", "batch_size"),
    [
        (60, 12),  # with the fifth that was held out, all batches still have 12
        pytest.param(
            60,
            16,  # the last of them has 12, where before 48 made 3 whole ones
            marks=pytest.mark.skipif(
                keras.backend.backend() == "jax", reason="each size is compiled there"
            ),
        ),
    ],
)
@pytest.mark.parametrize("learn", [select.after("a"), select.everything()], ids=["cached", "plain"])
def test_a_refit_traces_no_step(learn, count, batch_size):
    dense = keras.layers.Dense
    model = keras.Sequential(
        [keras.Input((6,)), dense(8, name="a"), dense(8, name="b"), Traced(), dense(3, name="c")]
    )
    ftk.compile(model, optimizer="adam", loss=LOGITS, metrics=["accuracy"])
    traces = []

    class Note(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            traces.append(Traced.count)

        def on_train_end(self, logs=None):
            traces.append(Traced.count)

    history = ftk.fine_tune(
        model,
        examples(count),
        recipe=lambda task: [phase("top", learn)],
        callbacks=[Note()],
        seed=0,
        batch_size=batch_size,
        verbose=0,
    )
    assert history.history["phase"][-1] == "refit top"
    begun, ended, again, over = traces
    assert ended > begun
    assert over == again


@pytest.mark.parametrize("learn", [TOP, select.everything()], ids=["cached", "plain"])
def test_a_refit_uses_the_step_of_its_phase_again(monkeypatch, learn):
    model, history, seen = run(phase("top", learn))
    assert history.history["phase"][-1] == "refit top"
    (first, _), (again, steps) = seen
    assert again is first
    assert steps == 0
    monkeypatch.setattr(prepared, "_again", lambda *_: None)
    other, history_, seen = run(phase("top", learn))
    assert seen[0][0] is not seen[1][0]
    assert history.history["loss"] == history_.history["loss"]
    for name, value in snapshot(model).items():
        np.testing.assert_array_equal(value, snapshot(other)[name])


def test_the_model_ends_with_an_optimizer_of_its_own_kind():
    model, _, seen = run(phase("top"))
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.optimizer is not seen[-1][0]
    assert int(model.optimizer.iterations) == 0
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-2)


def test_a_step_is_kept_over_a_solved_probe_and_over_no_other_training():
    """It holds an optimizer's slots, which take the memory of a training."""
    _, history, seen = run(phase("probe", select.head(), solver="lbfgs", epochs=1), phase("top"))
    names = list(dict.fromkeys(history.history["phase"]))
    assert names == ["probe", "top", "refit probe", "refit top"]
    assert seen[3][0] is seen[1][0]
    _, history, seen = run(phase("one"), phase("two", select.last(1), learning_rate=0.5))
    names = list(dict.fromkeys(history.history["phase"]))
    assert names == ["one", "two", "refit one", "refit two"]
    assert len({id(optimizer) for optimizer, _ in seen}) == 4


def test_nothing_is_kept_where_no_refit_comes(monkeypatch):
    made = []
    usual = prepared.Prepared.keep

    def keep(self):
        usual(self)
        made.append(self._last)

    monkeypatch.setattr(prepared.Prepared, "keep", keep)
    run(phase("top"), refit=False)
    assert made == [None]
    run(phase("top"))
    assert made[1] is not None


def test_another_loss_is_another_step():
    """A recipe may compile after its last phase; the refit learns by what the model has now."""

    def recipe(task):
        ftk.compile(task.model, label_smoothing=0.3)
        yield phase("top")
        ftk.compile(task.model, loss=LOGITS)

    model, seen = network(), Optimizers()
    ftk.fine_tune(model, examples(), recipe=recipe, callbacks=[seen], **SETTINGS)
    assert seen.seen[0][0] is not seen.seen[1][0]
    assert isinstance(model.loss, keras.losses.SparseCategoricalCrossentropy)


def test_other_settings_that_a_callback_made_end_with_the_phase():
    class Clip(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                optimizers.innermost(self.model.optimizer).weight_decay = 0.5

    model, seen = network(), Optimizers()
    model.compile(keras.optimizers.AdamW(weight_decay=0.01), LOGITS, metrics=["accuracy"])
    ftk.fine_tune(
        model,
        examples(),
        recipe=lambda task: [phase("top", patience=None)],
        callbacks=[seen, Clip()],
        **SETTINGS,
    )
    first, again = (optimizers.innermost(optimizer) for optimizer, _ in seen.seen)
    assert first.weight_decay == 0.5
    assert again.weight_decay == 0.01


def test_an_optimizer_with_a_hidden_state_begins_anew_as_well():
    """Keras builds Nadam inside of a loss scale without tracking its product of momenta."""
    losses = []
    for reused in (True, False):
        model, seen = network(), Optimizers()
        nadam = keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam())
        model.compile(nadam, LOGITS, metrics=["accuracy"], auto_scale_loss=False)
        with pytest.MonkeyPatch.context() as patch:
            if not reused:
                patch.setattr(prepared, "_again", lambda *_: None)
            history = ftk.fine_tune(
                model, examples(), recipe=lambda task: [phase("top")], callbacks=[seen], **SETTINGS
            )
        losses.append(history.history["loss"])
        assert (seen.seen[0][0] is seen.seen[1][0]) == reused
    assert losses[0] == losses[1]


def test_averages_of_keras_and_their_callback():
    adam = keras.optimizers.Adam(use_ema=True, ema_momentum=0.5)
    model = network()
    model.compile(keras.optimizers.LossScaleOptimizer(adam), LOGITS, metrics=["accuracy"])
    if keras.backend.backend() == "jax":
        pytest.skip("Keras' averages share buffers with the weights there, and die")
    history = ftk.fine_tune(
        model,
        examples(),
        recipe=lambda task: [phase("top")],
        callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
        **SETTINGS,
    )
    assert np.isfinite(history.history["loss"]).all()


def test_statistics_move_as_before_in_a_refit():
    """A traced step has their momentum for good, which goes by the number of batches."""
    momenta = []

    class Note(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            momenta.append(self.model.get_layer("inner").get_layer("stem_bn").momentum)

    model, seen = classifier(), Optimizers()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = ftk.fine_tune(
        model,
        images(120),
        recipe=lambda task: [phase("every", select.everything(), norms=True, epochs=1)],
        callbacks=[seen, Note()],
        **{**SETTINGS, "batch_size": 4},
    )
    assert history.history["phase"] == ["every", "refit every"]
    assert momenta == [1 - 1 / 12] * 2  # half of 24 steps, not of 30
    assert seen.seen[0][0] is seen.seen[1][0]


def test_a_rate_given_on_the_way_ends_the_course():
    """As `thaw` drops a schedule for a rate: the wrapper would set its own before each step."""
    made = optimizers.up_and_down(keras.optimizers.Adam(), 0.05, 20, 3)
    assert optimizers.scheduled(made)
    model, _ = fitted(made)
    change = ftk.thaw(model, select.everything(), learning_rate=1e-5)
    assert change.schedule_dropped
    assert not optimizers.scheduled(model.optimizer)
    model.fit(np.ones((24, 4)), np.ones((24, 2)), batch_size=8, verbose=0)
    assert optimizers.rate(model.optimizer) == pytest.approx(1e-5)


def test_a_callback_that_thaws_in_a_phase_has_its_rate_and_its_step():
    thawing = ftk.callbacks.GradualThaw(by="block", every=1, learning_rate=1e-5)
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rates.append(optimizers.rate(self.model.optimizer))

    recipe = [phase("head", select.head())]
    history = ftk.fine_tune(
        network(),
        examples(),
        recipe=lambda task: recipe,
        callbacks=[thawing, Rates()],
        **SETTINGS,
    )
    assert rates[1:3] == pytest.approx([1e-5] * 2)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.parametrize("rate", [np.float32(1e-2), 1], ids=["float32", "int"])
def test_any_number_is_a_rate(rate):
    _, _, seen = run(phase("top", learning_rate=rate), refit=False)
    assert optimizers.scheduled(seen[0][0])


def test_a_rate_that_is_none_is_refused_before_anything_moves():
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match="learning_rate takes a positive number"):
        run(phase("top", learning_rate=-1.0), model=model)
    for name, value in snapshot(model).items():
        np.testing.assert_array_equal(value, before[name])
