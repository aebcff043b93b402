import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import images, moved, residual, snapshot, value

import finetune_keras as ftk
from finetune_keras import HeadError, build, describe, load, record, select
from finetune_keras.heads import Classification, Multi, Ordinal, Regression
from finetune_keras.heads.missing import KnownLoss, KnownMetric

NAN = float("nan")
HEADS = {"species": Classification(3, class_names=["a", "b", "c"]), "age": Regression()}
EVERY = {
    "species": Classification(3),
    "sick": Classification(1),
    "tags": Classification(2, multi_label=True),
    "grade": Ordinal(3),
    "age": Regression(2, mean=10.0, std=4.0),
}


def labels(n=12):
    y = np.arange(n) % 3
    return {
        "species": y.astype("int32"),
        "sick": (y % 2).astype("int32"),
        "tags": np.eye(2)[y % 2].astype("float32"),
        "grade": y.astype("int32"),
        "age": np.stack([8.0 + y, 12.0 - y], -1).astype("float32"),
    }


def of(heads, y):
    return {k: y[k] for k in heads}


def on_vectors(head, **kwargs):
    inputs = keras.Input((6,))
    network = keras.Model(inputs, keras.layers.Dense(5, activation="tanh", name="d")(inputs))
    return build(network, head, **kwargs)


def vectors(n=12):
    return np.random.default_rng(1).normal(size=(n, 6)).astype("float32")


def test_outputs_losses_and_metrics_go_by_the_users_keys():
    model = build(residual(), Multi(EVERY), learning_rate=1e-2)
    x, _ = images()
    logs = model.fit(x, labels(), epochs=2, verbose=0).history
    for key, metric in [
        ("species", "accuracy"),
        ("sick", "accuracy"),
        ("tags", "accuracy"),
        ("grade", "accuracy"),
        ("age", "mae"),
    ]:
        assert np.isfinite(logs[f"{key}_{metric}"]).all()
        assert np.isfinite(logs[f"{key}_loss"]).all()
    out = model.predict(x, verbose=0)
    assert {k: v.shape[1:] for k, v in out.items()} == {
        "species": (3,),
        "sick": (1,),
        "tags": (2,),
        "grade": (3,),
        "age": (2,),
    }


def test_the_rest_of_the_package_sees_several_heads(tmp_path):
    model = build(residual(), Multi(HEADS), freeze=select.backbone(), learning_rate=1e-2)
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {
        "ftk_head_species_output",
        "ftk_head_age_output",
    }
    before = snapshot(model)
    y = {"species": labels()["species"], "age": np.arange(12.0)}
    model.fit(images()[0], y, verbose=0)
    changed = moved(before, model)
    assert {p.split("/")[0] for p in changed} == {"ftk_head_species_output", "ftk_head_age_output"}
    ftk.freeze(model, select.named("species_output"))
    assert len(model.trainable_variables) == 2
    text = str(describe(model))
    assert "species: integers from 0 to 2, shape (batch,); age: numbers, shape (batch,)" in text
    model.save(tmp_path / "a.keras")
    again = load(tmp_path / "a.keras")
    found = record.read(again)
    assert [(o.name, o.kind, o.size) for o in found.outputs] == [
        ("species", "classification", 3),
        ("age", "regression", 1),
    ]
    assert found.outputs[0].class_names == ("a", "b", "c")
    again.fit(images()[0], y, verbose=0)


def test_weights_weigh_the_losses():
    head = Multi(HEADS, weights={"age": 0.25})
    model = on_vectors(head)
    y = {"species": labels()["species"], "age": np.arange(12.0)}
    logs = model.evaluate(vectors(), y, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["species_loss"] + 0.25 * logs["age_loss"], rel=1e-5)
    # In standard deviations, times the weight that was given.
    scaled = Multi({"age": Regression(std=2.0), "b": Regression()}, weights={"age": 3.0})
    assert scaled.loss_weights == {"age": 0.75, "b": 1.0}
    assert Multi(HEADS).loss_weights is None


CODE = """
import sys, numpy as np, keras
model = keras.models.load_model(sys.argv[1])
out = model.predict(np.load(sys.argv[2]), verbose=0)
np.savez(sys.argv[3], **out)
assert model.compiled and "finetune_keras" not in sys.modules
"""


