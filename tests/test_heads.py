import dataclasses

import keras
import numpy as np
import pytest
from conftest import images, residual

from finetune_keras import HeadError, build, heads
from finetune_keras.heads import Classification

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
    if width > 1 and not head.multi_label:
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
