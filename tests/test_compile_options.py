"""Clipping, accumulation, smoothing, class weights and precision, against plain formulas."""

from collections import Counter

import keras
import numpy as np
import pytest
from conftest import chain, images, moved, residual, same, snapshot, value, vectors

import finetune_keras as ftk
from finetune_keras import backbone, build, freeze, heads, load, losses, select, thaw
from finetune_keras.optimizers import innermost

SPARSE = keras.losses.SparseCategoricalCrossentropy
P = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]], "float32")
Y = np.array([0, 2, 1])


def test_smoothing_of_integer_labels_is_that_of_one_hot_ones():
    one_hot = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    found = losses.adjusted("sparse_categorical_crossentropy", label_smoothing=0.1)
    same(found(Y, P), one_hot(np.eye(3)[Y], P), atol=1e-6)
    logits = np.log(P)
    found = losses.adjusted(SPARSE(from_logits=True), label_smoothing=0.1)
    same(found(Y, logits), one_hot(np.eye(3)[Y], P), atol=1e-5)


def test_smoothing_of_other_labels_is_keras_own():
    for name in ("categorical_crossentropy", "binary_crossentropy"):
        found = losses.adjusted(name, label_smoothing=0.2)
        assert type(found).__module__.startswith("keras")
        assert found.label_smoothing == 0.2
        assert losses.adjusted(found, label_smoothing=0).label_smoothing == 0


@pytest.mark.parametrize("sparse", [True, False])
def test_class_weights_are_those_of_fit(sparse):
    weight = [1.0, 2.0, 5.0]
    plain = SPARSE() if sparse else keras.losses.CategoricalCrossentropy()
    y = Y if sparse else np.eye(3)[Y]
    found = losses.adjusted(plain, class_weight=weight)
    same(found(y, P), plain(y, P, sample_weight=np.array(weight)[Y]), atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("options", [{"class_weight": [1, 2, 5]}, {"label_smoothing": 0.1}])
def test_an_ignored_class_adds_nothing_to_loss_or_mean(options, reduction):
    plain = SPARSE(ignore_class=-1, reduction=reduction)
    found = losses.adjusted(plain, **options)
    assert losses.WeightedCrossentropy.from_config(found.get_config()).reduction == reduction
    kept = losses.adjusted(SPARSE(reduction=reduction), **options)
    same(found(np.array([0, -1, 1]), P), kept(np.array([0, 1]), P[[0, 2]]), atol=1e-6)
    same(plain(np.array([0, -1, 1]), P), kept.loss(np.array([0, 1]), P[[0, 2]]), atol=1e-6)


def test_binary_class_weights():
    plain = keras.losses.BinaryCrossentropy()
    y, p = np.array([[0.0], [1.0], [1.0]]), np.array([[0.3], [0.6], [0.9]])
    found = losses.adjusted(plain, class_weight=[1.0, 4.0])
    expected = np.mean([-np.log(0.7), -4 * np.log(0.6), -4 * np.log(0.9)])
    same(found(y, p), expected, atol=1e-5)
    same(found(y[:, 0], p), expected, atol=1e-5)


def test_balanced_weights_make_classes_count_the_same():
    assert losses.balanced([30, 10]) == pytest.approx([2 / 3, 2.0])


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        ((), Counter([1, 1, 1, 0])),
        (("no", "yes"), Counter(np.array([1, 1, 1, 0]))),
        (("no", "yes"), {"yes": 3, "no": 1}),
    ],
)
def test_counts_belong_to_their_class_in_any_order(names, counts):
    assert losses.weights("balanced", counts, 2, names) == pytest.approx([2.0, 2 / 3])


def test_class_weights_by_numpys_integers():
    labels = np.array([0, 2, 1])
    weight = dict(zip(np.unique(labels), np.float32([1, 2, 3]), strict=True))
    assert losses.weights(weight, None, 3, ("a", "b", "c")) == [1.0, 2.0, 3.0]


