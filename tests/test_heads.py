import dataclasses

import keras
import numpy as np
import pytest
from conftest import images, residual

from finetune_keras import HeadError, build, heads, load, record, replace_head
from finetune_keras.heads import Classification, Multi, Ordinal, Regression
from finetune_keras.heads.trunk import Trunk

MAP = (4, 4, 6)


@pytest.mark.parametrize(
    ("head", "width", "labels"),
    [
        (Classification(3), 3, np.array([0, 2, 1, 0])),
        (Classification(1), 1, np.array([0, 1, 1, 0])),
        (Classification(4, multi_label=True), 4, np.eye(4)),
        (Classification(3, hidden=[5, 4], dropout=0.2, l2=1e-3), 3, np.array([0, 2, 1, 0])),
        (Classification(3, pooling="max"), 3, np.array([0, 2, 1, 0])),
        (Classification(3, pooling=None), 3, np.array([0, 2, 1, 0])),
        (Classification(3, hidden=[4], normalization="batch"), 3, np.array([0, 2, 1, 0])),
        (Classification(3, normalization="layer"), 3, np.array([0, 2, 1, 0])),
        (Ordinal(3, hidden=[5]), 3, np.array([0, 2, 1, 0])),
        (Ordinal(2), 2, np.array([0, 1, 1, 0])),
    ],
)
@pytest.mark.parametrize("shape", [(6,), (5, 6), MAP, (2, 4, 4, 6)])
def test_a_head_learns_on_features_of_any_rank(head, width, labels, shape):
    inputs = keras.Input(shape)
    output = head(inputs)
    assert output.shape == (None, width)
    model = keras.Model(inputs, output)
    model.compile("adam", head.loss, metrics=head.metrics)
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    logs = model.train_on_batch(x, labels, return_dict=True)
    assert np.isfinite(logs["loss"])
    assert 0 <= logs["accuracy"] <= 1
    p = model.predict(x, verbose=0)
    assert p.min() >= 0
    assert p.max() <= 1
    if width > 1 and not getattr(head, "multi_label", False):
        np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    assert all(x.name.startswith("ftk_head_") for x in model.layers[1:])


def test_labels_are_said_in_words():
    assert Classification(3).labels == "integers from 0 to 2, shape (batch,)"
    assert Classification(1).labels == "0 or 1, shape (batch,)"
    assert Classification(3, multi_label=True).labels == "0 or 1 for each class, shape (batch, 3)"


def test_multi_label_accuracy_counts_every_label():
    head = Classification(2, multi_label=True)
    metric = head.metrics[0]
    metric.update_state(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[0.9, 0.8], [0.9, 0.8]]))
    assert float(metric.result()) == pytest.approx(0.75)


def test_regularisers_and_dropout_do_what_they_say():
    inputs = keras.Input(MAP)
    head = Classification(3, hidden=[5], l1=0.5, l2=0.25, dropout=0.5)
    model = keras.Model(inputs, head(inputs))
    kernels = [x.kernel for x in model.layers if isinstance(x, keras.layers.Dense)]
    expected = sum(
        0.5 * np.abs(k).sum() + 0.25 * np.square(k).sum()
        for k in map(keras.ops.convert_to_numpy, kernels)
    )
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    x = np.ones((64, *MAP), "float32")
    assert np.std(keras.ops.convert_to_numpy(model(x, training=True))[:, 0]) > 0
    assert np.std(keras.ops.convert_to_numpy(model(x, training=False))[:, 0]) < 1e-6


def test_the_output_is_float32_under_mixed_precision():
    features = keras.layers.Dense(4, dtype="mixed_bfloat16")(keras.Input((3,)))
    assert features.dtype == "bfloat16"
    assert Classification(2)(features).dtype == "float32"