def test_keras_alone_loads_and_goes_on_with_plain_heads(tmp_path):
    model = on_vectors(Multi(EVERY))
    model.fit(vectors(), labels(), verbose=0)
    model.save(tmp_path / "a.keras")
    np.save(tmp_path / "x.npy", vectors())
    paths = [str(tmp_path / n) for n in ("a.keras", "x.npy", "y.npz")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", CODE, *paths], check=True)
    found = np.load(paths[-1])
    for key, expected in model.predict(vectors(), verbose=0).items():
        np.testing.assert_allclose(found[key], expected, atol=1e-6)


# ---- missing labels


@pytest.mark.parametrize("key", EVERY)
def test_missing_labels_add_nothing_to_loss_gradient_and_metrics(key):
    y = of([key], labels())
    few = {k: v.astype("float32") for k, v in y.items()}
    few[key][4:] = -1 if key in ("species", "sick", "grade") else NAN
    keras.utils.set_random_seed(3)
    whole = on_vectors(Multi({key: EVERY[key]}), optimizer="sgd", learning_rate=0.1)
    keras.utils.set_random_seed(3)
    part = on_vectors(Multi({key: EVERY[key]}, missing=True), optimizer="sgd", learning_rate=0.1)
    part.set_weights(whole.get_weights())
    a = whole.evaluate(vectors()[:4], {key: y[key][:4]}, verbose=0, return_dict=True)
    b = part.evaluate(vectors(), few, verbose=0, return_dict=True)
    assert {k: pytest.approx(v, rel=1e-5) for k, v in a.items()} == b
    whole.train_on_batch(vectors()[:4], {key: y[key][:4]})
    part.train_on_batch(vectors(), few)
    for v, w in zip(whole.get_weights(), part.get_weights(), strict=True):
        np.testing.assert_allclose(w, v, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [None, "uncertainty"])
def test_a_batch_without_labels_has_loss_zero_and_moves_nothing(weights):
    head = Multi(EVERY, missing=True, weights=weights)
    model = on_vectors(head, optimizer="sgd", learning_rate=0.1)
    none = {k: np.full_like(v, NAN, dtype="float32") for k, v in labels().items()}
    for key in ("species", "sick", "grade"):
        none[key][:] = -1
    before = snapshot(model)
    logs = model.train_on_batch(vectors(), none, return_dict=True)
    assert logs["loss"] == 0
    assert moved(before, model) == set()


def test_single_missing_labels_of_several_leave_the_others():
    head = Classification(2, multi_label=True)
    y = np.array([[1.0, NAN], [0.0, 1.0]])
    p = np.array([[0.5, 0.9], [0.5, 0.25]], "float32")
    loss = float(value(KnownLoss(head.loss, "multi_label")(y, p)))
    assert loss == pytest.approx(-np.mean(np.log([0.5, 0.5, 0.25])), rel=1e-4)
    metric = KnownMetric(head.metrics[0], "multi_label")
    metric.update_state(y, p)
    assert float(metric.result()) == pytest.approx(1 / 3)
    metric.reset_state()
    metric.update_state(y, p, sample_weight=np.array([0.0, 1.0]))
    assert float(metric.result()) == pytest.approx(1 / 2)


def test_a_model_for_missing_labels_is_loaded_to_go_on(tmp_path):
    model = on_vectors(Multi(EVERY, missing=True))
    model.save(tmp_path / "a.keras")
    again = load(tmp_path / "a.keras")
    y = labels()
    y["species"][3] = -1
    expected = model.evaluate(vectors(), y, verbose=0, return_dict=True)
    assert again.evaluate(vectors(), y, verbose=0, return_dict=True) == pytest.approx(expected)


# ---- learned weights


TWO = {"species": Classification(3), "age": Regression(std=2.0)}


def two():
    return {"species": labels()["species"], "age": np.arange(12.0, dtype="float32")}


def log_variances(model):
    return {
        u.path.split("_log")[0].removeprefix("ftk_head_"): u.variable
        for u in ftk.graph.opened(model).units
        if "log_variance" in u.path
    }


def test_the_loss_follows_the_formula_and_the_variables_learn():
    model = on_vectors(Multi(TWO, weights="uncertainty"), learning_rate=1e-2)
    s = {"species": 0.3, "age": -0.7}
    for key, variable in log_variances(model).items():
        variable.assign([[s[key]]])
    p = model.predict(vectors(), verbose=0)
    y = two()
    cross = -np.mean(np.log(p["species"][np.arange(12), y["species"]]))
    square = np.mean((p["age"][:, 0] - y["age"]) ** 2) / 2.0**2
    expected = np.exp(-0.3) * cross + 0.15 + 0.5 * np.exp(0.7) * square - 0.35
    assert model.evaluate(vectors(), y, verbose=0, return_dict=True)["loss"] == pytest.approx(
        expected, rel=1e-4
    )
    before = {k: value(v) for k, v in log_variances(model).items()}
    model.fit(vectors(), y, verbose=0)
    after = {k: value(v) for k, v in log_variances(model).items()}
    # d/ds = 1/2 - factor exp(-s) loss: the age's loss is large, and its variance grows.
    assert after["age"] > before["age"]
    assert after["species"] != before["species"]


def test_learned_weights_do_not_touch_the_predictions():
    model = on_vectors(Multi(TWO, weights="uncertainty"))
    before = model.predict(vectors(), verbose=0)
    for variable in log_variances(model).values():
        variable.assign([[5.0]])
    after = model.predict(vectors(), verbose=0)
    for key in TWO:
        np.testing.assert_array_equal(before[key], after[key])


def test_freeze_thaw_compile_and_load_keep_the_loss_tied_to_the_model(tmp_path):
    model = on_vectors(Multi(TWO, weights="uncertainty", missing=True), learning_rate=1e-2)
    ftk.freeze(model, select.backbone())
    ftk.thaw(model, select.backbone(), learning_rate=1e-2)
    ftk.compile(model, learning_rate=2e-2)
    before = snapshot(model)
    model.fit(vectors(), two(), verbose=0)
    assert any("log_variance" in p for p in moved(before, model))
    model.save(tmp_path / "a.keras")
    again = load(tmp_path / "a.keras")
    expected = model.evaluate(vectors(), two(), verbose=0, return_dict=True)
    assert again.evaluate(vectors(), two(), verbose=0, return_dict=True) == pytest.approx(expected)
    mine, theirs = snapshot(again), snapshot(model)
    again.fit(vectors(), two(), epochs=2, verbose=0)
    assert any("log_variance" in p for p in moved(mine, again))
    assert moved(theirs, model) == set()


def test_a_model_that_plain_keras_loaded_says_what_to_do(tmp_path):
    model = on_vectors(Multi(TWO, weights="uncertainty"))
    model.save(tmp_path / "a.keras")
    plain = keras.models.load_model(tmp_path / "a.keras")
    with pytest.raises(ValueError, match=r"'species' is tied to no model.*finetune_keras\.load"):
        plain.train_on_batch(vectors(), two())
    ftk.compile(plain, learning_rate=1e-3)
    plain.fit(vectors(), two(), verbose=0)


def test_a_loss_of_one_model_is_not_taken_by_another():
    first = on_vectors(Multi(TWO, weights="uncertainty"))
    second = on_vectors(Multi(TWO, weights="uncertainty"))
    shared = ftk._private.compile_arguments(first)["loss"]
    ftk.compile(second, loss=shared)
    assert shared["age"].variable is log_variances(first)["age"]
    used = ftk._private.compile_arguments(second)["loss"]
    assert used["age"].variable is log_variances(second)["age"]
    other = on_vectors(Classification(3))
    with pytest.raises(ValueError, match=r"no learned uncertainty for 'age'.*Multi"):
        ftk.compile(other, loss=shared["age"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Multi({}), "takes a dict of heads"),
        (lambda: Multi([Classification(3)]), "takes a dict of heads"),
        (lambda: Multi({"a b": Classification(3)}), "a key of Multi is a name.*'a b'"),
        (lambda: Multi({"class": Classification(3)}), "a key of Multi is a name.*'class'"),
        (lambda: Multi({1: Classification(3)}), "a key of Multi is a name.*given 1"),
        (lambda: Multi({"record": Classification(3)}), "'record': use another"),
        (lambda: Multi({"a": 3}), r"value of 'a' is a head.*given 3"),
        (lambda: Multi({"a": Multi(TWO)}), "given another Multi"),
        (lambda: Multi(TWO, weights={"ages": 1.0}), "did you mean 'age'"),
        (lambda: Multi(TWO, weights={"age": -1.0}), "the weight of 'age' must be a number from 0"),
        (lambda: Multi(TWO, weights="uncertain"), "'uncertainty' or None; given 'uncertain'"),
        (lambda: Multi(TWO, weights=[1, 2]), r"given \[1, 2\]"),
        (lambda: Multi(TWO, missing=1), "missing is True or False; given 1"),
        (lambda: Multi(TWO)({"x": keras.Input((3,))}), "Multi takes one tensor"),
    ],
)
def test_bad_input_names_the_fix(call, message):
    with pytest.raises(HeadError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_plain_dict_of_heads_is_told_about_multi():
    with pytest.raises(TypeError, match=r"write heads\.Multi"):
        build(residual(), TWO)