def test_the_one_name_of_a_yes_or_no_head_is_that_of_yes():
    model = build(residual(), heads.Classification(class_names=["ill"]), class_weight={"ill": 5})
    assert model.loss.class_weight == [1.0, 5.0]
    ftk.compile(model, class_weight={"not ill": 2, 1: 3})
    assert model.loss.class_weight == [2.0, 3.0]


def test_several_labels_an_example_have_no_class_weights():
    model = build(residual(), heads.Classification(2, multi_label=True))
    with pytest.raises(ValueError, match="each of the 2 here is 0 or 1 for itself"):
        ftk.compile(model, class_weight=[1, 5])
    ftk.compile(model, class_weight=False)


def several(outputs):
    x = keras.Input((4,))
    kind = keras.layers.Dense(3, "softmax", name="kind")(x)
    made = {"list": [kind, keras.layers.Dense(1, name="age")(x)], "one": kind}
    return keras.Model(x, made[outputs])


def test_options_of_outputs_in_a_list_are_by_their_names():
    model = several("list")
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "age": "mse"})
    ftk.compile(model, class_weight={"kind": [1, 2, 3]})
    assert model.loss["kind"].class_weight == [1.0, 2.0, 3.0]
    assert model.loss["age"] == "mse"
    model.compile("sgd", ["sparse_categorical_crossentropy", "mse"])
    for option in ({"class_weight": [1, 2, 3]}, {"label_smoothing": 0.1}):
        with pytest.raises(ValueError, match="need the losses by name: loss={'kind': ..., 'age'"):
            ftk.compile(model, **option)


def test_options_of_one_output_with_its_loss_by_name():
    model = several("one")
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy"})
    ftk.compile(model, class_weight={"kind": {2: 3}})
    assert model.loss["kind"].class_weight == [1.0, 1.0, 3.0]


@pytest.mark.parametrize("option", ["loss", "metrics", "weighted_metrics", "loss_weights"])
def test_outputs_that_are_not_there_are_found_at_once(option):
    model = several("list")
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "age": "mse"})
    with pytest.raises(ValueError, match=f"{option}= has 'kid', which is no output; did you mean"):
        ftk.compile(model, **{option: {"kid": None}})
    head = heads.Multi({"kind": heads.Classification(3)})
    with pytest.raises(ValueError, match=f"{option}= has 'kid', which is no output; did you mean"):
        build(residual(), head, **{option: {"kid": None}})


def test_numpys_numbers_are_numbers():
    model = build(residual(), heads.Classification(3))
    ftk.compile(model, label_smoothing=np.float32(0.25), steps_per_execution=np.int64(2))
    assert model.loss.label_smoothing == 0.25
    assert model.steps_per_execution == 2


def test_options_of_build_reach_the_training():
    model = build(
        residual(),
        heads.Classification(3, class_names=["a", "b", "c"]),
        freeze=select.backbone(),
        clipnorm=0.5,
        label_smoothing=0.1,
        class_weight="balanced",
        counts={"c": 2, "b": 1, "a": 1},
        gradient_accumulation_steps=2,
        optimizer="sgd",
    )
    assert model.optimizer.clipnorm == 0.5
    assert model.optimizer.gradient_accumulation_steps == 2
    assert model.loss.class_weight == pytest.approx([4 / 3, 4 / 3, 2 / 3])
    x, y = images()
    before = snapshot(model)
    model.fit(x[:4], y[:4], batch_size=4, shuffle=False, verbose=0)
    assert not moved(before, model)  # half a step so far
    model.fit(x[4:8], y[4:8], batch_size=4, shuffle=False, verbose=0)
    assert {p.split("/")[0] for p in moved(before, model)} == {"ftk_head_output"}


def test_accumulating_two_batches_is_one_step_of_both():
    x, y = vectors()
    rate = {"optimizer": "sgd", "learning_rate": 0.1, "loss": "mse"}
    one, two = ftk.compile(chain(), **rate), chain()
    two.set_weights(one.get_weights())
    ftk.compile(two, **rate, gradient_accumulation_steps=2)
    one.fit(x, y, batch_size=32, verbose=0)
    two.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(one.weights, two.weights, strict=True):
        same(a, b, atol=1e-6)