def test_a_head_is_frozen_and_comparable():
    head = Classification(3, hidden=[4])
    assert head == Classification(3, [4])
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.num_classes = 4
    assert dataclasses.replace(head, num_classes=5).hidden == (4,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Classification(0), "num_classes must be an integer of 1 or more; given 0"),
        (lambda: Classification(2.5), "given 2.5"),
        (lambda: Classification(3, hidden=128), r"write \[128\]"),
        (lambda: Classification(3, hidden=[0]), "hidden widths"),
        (lambda: Classification(3, dropout=1.0), "dropout must be a number from 0 and below 1"),
        (lambda: Classification(3, l2=-1), "l2 must be a number from 0; given -1"),
        (
            lambda: Classification(3, pooling="average"),
            "unknown pooling='average'; did you mean 'avg'|there are",
        ),
        (lambda: Classification(3, class_names=["a"]), "1 class_names for num_classes=3"),
        (lambda: Classification(2, class_names="ab"), "list of names"),
        (lambda: Classification(2, class_names=["a", "a"]), "'a' twice"),
        (lambda: Classification(2, class_names={"a", "b"}), "in the order of the labels"),
        (lambda: Classification(3, hidden=None), "list of widths; given None"),
        (lambda: Classification(3, activation="reluu"), "unknown activation='reluu'"),
        (lambda: Classification(3, multi_label="no"), "True or False"),
        (lambda: Classification(3)({"x": keras.Input(MAP)}), "dict of 'x'.*cut_at="),
        (lambda: Classification(3)([keras.Input(MAP)] * 2), "gives 2.*cut_at="),
        (
            lambda: Classification(3)(keras.Input(MAP, dtype="int32")),
            "floating-point features; given int32",
        ),
        (lambda: Classification(3)(np.zeros((2, 4))), "symbolic tensor"),
        (lambda: Classification(3, pooling=None)(keras.Input((None, 4, 6))), "fixed size"),
    ],
)
def test_bad_input_names_the_fix(call, message):
    with pytest.raises(HeadError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_first_loss_is_near_that_of_a_guess(scale):
    head = Classification(20)
    inputs = keras.Input((256,))
    model = keras.Model(inputs, head(inputs))
    model.compile("sgd", head.loss)
    x = scale * np.random.default_rng(0).normal(size=(64, 256)).astype("float32")
    loss = model.evaluate(x, np.arange(64) % 20, verbose=0)
    assert loss == pytest.approx(np.log(20), rel=0.25)


def test_several_heads_share_one_base():
    base = residual()
    first = build(base, heads.Classification(3), learning_rate=1e-2)
    second = build(base, heads.Classification(5), learning_rate=1e-2)
    x, y = images()
    before = second.predict(x, verbose=0)
    first.fit(x, y, verbose=0)
    assert not np.allclose(second.predict(x, verbose=0), before)
    second.fit(x, y, verbose=0)
    first.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        (Classification(3, from_logits=True), np.array([0, 2, 1, 0])),
        (Classification(1, from_logits=True), np.array([0, 1, 1, 0])),
        (Classification(2, from_logits=True, multi_label=True), np.array([[0, 1], [1, 1]] * 2)),
    ],
)
def test_logits_have_the_loss_and_the_accuracy_of_the_probabilities(head, labels):
    inputs = keras.Input((6,))
    logits = keras.Model(inputs, head(inputs))
    plain = dataclasses.replace(head, from_logits=False)
    probabilities = keras.Model(inputs, plain(inputs))
    weights = np.random.default_rng(2).normal(size=(6, head.num_classes)).astype("float32")
    logs = []
    for model, of in ((logits, head), (probabilities, plain)):
        model.get_layer("ftk_head_output").kernel.assign(weights)
        model.compile("sgd", of.loss, metrics=of.metrics)
        x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
        logs.append(model.evaluate(x, labels, verbose=0, return_dict=True))
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert logits.predict(x, verbose=0).min() < 0
    assert head.outputs[0].from_logits
    assert not plain.outputs[0].from_logits


