"""State is carried by identity, and newcomers start gently."""

import keras
import numpy as np
import pytest
from conftest import chain, value, vectors

from finetune_keras import compile as compile_
from finetune_keras import freeze, optimizers, select, thaw
from finetune_keras.optimizers.state import _slots_of

ALL = ["SGD", "Adam", "AdamW", "Nadam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Lamb", "Lion"]


def fitted(optimizer, steps=5, **kwargs):
    model = chain()
    freeze(model, select.up_to("a"))
    model.compile(optimizer, "mse", **kwargs)
    model.fit(*vectors(), batch_size=32, epochs=steps, verbose=0, shuffle=False)
    return model


def by_reference(optimizer, variables):
    """Slots of an optimizer as Keras names them, keyed by variable and slot."""
    slots, *_ = _slots_of(optimizer, variables)
    return slots


@pytest.mark.parametrize("name", ALL)
def test_slots_follow_their_variables(name):
    kwargs = {"momentum": 0.9} if name == "SGD" else {}
    model = fitted(getattr(keras.optimizers, name)(learning_rate=1e-2, **kwargs))
    old = model.optimizer
    before = {k: value(v) for k, v in by_reference(old, model.trainable_variables).items()}
    assert before
    change = thaw(model, select.up_to("a"), learning_rate=1e-3)
    assert not change.restarted
    after = by_reference(model.optimizer, model.trainable_variables)
    for key, slot in before.items():
        np.testing.assert_array_equal(value(after[key]), slot)
    assert int(model.optimizer.iterations) == 5
    new = {id(v) for v in model.get_layer("a").trainable_variables}
    assert {key[0] for key in after} - {key[0] for key in before} == new
    model.fit(*vectors(), verbose=0)  # the new optimizer knows all of them


@pytest.mark.parametrize("options", [{"use_ema": True}, {"gradient_accumulation_steps": 2}])
def test_averages_and_accumulated_gradients_are_carried(options):
    model = fitted(keras.optimizers.Adam(1e-2, **options), steps=3)
    before = {
        k: value(v) for k, v in by_reference(model.optimizer, model.trainable_variables).items()
    }
    thaw(model, select.up_to("a"))
    after = by_reference(model.optimizer, model.trainable_variables)
    for key, slot in before.items():
        np.testing.assert_array_equal(value(after[key]), slot)


@pytest.mark.parametrize("options", [{}, {"ema_overwrite_frequency": 3}])
def test_the_average_of_a_newcomer_starts_at_its_weights(options):
    model = fitted(keras.optimizers.Adam(1e-3, use_ema=True, **options), steps=10)
    before = value(model.get_layer("a").kernel)
    thaw(model, select.up_to("a"), learning_rate=1e-3)
    model.fit(*vectors(), batch_size=8, verbose=0)  # at its end Keras writes the average over it
    assert np.abs(value(model.get_layer("a").kernel) - before).max() < 0.01


def test_an_optimizer_that_writes_to_its_slots_while_it_builds():
    model = fitted(keras.optimizers.ScheduleFreeAdamW(1e-3))
    assert not thaw(model, select.up_to("a")).restarted
    model.fit(*vectors(), verbose=0)


def test_rates_that_no_config_brings_back():
    class Own(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 1e-6

        def get_config(self):
            return {}

    for rate in (Own(), lambda: 1e-6):
        model = fitted(keras.optimizers.Adam(rate))
        change = thaw(model, select.up_to("a"))
        assert change.learning_rate == pytest.approx((1e-6, 1e-6))
        model.fit(*vectors(), verbose=0)


def test_exclusions_survive_a_given_rate():
    optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model = compile_(chain(), optimizer=optimizer, learning_rate=1e-3, loss="mse")
    decayed = [model.optimizer._use_weight_decay(v) for v in model.trainable_variables]
    assert decayed == [True, False] * 3


def test_a_loss_scale_optimizer_keeps_scale_and_inner_state():
    inner = keras.optimizers.Adam(1e-2)
    model = fitted(keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0), steps=4)
    thaw(model, select.up_to("a"))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert float(model.optimizer.dynamic_scale) == 64.0
    assert int(model.optimizer.iterations) == 4
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-5)
    model.fit(*vectors(), verbose=0)


def test_adafactor_restarts_and_says_so():
    model = fitted(keras.optimizers.Adafactor(1e-2))
    change = thaw(model, select.up_to("a"))
    assert change.restarted
    assert "start at zero" in str(change)
    assert int(model.optimizer.iterations) == 5