def test_options_are_kept_through_freeze_and_thaw_and_can_be_switched_off():
    model = ftk.compile(
        chain(), loss="mse", optimizer="adam", clipnorm=1.0, gradient_accumulation_steps=2
    )
    model.fit(*vectors(), batch_size=8, verbose=0)
    freeze(model, select.up_to("a"))
    thaw(model, select.up_to("a"))
    assert (model.optimizer.clipnorm, model.optimizer.gradient_accumulation_steps) == (1.0, 2)
    momentum = [value(v) for v in model.optimizer.variables if "momentum" in v.path]
    ftk.compile(model, global_clipnorm=2.0, gradient_accumulation_steps=1)
    assert model.optimizer.clipnorm is None
    assert model.optimizer.global_clipnorm == 2.0
    assert model.optimizer.gradient_accumulation_steps is None
    kept = [value(v) for v in model.optimizer.variables if "momentum" in v.path]
    assert any(np.abs(m).max() > 0 for m in momentum)
    for a, b in zip(momentum, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    ftk.compile(model, global_clipnorm=False)
    assert model.optimizer.global_clipnorm is None


def test_clipping_bounds_the_step():
    x, y = vectors()
    model = ftk.compile(
        chain(), loss="mse", optimizer="sgd", learning_rate=1.0, global_clipnorm=0.01
    )
    before = [value(w) for w in model.weights]
    model.fit(x, 100 * y, batch_size=32, verbose=0)
    step = np.sqrt(
        sum(np.sum((value(w) - b) ** 2) for w, b in zip(model.weights, before, strict=True))
    )
    assert step == pytest.approx(0.01, rel=1e-3)


def test_several_outputs_take_a_dict():
    head = heads.Multi({"kind": heads.Classification(3), "age": heads.Regression()})
    model = build(residual(), head, label_smoothing={"kind": 0.1})
    assert model.loss["kind"].label_smoothing == 0.1
    ftk.compile(model, class_weight={"kind": {0: 2.0}})
    assert model.loss["kind"].label_smoothing == 0.1
    assert model.loss["kind"].class_weight == [2.0, 1.0, 1.0]
    x, y = images()
    model.fit(x, {"kind": y, "age": y.astype("float32")}, verbose=0)
    with pytest.raises(ValueError, match="a dict by their names, kind, age; given 0.1"):
        ftk.compile(model, label_smoothing=0.1)


def test_missing_labels_and_smoothing_go_together():
    head = heads.Multi({"kind": heads.Classification(3), "age": heads.Regression()}, missing=True)
    model = build(residual(), head, label_smoothing={"kind": 0.1})
    x, y = images()
    y[::2] = -1
    history = model.fit(x, {"kind": y, "age": y.astype("float32")}, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert model.loss["kind"].loss.label_smoothing == 0.1


def test_a_saved_model_goes_on_with_its_options(tmp_path):
    model = build(residual(), heads.Classification(3), label_smoothing=0.1, clipnorm=1.0)
    x, y = images()
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    again = load(tmp_path / "m.keras")
    assert again.loss.label_smoothing == 0.1
    assert again.optimizer.clipnorm == 1.0
    again.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "from 0 and below 1; given 1.0"),
        ({"class_weight": "balanced"}, r"needs counts=.*np.bincount\(labels\)"),
        ({"class_weight": "even"}, "takes 'balanced', a dict or a list; given 'even'"),
        ({"class_weight": [1, 2]}, "takes 3 numbers, one a class.*given 2"),
        ({"class_weight": {"x": 1}}, "no class 'x'; there are 0 to 2"),
        ({"class_weight": "balanced", "counts": [1, 0, 2]}, "class 1 has no example"),
        ({"class_weight": "balanced", "counts": [1, 2]}, "counts= takes 3 numbers"),
        ({"counts": [1, 2, 3]}, "goes with class_weight='balanced'"),
        ({"class_weight": [1, 2, 3], "counts": [1, 2, 3]}, "goes with class_weight='balanced'"),
        ({"class_weight": "balanced", "counts": {"x": 1}}, "counts= has no class 'x'"),
        ({"class_weight": "balanced", "counts": {0: 1, 2: 1}}, "class 1 has no example"),
        ({"class_weight": "balanced", "counts": "123"}, "3 numbers, one a class.*given '123'"),
        ({"class_weight": "balanced", "counts": [1, -1, 1]}, "none below 0; given .1, -1, 1"),
        ({"class_weight": True}, "3 numbers, one a class, none below 0; given True"),
        ({"class_weight": 2}, "3 numbers, one a class, none below 0; given 2"),
        ({"class_weight": ["1", "2", "3"]}, "none below 0; given .'1', '2', '3'"),
        ({"class_weight": {0: None}}, "none below 0; given {0: None}"),
        ({"class_weight": [1, np.nan, 1]}, "none below 0; given .1, nan, 1"),
        ({"class_weight": [1, np.inf, 1]}, "none below 0; given .1, inf, 1"),
        ({"class_weight": [[1], [1, 2], 3]}, "3 numbers, one a class"),
        ({"label_smoothing": "0.1"}, "from 0 and below 1; given '0.1'"),
        ({"jit_compile": "maybe"}, "True, False or 'auto'; given 'maybe'"),
        ({"clipnorm": -1}, "clipnorm must be a number above 0, or False; given -1"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "one way at a time; given clipnorm, clipvalue"),
        ({"gradient_accumulation_steps": 0}, "an integer of 1 or more; given 0"),
    ],
)
def test_bad_options_name_the_fix_and_change_nothing(options, message):
    model = build(residual(), heads.Classification(3))
    optimizer, loss = model.optimizer, model.loss
    with pytest.raises(ValueError, match=message) as raised:
        ftk.compile(model, **options)
    assert "\n" not in str(raised.value)
    assert model.optimizer is optimizer
    assert model.loss is loss