def test_normalization_takes_the_scale_of_features_away():
    x = 1e4 * np.random.default_rng(0).normal(size=(8, 6)).astype("float32") + 1e5
    inputs = keras.Input((6,))
    for kind in ("batch", "layer"):
        head = Classification(3, normalization=kind, dropout=0.1, hidden=[4])
        model = keras.Model(inputs, head(inputs))
        names = [layer.name for layer in model.layers]
        assert names[1:3] == ["ftk_head_normalization", "ftk_head_hidden_1"]
        normal = keras.Model(inputs, model.get_layer("ftk_head_normalization").output)
        out = keras.ops.convert_to_numpy(normal(x, training=True))
        assert np.abs(out).max() < 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "head",
    [
        Classification(3, hidden=[4], normalization="layer", dropout=0.1),
        Regression(mean=3.0, std=2.0),
        Ordinal(3, pooling="gem"),
        Multi({"a": Ordinal(3), "b": Regression()}, weights="uncertainty"),
    ],
)
def test_a_head_computes_in_the_precision_of_its_features_and_gives_float32(head, dtype):
    inputs = keras.Input((5, 6), dtype=dtype)
    model = keras.Model(inputs, head(inputs))
    assert {t.dtype for t in model.outputs} == {"float32"}
    for layer in model.layers:
        if "hidden" in layer.name or "normalization" in layer.name:
            assert layer.compute_dtype == dtype
            assert layer.variable_dtype == "float32"
    x = keras.ops.cast(np.random.default_rng(0).normal(size=(2, 5, 6)), dtype)
    for y in keras.tree.flatten(model(x)):
        assert np.isfinite(keras.ops.convert_to_numpy(y)).all()
    assert keras.config.dtype_policy().name == "float32"


def test_no_global_policy_rounds_the_output():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input((6,), dtype="bfloat16")
        head = Multi({"a": Regression(mean=1000.0, std=1.0)}, weights="uncertainty")
        model = keras.Model(inputs, head(inputs))
        x = keras.ops.cast(np.random.default_rng(0).normal(size=(4, 6)), "bfloat16")
        y = keras.ops.convert_to_numpy(model(x)["a"])
    finally:
        keras.config.set_dtype_policy("float32")
    # bfloat16 has steps of 4 at 1000.
    assert len(np.unique(y)) == 4
    assert np.abs(y - 1000).max() < 1


# ---- class names


class _Folder:
    class_names = ("cat", "dog", "owl")


def test_class_names_come_from_a_data_set_and_count_the_classes():
    head = Classification(class_names=_Folder())
    assert head.num_classes == 3
    assert head.class_names == ("cat", "dog", "owl")
    assert record.read(build(residual(), head)).class_names == ("cat", "dog", "owl")
    assert Ordinal(class_names=["low", "high"]).num_classes == 2
    assert Classification(1, class_names=["no", "yes"]).num_classes == 1


def test_a_folder_of_images_gives_its_names(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        keras.utils.save_img(tmp_path / name / "0.png", np.zeros((8, 8, 3), "uint8"))
    train = keras.utils.image_dataset_from_directory(tmp_path, image_size=(8, 8), verbose=False)
    assert Classification(class_names=train).class_names == ("ant", "bee")
    with pytest.raises(HeadError, match=r"lost its class_names on the way"):
        Classification(class_names=train.map(lambda x, y: (x, y)))


# ---- regression


def prices(n=64):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n, 6)).astype("float32")
    return x, (250_000 + 80_000 * x[:, 0]).astype("float32")


def regression(head, **kwargs):
    inputs = keras.Input((6,))
    network = keras.Model(inputs, keras.layers.Dense(8, name="d")(inputs), name="net")
    return build(network, head, **kwargs)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_targets_in_units_of_their_own_learn_at_ordinary_rates(loss):
    x, y = prices()
    head = Regression(loss=loss, mean=y.mean(), std=y.std())
    model = regression(head, optimizer="adam", learning_rate=1e-2)
    first = model.evaluate(x, y, verbose=0, return_dict=True)
    start = {"mse": 1.0, "mae": np.abs(y - y.mean()).mean() / y.std(), "huber": 0.4}[loss]
    assert first["loss"] == pytest.approx(start, rel=0.2)
    assert first["rmse"] == pytest.approx(y.std(), rel=0.05)
    np.testing.assert_allclose(model.predict(x, verbose=0), y.mean(), rtol=0.05)
    model.fit(x, y, epochs=60, batch_size=32, verbose=0)
    last = model.evaluate(x, y, verbose=0, return_dict=True)
    assert last["rmse"] < 0.2 * y.std()
    assert last["mae"] < last["rmse"]