def test_exclusions_from_weight_decay_survive():
    optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model = fitted(optimizer)
    thaw(model, select.up_to("a"))
    kernel, bias = model.get_layer("a").trainable_variables
    assert model.optimizer._use_weight_decay(kernel)
    assert not model.optimizer._use_weight_decay(bias)


def test_a_schedule_is_kept_while_it_is_low_and_replaced_when_the_backbone_opens():
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 1000)
    model = fitted(keras.optimizers.Adam(schedule))
    now = optimizers.rate(model.optimizer)
    freeze(model, select.up_to("b"))
    assert optimizers.rate(model.optimizer) == pytest.approx(now)
    change = thaw(model, select.up_to("a"))
    assert change.learning_rate == pytest.approx((now, 1e-5))
    assert change.schedule_dropped
    assert "the schedule was dropped" in str(change)
    other = keras.optimizers.schedules.CosineDecay(1e-4, 1000)
    change = thaw(model, select.everything(), learning_rate=other)
    assert change.learning_rate[1] == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Nadam"])
@pytest.mark.parametrize("history", [1, 4, 60])
def test_first_ten_steps_of_newcomers_stay_within_the_rate(name, history):
    rate = 1e-3
    model = fitted(getattr(keras.optimizers, name)(learning_rate=1e-2), steps=history)
    thaw(model, select.up_to("a"), learning_rate=rate)
    variables = model.get_layer("a").trainable_variables
    x, y = vectors()
    rng = np.random.default_rng(history)
    largest = []
    for _ in range(10):
        before = [value(v) for v in variables]
        model.fit(x, y * rng.uniform(0.1, 5), batch_size=32, verbose=0)
        largest.append(
            max(np.abs(value(v) - b).max() for v, b in zip(variables, before, strict=True))
        )
    assert max(largest) <= 1.1 * rate
    assert min(largest) > 0.05 * rate  # and they do learn


def test_without_the_correction_they_would_not():
    """The measure above catches what Keras does by itself."""
    model = fitted(keras.optimizers.Adam(1e-2), steps=60)
    thaw(model, select.up_to("a"), learning_rate=1e-3)
    del model.optimizer.apply
    model.train_function = None
    variables = model.get_layer("a").trainable_variables
    largest = 0.0
    for _ in range(10):
        before = [value(v) for v in variables]
        model.fit(*vectors(), batch_size=32, verbose=0)
        steps = [np.abs(value(v) - b).max() for v, b in zip(variables, before, strict=True)]
        largest = max(largest, *steps)
    assert largest > 1.2e-3


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_newcomers_move_as_if_their_training_had_just_begun(name):
    """Within a percent, on a gradient that does not depend on the weights."""
    x, y = vectors()

    def linear_loss(y_true, y_pred):
        return keras.ops.sum(y_true * y_pred, axis=-1)

    steps = {}
    for old in (False, True):
        keras.utils.set_random_seed(2)
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(3, name="a"),
                keras.layers.Dense(3, name="b", use_bias=False),
            ]
        )
        optimizer = getattr(keras.optimizers, name)(learning_rate=1e-4)
        freeze(model, select.up_to("a"))
        model.compile(optimizer, linear_loss)
        if old:
            model.fit(x, 0 * y, batch_size=32, epochs=50, verbose=0)  # time passes, nothing moves
            thaw(model, select.up_to("a"), learning_rate=1e-4)
        else:
            thaw(model, select.up_to("a"), learning_rate=1e-4)
        before = value(model.get_layer("a").kernel)
        model.fit(x, y, batch_size=32, epochs=6, verbose=0, shuffle=False)
        steps[old] = value(model.get_layer("a").kernel) - before
    np.testing.assert_allclose(steps[True], steps[False], rtol=0.05, atol=2e-6)


def test_a_second_thaw_leaves_the_first_newcomers_held():
    model = fitted(keras.optimizers.Adam(1e-2), steps=60)
    freeze(model, select.up_to("b"))
    thaw(model, select.named("^b/"), learning_rate=1e-3)
    model.fit(*vectors(), batch_size=32, epochs=2, verbose=0)
    thaw(model, select.up_to("a"), learning_rate=1e-3)
    variables = model.get_layer("b").trainable_variables
    for _ in range(7):
        before = [value(v) for v in variables]
        model.fit(*vectors(), batch_size=32, verbose=0)
        steps = [np.abs(value(v) - b).max() for v, b in zip(variables, before, strict=True)]
        assert max(steps) <= 1.1e-3