def test_smoothing_is_for_cross_entropies():
    model = ftk.compile(chain(), loss="mse")
    with pytest.raises(ValueError, match="are for a cross-entropy; this model's loss is 'mse'"):
        ftk.compile(model, label_smoothing=0.1)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_precision_of_a_backbone(policy):
    network = residual()
    exact = build(network, heads.Classification(3, hidden=[4]))
    base = backbone(network, preprocessing="mobilenetv2", dtype=policy)
    model = build(base, heads.Classification(3, hidden=[4]), optimizer="adam")
    half = policy.removeprefix("mixed_")
    assert keras.config.dtype_policy().name == "float32"
    assert {x.compute_dtype for x in base.network.layers if x.weights} == {half}
    assert {v.dtype for v in base.network.trainable_variables} == {"float32"}
    dtypes = {x.name: x.compute_dtype for x in model.layers}
    assert dtypes["ftk_preprocessing_rescaling"] == "float32"
    assert dtypes["ftk_head_hidden_1"] == half
    assert dtypes["ftk_head_output"] == "float32"
    assert model.output.dtype == "float32"
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    x, y = images()
    before = snapshot(model)
    model.fit(x, y, verbose=0)
    assert "ftk_head_output/kernel" in moved(before, model)
    freeze(model, select.backbone())
    assert isinstance(innermost(model.optimizer), keras.optimizers.Adam)
    model.fit(x, y, verbose=0)
    same(exact.layers[1].get_weights()[0], network.get_weights()[0], atol=0)


def test_a_saved_mixed_model_loads_in_its_precision(tmp_path):
    model = build(backbone(residual(), dtype="mixed_bfloat16"), heads.Classification(3))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    x, _ = images()
    same(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    assert again.get_layer("residual").get_layer("stem_conv").compute_dtype == "bfloat16"


def test_auto_is_full_precision_without_an_accelerator():
    network = residual()
    base = backbone(network, dtype="auto")
    assert base.model.output.dtype in ("float32", "bfloat16")
    with pytest.raises(ValueError, match="unknown dtype='bf16'; did you mean|there are"):
        backbone(network, dtype="bf16")