def test_the_loss_is_that_of_targets_in_standard_deviations():
    x, y = prices()
    model = regression(Regression(loss="huber", mean=y.mean(), std=y.std()))
    p = model.predict(x, verbose=0)[:, 0]
    z = np.abs(y - p) / y.std()
    expected = np.mean(np.where(z < 1, 0.5 * z**2, z - 0.5))
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] == pytest.approx(
        expected, rel=1e-4
    )
    own = Regression(loss=keras.losses.LogCosh(), std=5.0)
    assert own.loss_weights is None
    assert own.compile_arguments()["loss"] is own.loss


def test_several_numbers_have_a_mean_and_a_deviation_each():
    head = Regression(2, mean=[10.0, -5.0], std=[2.0, 4.0])
    model = regression(head)
    x, _ = prices()
    np.testing.assert_allclose(model.predict(x, verbose=0).mean(0), [10, -5], atol=0.3)
    assert head.loss_weights == pytest.approx(1 / 10)
    assert head.labels == "numbers, shape (batch, 2)"
    model.fit(x, np.ones((64, 2)), verbose=0)


def test_labels_of_shape_batch_are_not_spread_over_the_batch():
    x, y = prices()
    head = Regression(mean=y.mean())
    model = regression(head)
    p = model.predict(x, verbose=0)[:, 0]
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(np.mean((p - y) ** 2), rel=1e-3)
    again = regression(head)
    again.set_weights(model.get_weights())
    column = again.evaluate(x, y[:, None], verbose=0, return_dict=True)
    assert column == pytest.approx(logs)


# ---- ordinal


def test_the_first_predictions_of_an_ordinal_head_are_near_uniform():
    for classes in (2, 3, 7):
        inputs = keras.Input((64,))
        model = keras.Model(inputs, Ordinal(classes)(inputs))
        p = model.predict(np.random.default_rng(0).normal(size=(20, 64)), verbose=0)
        np.testing.assert_allclose(p, 1 / classes, atol=0.02)


def test_ordinal_probabilities_are_those_of_proportional_odds_and_safe_in_the_tails():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, Ordinal(4)(inputs))
    model.get_layer("ftk_head_output").kernel.assign([[1.0]])
    change = np.array([[0.3, -0.5, 1.0]], "float32")
    model.get_layer("ftk_head_ordinal").get_layer("thresholds").kernel.assign(change)
    quantiles = np.array([1, 2, 3]) / 4
    start = np.log(quantiles / (1 - quantiles))
    free = np.concatenate([start[:1], np.log(np.expm1(np.diff(start)))]) + change[0]
    thresholds = np.cumsum(np.concatenate([free[:1], np.log1p(np.exp(free[1:]))]))
    score = np.linspace(-3, 3, 7)
    below = 1 / (1 + np.exp(-(thresholds[None] - score[:, None])))
    expected = np.diff(np.pad(below, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1))), axis=1)
    x = score[:, None].astype("float32")
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    far = model.predict(np.array([[-80.0], [80.0]]), verbose=0)
    assert (far >= 0).all()
    np.testing.assert_allclose(far.sum(1), 1, atol=1e-6)
    model.compile("sgd", Ordinal(4).loss)
    model.fit(np.array([[-80.0], [80.0]]), np.array([3, 0]), verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_an_ordinal_head_learns_an_order_and_its_thresholds():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 6)).astype("float32")
    y = np.digitize(x[:, 0], [-1.2, 0.1])  # three classes of unequal size
    model = regression(Ordinal(3), optimizer="adam", learning_rate=5e-2)
    before = [np.array(w) for w in model.get_weights()]
    model.fit(x, y, epochs=30, verbose=0)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] > 0.9
    assert all(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True))