def test_constraints_hold_for_newcomers():
    inputs = keras.Input((6,))
    unit = keras.constraints.UnitNorm(axis=0)
    x = keras.layers.Dense(8, name="a", kernel_constraint=unit)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="c")(x))
    freeze(model, select.up_to("a"))
    model.compile(keras.optimizers.Adam(1e-1), "mse")
    model.fit(*vectors(), epochs=30, verbose=0)
    thaw(model, select.up_to("a"), learning_rate=1e-1)
    model.fit(*vectors(), epochs=3, verbose=0)
    norms = np.linalg.norm(value(model.get_layer("a").kernel), axis=0)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_compile_keeps_what_it_is_not_given():
    model = fitted(keras.optimizers.Adam(1e-2, beta_1=0.8), metrics=["mae"])
    slots = {
        k: value(v) for k, v in by_reference(model.optimizer, model.trainable_variables).items()
    }
    out = compile_(model, learning_rate=1e-4)
    assert out is model
    assert model.optimizer.beta_1 == 0.8
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-4)
    after = by_reference(model.optimizer, model.trainable_variables)
    for key, slot in slots.items():
        np.testing.assert_array_equal(value(after[key]), slot)
    compile_(model, loss="mae", jit_compile=False)
    assert model.loss == "mae"
    assert set(model.fit(*vectors(), verbose=0).history) == {"loss", "mae"}
    compile_(model, optimizer="sgd")
    assert type(model.optimizer).__name__ == "SGD"
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-4)  # all of it learns: 0.01/100


def test_state_is_kept_when_flags_were_changed_by_hand():
    model = fitted(keras.optimizers.Adam(1e-2))
    before = {
        k: value(v) for k, v in by_reference(model.optimizer, model.trainable_variables).items()
    }
    model.get_layer("b").trainable = False
    model.get_layer("a").trainable = True
    compile_(model)
    after = by_reference(model.optimizer, model.trainable_variables)
    kept = {k: v for k, v in before.items() if k in after}
    assert {k[0] for k in kept} == {id(v) for v in model.get_layer("c").trainable_variables}
    for key, slot in kept.items():
        np.testing.assert_array_equal(value(after[key]), slot)
    model.fit(*vectors(), verbose=0)


def test_compile_warns_where_slots_cannot_be_carried():
    model = fitted(keras.optimizers.Adafactor(1e-2))
    with pytest.warns(UserWarning, match="slots of Adafactor"):
        compile_(model, learning_rate=1e-3)


def test_a_used_optimizer_can_be_given_to_another_model():
    optimizer = keras.optimizers.Adam(3e-3)
    first = fitted(optimizer)
    second = compile_(chain(), optimizer=optimizer, loss="mse")
    second.fit(*vectors(), verbose=0)
    first.fit(*vectors(), verbose=0)
    assert float(second.optimizer.learning_rate) == pytest.approx(3e-3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: compile_(m, optimizer="adm", loss="mse"),
            ValueError,
            "unknown optimizer 'adm'; did you mean 'adam'",
        ),
        (lambda m: compile_(m, optimizer=3, loss="mse"), TypeError, "given 3"),
        (lambda m: compile_(m), ValueError, "never compiled.*give loss="),
        (lambda m: compile_(m, loss="nope"), ValueError, "nope"),
        (lambda m: compile_(m, loss="mse", metrics=["accc"]), ValueError, "accc"),
        (lambda m: compile_(m, loss="mse", steps_per_execution=0), ValueError, "given 0"),
        (lambda m: compile_(m, loss="mse", learning_rate=-1), ValueError, "given -1"),
        (lambda m: compile_(m, loss="mse", learning_rate="fast"), ValueError, "given 'fast'"),
        (lambda m: compile_("x", loss="mse"), TypeError, "expected a keras.Model; given a str"),
    ],
)
def test_bad_compile_names_the_fix(call, error, message):
    with pytest.raises(error, match=message):
        call(chain())


def test_compile_with_nothing_to_learn_is_an_error():
    model = chain()
    freeze(model, select.everything())
    with pytest.raises(ValueError, match="nothing learns"):
        compile_(model, loss="mse")