# ---- files


@pytest.mark.parametrize(
    "head",
    [
        Classification(3, from_logits=True, normalization="batch", l2=1e-3),
        Regression(loss="huber", mean=3.0, std=2.0),
        Regression(2, mean=[3.0, 1.0], std=[2.0, 1.0], loss="mae"),
        Ordinal(4, hidden=[5]),
    ],
)
def test_keras_loads_a_saved_head_compiled(head, tmp_path):
    model = build(residual(), head)
    x, y = images()
    y = np.stack([y] * 2, -1) if head.outputs[0].size == 2 else y
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)
    assert again.evaluate(x, y, verbose=0) == pytest.approx(
        model.evaluate(x, y, verbose=0), rel=1e-4
    )
    replace_head(again, head).fit(x, y, verbose=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Classification, "give num_classes, or class_names"),
        (lambda: Classification(2, class_names=_Folder()), "3 class_names for num_classes=2"),
        (lambda: Classification(3, from_logits="no"), "from_logits is True or False"),
        (lambda: Classification(3, normalization="group"), "'layer' or 'stochastic'; given 'gr"),
        (lambda: Ordinal(1), "num_classes must be an integer of 2 or more; given 1"),
        (lambda: Regression(0), "num_outputs must be an integer of 1 or more"),
        (lambda: Regression(loss="hubert"), "did you mean 'huber'"),
        (lambda: Regression(loss=3), "or a keras.losses.Loss; given 3"),
        (lambda: Regression(std=0.0), r"std is above 0; given 0\.0"),
        (lambda: Regression(2, mean=[1.0]), r"one for each of num_outputs=2; given \[1\.0\]"),
        (lambda: Regression(mean=float("nan")), "given nan"),
        (lambda: Regression(mean="ten"), "given 'ten'"),
        (lambda: Regression(mean="3"), "given '3'"),
        (lambda: Classification(class_names=[]), "give num_classes, or class_names"),
    ],
)
def test_bad_arguments_of_the_other_heads_name_the_fix(call, message):
    with pytest.raises(HeadError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("head", "y"),
    [
        (
            Classification(
                np.int64(3), hidden=[np.int64(4)], dropout=np.float32(0.1), l2=np.float32(0.01)
            ),
            np.arange(12) % 3,
        ),
        (Ordinal(np.int32(3)), np.arange(12) % 3),
        (Regression(np.int64(2), mean=np.float32([1, 2])), np.ones((12, 2))),
    ],
)
def test_numpys_numbers_reach_the_file(head, y, tmp_path):
    model = build(residual(), head)
    x, _ = images()
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "a.keras")
    again = load(tmp_path / "a.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)
    assert type(record.read(again).outputs[0].size) is int


def test_class_names_may_be_an_array():
    names = np.unique(["dog", "cat", "dog"])  # as in LabelEncoder().classes_
    assert Classification(class_names=names).class_names == ("cat", "dog")


def test_a_trunk_without_a_last_layer_is_no_head():
    with pytest.raises(TypeError, match="abstract"):
        Trunk()


def test_features_in_a_dict_are_refused_with_a_key_to_cut_at():
    features = {"sequence_output": keras.Input((5, 8)), "pooled_output": keras.Input((8,))}
    with pytest.raises(HeadError, match=r"cut_at='sequence_output'\), or the name"):
        heads.Classification(2)(features)


def test_ranks_in_alphabetical_order_are_asked_about(recwarn):
    class Data:
        class_names = ("high", "low", "mid")

    with pytest.warns(UserWarning, match="from 'high' \\(lowest\\) to 'mid'"):
        heads.Ordinal(class_names=Data())
    Data.class_names = ("low", "mid", "high")
    recwarn.clear()
    heads.Ordinal(class_names=Data())
    Data.class_names = ("1", "2", "3")
    heads.Ordinal(class_names=Data())
    heads.Ordinal(class_names=["a", "b", "c"])
    assert not recwarn.list
