"""What `check` finds, what it must not find, and that it leaves everything as it was."""

import json
import random
import re

import keras
import numpy as np
import pytest
from conftest import chain, images, residual, value

import finetune_keras as ftk
from finetune_keras import build, check, heads, select
from finetune_keras.check import Finding, Findings, memory, sample

layers, losses = keras.layers, keras.losses


# -- Models and data of which nothing is to be said, each changed in one way below.


def photos(n=96, classes=3):
    x, _ = images(n, classes=classes)
    return x, (np.arange(n) % classes).astype("int32")


def preprocessed(**kwargs):
    """A network whose batch normalisation has seen pixels scaled to -1..1, and scales them."""
    network = residual()
    x, _ = photos()
    norms = [x_ for x_ in network.layers if isinstance(x_, layers.BatchNormalization)]
    probe = keras.Model(network.input, [n.input for n in norms])
    for norm, seen in zip(norms, probe.predict(x / 127.5 - 1, verbose=0), strict=True):
        norm.moving_mean.assign(seen.mean(axis=(0, 1, 2)))
        norm.moving_variance.assign(seen.var(axis=(0, 1, 2)))
    inputs = keras.Input((16, 16, 3))
    scaling = kwargs.pop("scaling", True)
    scaled = layers.Rescaling(1 / 127.5, -1)(inputs) if scaled_by(scaling) else inputs
    body = keras.Model(inputs, network(scaled), name="body")
    return build(body, heads.Classification(3, **kwargs), freeze=select.backbone())


def scaled_by(scaling):
    return bool(scaling)


def dense(units=3, activation="softmax", loss="sparse_categorical_crossentropy", width=6):
    inputs = keras.Input((width,))
    model = keras.Model(inputs, layers.Dense(units, activation=activation)(inputs))
    if loss is not None:
        model.compile("adam", loss)
    return model


X = np.random.default_rng(0).normal(size=(120, 6)).astype("float32")
Y = (np.arange(120) % 3).astype("int32")
HOT = np.eye(3, dtype="float32")[Y]
BITS = (np.arange(120) % 2).astype("int32")
VALUES = np.random.default_rng(1).normal(size=(120, 1)).astype("float32")


def codes(found):
    return [f.code for f in found]


def only(found, code, *words):
    """There is this one finding, in one line that has the words."""
    assert codes(found) == [code], str(found)
    text = str(found)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


# -- Labels


@pytest.mark.parametrize(
    ("model", "y"),
    [
        (dense, Y),
        (dense, Y[:, None]),
        (dense, Y.astype("float32")),
        (dense, Y.astype("uint8")),
        (lambda: dense(loss="categorical_crossentropy"), HOT),
        (lambda: dense(loss="categorical_crossentropy"), 0.9 * HOT + 0.1 / 3),
        (lambda: dense(loss="crossentropy"), Y),
        (lambda: dense(1, "sigmoid", "binary_crossentropy"), BITS),
        (lambda: dense(1, "sigmoid", "binary_crossentropy"), BITS[:, None].astype(bool)),
        (lambda: dense(3, "sigmoid", "binary_crossentropy"), HOT),
        (lambda: dense(1, "sigmoid", "binary_crossentropy"), BITS * 0.8 + 0.1),
        (lambda: dense(1, None, "mse"), VALUES),
        (lambda: dense(1, None, "mse"), VALUES[:, 0]),
        (lambda: dense(3, None, losses.SparseCategoricalCrossentropy(from_logits=True)), Y),
        (
            lambda: dense(3, loss=losses.SparseCategoricalCrossentropy(ignore_class=-1)),
            "ignored",
        ),
        (lambda: dense(3, loss=lambda y, p: keras.ops.mean((y - p) ** 2)), HOT * 7),
    ],
)
def test_good_labels_are_silent(model, y):
    if isinstance(y, str):
        y = np.where(np.arange(120) % 4, Y, -1)
    assert not check(model(), (X, y)), check(model(), (X, y))


SPARSE_3 = "integers from 0 to 2"


@pytest.mark.parametrize(
    ("model", "y", "words"),
    [
        (dense, Y + 1, ("40 of 120 labels", "(3)", SPARSE_3, "NaN", "y - 1")),
        (dense, Y - 1, ("(-1)", "ignore_class=-1")),
        (dense, Y * 3, ("(3 to 6)", "number the labels from 0 to 2: numpy.unique")),
        (dense, np.arange(120) % 7, ("(3 to 6)", "a head of 7 classes")),
        (dense, np.where(Y == 2, 255, Y), ("(255)", "ignore_class=255")),
        (
            lambda: dense(loss=losses.SparseCategoricalCrossentropy(ignore_class=-1)),
            Y - 2,
            ("40 of 120", "(-2)"),
        ),
        (dense, HOT, ("one-hot", SPARSE_3, "argmax", "categorical_crossentropy")),
        (dense, Y + 0.5, ("fractions", "heads.Regression")),
        (dense, np.array(["cat", "dog", "fox"])[Y], ("'cat'", "class_names.index")),
        (dense, np.stack([Y, Y], 1), ("(batch, 2)", "shape (batch,)")),
        (
            lambda: dense(1, "sigmoid"),
            BITS,
            ("(1)", "yes-or-no", "binary_crossentropy"),
        ),
        (
            lambda: dense(loss="categorical_crossentropy"),
            Y,
            ("class numbers", "one-hot rows of 3", "to_categorical(y, 3)"),
        ),
        (
            lambda: dense(loss="categorical_crossentropy"),
            np.maximum(HOT, np.roll(HOT, 1, axis=1)),
            ("sums to 2", "multi_label=True"),
        ),
        (
            lambda: dense(1, "sigmoid", "binary_crossentropy"),
            BITS * 2 - 1,
            ("-1 to 1", "(y + 1) / 2"),
        ),
        (lambda: dense(1, "sigmoid", "binary_crossentropy"), BITS * 255, ("y / 255",)),
        (lambda: dense(1, "sigmoid", "binary_crossentropy"), BITS + 1, ("y - 1",)),
        (lambda: dense(1, "sigmoid", "binary_crossentropy"), Y, ("heads.Classification(3)",)),
        (lambda: dense(1, "sigmoid", "binary_crossentropy"), np.eye(2)[BITS], ("argmax",)),
        (lambda: dense(3, "sigmoid", "binary_crossentropy"), Y, ("(batch, 3)", "0 or 1 for each")),
        (lambda: dense(1, None, "mse"), np.where(Y[:, None], VALUES, np.nan), ("40 of 120", "NaN")),
        (lambda: dense(2, None, "mse"), VALUES, ("(batch, 1)", "(batch, 2)")),
    ],
)
def test_bad_labels_are_named_with_their_fix(model, y, words):
    only(check(model(), (X, y)), "labels", *words)


def test_no_labels():
    data = [(X[:32],)]
    only(check(dense(), Batches(data)), "labels", "there are no labels", "give (x, y)")


class Batches:
    """A data set that is no list."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_all_labels_of_arrays_are_looked_at():
    y = np.zeros(5000, "int32")
    y[:] = np.arange(5000) % 3
    y[4321] = 3
    found = check(dense(), (np.random.default_rng(0).normal(size=(5000, 6)), y))
    only(found, "labels", "1 of 5000")
    assert found.examples == 128


def test_the_record_says_what_the_head_takes():
    model = build(chain_features(), heads.Classification(3, class_names=["cat", "dog", "fox"]))
    only(check(model, (X, Y + 1)), "labels", "the head takes integers from 0 to 2, shape (batch,)")


def chain_features():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, activation="relu")], name="features"
    )


def two_outputs(loss=None):
    inputs = keras.Input((6,))
    outs = {
        "kind": layers.Dense(3, activation="softmax", name="kind")(inputs),
        "size": layers.Dense(1, name="size")(inputs),
    }
    model = keras.Model(inputs, outs)
    model.compile("adam", loss or {"kind": "sparse_categorical_crossentropy", "size": "mse"})
    return model


def test_several_outputs_are_named():
    assert not check(two_outputs(), (X, {"kind": Y, "size": VALUES}))
    found = check(two_outputs(), (X, {"kind": Y + 1, "size": VALUES}))
    only(found, "labels", "output 'kind': ", "y - 1")
    found = check(two_outputs(), (X, {"kind": Y, "size": VALUES * np.nan}))
    only(found, "labels", "output 'size': ")
    loss = {"kind": losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"}
    only(check(two_outputs(loss), (X, {"kind": Y, "size": VALUES})), "activation", "output 'kind'")


def test_a_list_of_outputs():
    inputs = keras.Input((6,))
    outs = [
        layers.Dense(3, activation="softmax", name="kind")(inputs),
        layers.Dense(1, name="size")(inputs),
    ]
    model = keras.Model(inputs, outs)
    model.compile("adam", ["sparse_categorical_crossentropy", "mse"])
    assert not check(model, (X, [Y, VALUES]))
    only(check(model, (X, [Y + 1, VALUES])), "labels", "output 'kind'")


# -- Pixels


def test_raw_pixels_into_a_model_that_scales_are_silent():
    assert not check(preprocessed(), photos())


@pytest.mark.parametrize(
    "scale", [lambda x: x / 255, lambda x: x / 127.5 - 1, lambda x: x / 58 - 2]
)
def test_pixels_scaled_twice(scale):
    x, y = photos()
    only(check(preprocessed(), (scale(x), y)), "pixels", "preprocessed twice", "0 to 255")


def test_the_weights_from_caffe_subtract_only():
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling([1.0, 1.0, 1.0], [-103.9, -116.8, -123.7])(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    model = keras.Model(
        inputs, layers.Dense(3, activation="softmax", kernel_initializer="zeros")(x)
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = photos()
    assert not check(model, (x, y))
    only(check(model, (x / 255, y)), "pixels", "preprocessed twice")


def test_a_normalization_adapted_to_scaled_pixels_is_silent():
    x, y = photos()
    norm = layers.Normalization()
    norm.adapt(x / 255)
    inputs = keras.Input((16, 16, 3))
    h = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(norm(inputs)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(h))
    model.compile("adam", "sparse_categorical_crossentropy")
    assert not check(model, (x / 255, y))


def test_pixels_unlike_those_of_pretraining():
    model, (x, y) = preprocessed(scaling=None), photos()
    assert not check(model, (x / 127.5 - 1, y))
    text = only(check(model, (x, y)), "pixels", "larger than it was trained on", "preprocessing=")
    times = int(text.split(" times larger")[0].split()[-1])
    assert 100 < times < 200  # 127.5 for a pixel
    assert not check(build(residual(), heads.Classification(3)), (x, y))  # from scratch


def test_too_small_pixels_for_pretraining_without_scaling_in_the_graph():
    model, (x, y) = preprocessed(scaling=None), photos()
    scaled = (x / 127.5 - 1) / 255
    only(check(model, (scaled, y)), "pixels", "smaller", "0 to 255")


def test_a_narrow_range_is_no_finding_without_scaling_in_the_model():
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(3, "softmax", kernel_initializer="zeros")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = photos()
    assert not check(model, (3 + x / 25500, y))


class Loud(layers.Layer):
    """An augmentation that is on unless told not to be, as Keras' own are."""

    def call(self, x, training=True):
        return 1e4 * x if training else x


def test_augmentation_does_not_count():
    inner, (x, y) = preprocessed(scaling=None), photos()
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, inner(Loud()(inputs)))
    model.compile("adam", "sparse_categorical_crossentropy")
    assert not check(model, (x / 127.5 - 1, y))
    assert codes(check(model, (x, y))) == ["pixels"]


def test_nan_and_constant_images():
    x, y = photos()
    broken = x.copy()
    broken[7, 3, 3, 0] = np.nan
    only(check(preprocessed(), (broken, y)), "nan", "1 of 96", "number 7")
    blank = x.copy()
    blank[:2] = 17
    assert not check(preprocessed(), (blank, y))  # two blank photographs happen
    blank[:20] = 17
    only(check(preprocessed(), (blank, y)), "constant", "20 of 96")


def test_nan_in_the_weights():
    model = dense()
    kernel = model.layers[-1].kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    only(check(model, (X, Y)), "nan", "the weights are broken")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((96, 28, 28, 3), "float32"), ("(32, 28, 28, 3)", "(None, 16, 16, 3)")),
        (np.zeros((96, 3, 16, 16), "float32"), ("transpose",)),
    ],
)
def test_inputs_of_another_shape(x, words):
    x = x + np.random.default_rng(0).uniform(0, 255, x.shape).astype("float32")
    only(check(preprocessed(), (x, photos()[1])), "shape", *words)


# -- Activation and first loss


@pytest.mark.parametrize(
    ("model", "y", "words"),
    [
        (
            lambda: dense(loss=losses.SparseCategoricalCrossentropy(from_logits=True)),
            Y,
            ("softmax", "from_logits=True", "applied twice"),
        ),
        (
            lambda: dense(1, "sigmoid", losses.BinaryCrossentropy(from_logits=True)),
            BITS,
            ("sigmoid", "BinaryCrossentropy()"),
        ),
        (lambda: dense(3, None), Y, ("no activation", "from_logits=True", "activation='softmax'")),
        (lambda: dense(1, None, "binary_crossentropy"), BITS, ("activation='sigmoid'",)),
        (lambda: dense(1, "softmax", "binary_crossentropy"), BITS, ("always 1", "'sigmoid'")),
    ],
)
def test_activations_that_do_not_fit_the_loss(model, y, words):
    only(check(model(), (X, y)), "activation", *words)


def test_softmax_layers_and_functions_count():
    inputs = keras.Input((6,))
    logits = layers.Dense(3)(inputs)
    for last in (layers.Softmax(), layers.Activation("softmax"), keras.ops.softmax):
        model = keras.Model(inputs, last(logits))
        model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True))
        only(check(model, (X, Y)), "activation", "applied twice")
        model.compile("adam", losses.SparseCategoricalCrossentropy())
        assert not check(model, (X, Y))


def test_a_softmax_over_another_axis_makes_no_classes():
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.Softmax(axis=1)(layers.Dense(3)(inputs)))
    model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.tile(np.arange(4) % 3, (30, 1))
    assert not check(model, (X[:, :3].repeat(4, axis=0).reshape(120, 4, 3)[:30], y))


def test_a_first_loss_worse_than_a_guess():
    model = dense(3, None, losses.SparseCategoricalCrossentropy(from_logits=True))
    text = only(check(model, (X * 100, Y)), "first_loss", "guess has 1.1", "preprocessing")
    assert float(text.split("loss is ")[1].split()[0]) > 10
    model.fit(X, Y, verbose=0)
    assert not check(model, (X * 100, Y))  # under way: other things may be the cause


def test_targets_far_from_zero():
    model = dense(1, None, "mse")
    only(check(model, (X, VALUES + 300)), "first_loss", "mean is 300", "(y - mean) / deviation")
    assert not check(model, (X, VALUES + 1))
    only(check(model, (X * 1000, VALUES)), "first_loss", "look at the preprocessing")
    model.layers[-1].bias.assign([300.0])
    assert not check(model, (X, VALUES + 300))


def test_a_model_that_fails():
    any_width = keras.Input((None,))
    joined = layers.Add()([layers.Reshape((4,))(any_width), layers.Reshape((4,))(any_width)])
    model = keras.Model(any_width, layers.Dense(3, activation="softmax")(joined))
    model.compile("adam", "sparse_categorical_crossentropy")
    assert not check(model, (X[:, :4], Y))
    only(check(model, (X, Y)), "model", "fails on these inputs")


def test_pixels_of_masks_are_no_examples():
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, layers.Conv2D(3, 1, activation="softmax")(inputs))
    model.compile("adam", "sparse_categorical_crossentropy")
    x, mask = photos()[0] / 255, np.zeros((96, 16, 16), "int32")
    mask[:, :2] = 1
    assert not check(model, (x, mask))
    only(check(model, (x, mask + 2)), "labels", "(3)")
    only(check(model, (x, mask[:, 0])), "labels", "shape (batch, 16, 16)")


def test_a_loss_that_takes_other_labels_than_the_head_was_made_for():
    model = build(chain_features(), heads.Classification(3))
    ftk.compile(model, loss="categorical_crossentropy")
    assert not check(model, (X, HOT))
    only(check(model, (X, Y)), "labels", "CategoricalCrossentropy takes one-hot rows of 3")


# -- Balance


def test_balance():
    model = dense()
    assert not check(model, (X, Y))
    only(check(model, (X, Y % 2)), "balance", "1 of 3 classes ('2')", "all 120 labels")
    only(check(model, (X, Y * 0)), "balance", "all 120 labels are of class '0'")
    rare = np.where(np.arange(120) < 4, 2, np.arange(120) % 2)
    only(check(model, (X, rare)), "balance", "class '2' has 4", 'class_weight="balanced"')
    few = np.where(np.arange(120) < 8, 2, np.arange(120) % 2)
    assert not check(model, (X, few))  # 56 to 8
    binary = dense(1, "sigmoid", "binary_crossentropy")
    only(check(binary, (X, (np.arange(120) < 5) * 1)), "balance", "class 1 has 5")


def batched(x, y, size=32):
    return Batches([(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)])


def test_a_few_batches_tell_nothing_of_rare_classes():
    ten = dense(10)
    assert not check(ten, batched(X[:32], np.arange(32) % 9))  # 32 examples of 10 classes
    x = np.tile(X, (3, 1))
    assert codes(check(ten, batched(x, np.arange(360) % 9))) == ["balance"]
    rare = np.where(np.arange(120) % 24, np.arange(120) % 2, 2)  # 5 of 120, by chance perhaps
    assert not check(dense(), batched(X, rare))
    assert codes(check(dense(), (X, rare))) == ["balance"]


def test_a_data_set_sorted_by_class():
    y = np.sort(np.tile(Y, 4))
    x = np.tile(X, (4, 1))
    found = check(dense(), batched(x, y))
    only(found, "balance", "128 labels are of class '0'", "sorted by class", "shuffle")
    assert not check(dense(), (x, y))  # fit shuffles arrays


def test_class_names_in_another_order():
    model = build(chain_features(), heads.Classification(3, class_names=["cat", "dog", "fox"]))
    data = batched(X, Y)
    data.class_names = ["cat", "dog", "fox"]
    assert not check(model, data)
    data.class_names = ["dog", "cat", "fox"]
    only(check(model, data), "class_names", "label 0 is 'dog' in the data set and 'cat'")


# -- Training


def test_a_model_that_is_not_compiled():
    only(check(dense(loss=None), (X, Y)), "compile", "finetune_keras.compile")


def test_nothing_learns():
    model = dense()
    model.trainable = False
    model.compile("adam", "sparse_categorical_crossentropy")
    only(check(model, (X, Y)), "frozen", "finetune_keras.thaw")


def vectors_model():
    model = chain()
    model.layers[-1].activation = keras.activations.softmax
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def test_flags_changed_by_hand():
    model = vectors_model()
    model.layers[0].trainable = False
    assert not check(model, (X, Y))  # not yet built: the next fit sees the flags
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0)
    assert not check(model, (X, Y))
    model.layers[0].trainable = True
    model.layers[1].trainable = False
    text = only(check(model, (X, Y)), "flags", "thawed 'a'", "frozen 'b'")
    assert text.endswith("fix: finetune_keras.compile(model)")
    ftk.compile(model)
    assert not check(model, (X, Y))


def test_lora_enabled_after_compile():
    model = vectors_model()
    model.layers[0].enable_lora(2)
    assert not check(model, (X, Y))
    model = vectors_model()
    model.fit(X, Y, verbose=0)
    model.layers[0].enable_lora(2)
    only(check(model, (X, Y)), "lora", "'a'", "finetune_keras.compile(model)")
    ftk.compile(model)
    assert not check(model, (X, Y))


def test_batch_normalisations_and_small_batches():
    x, y = photos()
    model = build(residual(), heads.Classification(3))
    assert not check(model, (x, y), batch_size=16)
    only(
        check(model, (x, y), batch_size=8),
        "norms",
        "3 batch norm",
        "batches of 8",
        "select.norms()",
    )
    ftk.freeze(model, select.norms())
    assert not check(model, (x, y), batch_size=8)


def test_rates():
    model = ftk.build(
        ftk.backbone("letters_resnet", input_shape=(24, 24, 3)), heads.Classification(3)
    )
    data = images(96, size=24)
    assert not check(model, data)
    ftk.compile(model, learning_rate=1e-2)
    only(check(model, data), "rate", "0.01", "learning_rate=1e-05")
    ftk.compile(model, optimizer="sgd", learning_rate=0.05)
    assert not check(model, data)
    ftk.freeze(model, select.backbone())
    ftk.compile(model, optimizer="adam", learning_rate=1e-2)
    assert not check(model, data)
    plain = dense()
    plain.optimizer.learning_rate = 0.0
    only(check(plain, (X, Y)), "rate", "is 0")


def test_memory(monkeypatch):
    model, data = dense(), (X, Y)
    assert not check(model, data)
    monkeypatch.setattr(memory, "free", lambda: (300, "this machine"))
    only(check(model, data), "memory", "batches of 32", "this machine has 0 MiB", "batches of 4")


def test_the_estimate_of_memory():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, padding="same", name="a"),
            layers.Flatten(),
            layers.Dense(2, name="b"),
        ]
    )
    weights = 4 * (3 * 3 * 3 * 4 + 4 + 256 * 2 + 2)
    everything = memory.need(model)
    assert everything == memory.Need(2 * weights, 4 * (8 * 8 * 4 + 2))
    model.layers[0].trainable = False
    assert memory.need(model) == memory.Need(weights + 4 * (256 * 2 + 2), 4 * 2)
    model.compile("adam", "mse")
    assert memory.need(model).fixed == weights + 3 * 4 * (256 * 2 + 2)
    assert everything.step(10) == everything.fixed + 10 * everything.example


def test_free_memory_is_read():
    room, name = memory.free() or (1, "unknown")
    assert room > 0
    assert name


# -- Nothing changes


def test_nothing_in_the_model_changes():
    """Two equal models; one is checked between two epochs, and the second epoch is equal."""
    x, y = photos()

    def trained(checked):
        keras.utils.set_random_seed(1)
        augment = layers.RandomFlip(seed=1)
        model = build(residual(), heads.Classification(3, dropout=0.5), augment=augment)
        model.fit(x, y, batch_size=16, verbose=0, shuffle=False)
        before = state(model)
        if checked:
            functions = (model.train_function, model.predict_function)
            config = json.dumps(model.get_config(), default=str)
            found = check(model, (x / 255, y + 1), batch_size=8)
            assert len(found) >= 2
            assert (model.train_function, model.predict_function) == functions
            assert json.dumps(model.get_config(), default=str) == config
            same(before, state(model))
        model.fit(x, y, batch_size=16, verbose=0, shuffle=False)
        return state(model)

    same(trained(False), trained(True))


def state(model):
    every = [*model.variables, *model.optimizer.variables]
    every += [v for m in model.metrics for v in m.variables]
    flags = [layer.trainable for layer in model.layers]
    return [value(v) for v in every], flags, np.random.get_state()[1:3], random.getstate()


def same(a, b):
    for left, right in zip(a[0], b[0], strict=True):
        np.testing.assert_array_equal(left, right)
    assert a[1] == b[1]
    np.testing.assert_array_equal(a[2][0], b[2][0])
    assert (a[2][1], a[3]) == (b[2][1], b[3])


@keras.saving.register_keras_serializable("test_check")
class Counts(layers.Layer):
    """Counts its calls and draws a random number in inference too, as it should not."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        self.calls.assign(self.calls + 1)
        return x + 0 * keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def test_a_layer_that_writes_in_inference_is_not_written():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(Counts()(inputs)))
    model.compile("adam", "sparse_categorical_crossentropy")
    before = [value(v) for v in model.variables]
    assert not check(model, (X, Y))
    for v, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(value(v), old)


# -- Data of every kind


def test_a_tensorflow_data_set():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, Y))
    assert not check(dense(), data.batch(32))
    assert check(dense(), data.batch(30), batches=2).examples == 60
    only(check(dense(), data.batch(32).map(lambda x, y: (x, y + 1))), "labels")
    assert "dataset.batch(32)" in str(check(dense(), data))


class Pages(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.read = []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.read.append(index)
        np.random.rand()  # as an augmentation of the user's own does
        random.random()
        return X[index * 12 : (index + 1) * 12], Y[index * 12 : (index + 1) * 12]


def test_a_py_dataset_is_read_all_over():
    pages = Pages()
    model = dense()  # whose initial values are drawn
    before = random.getstate(), np.random.get_state()[2]
    assert check(model, pages).examples == 48
    assert (random.getstate(), np.random.get_state()[2]) == before
    assert pages.read == [0, 3, 6, 9]


def test_a_torch_loader_leaves_the_random_state():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    before = torch.get_rng_state()
    assert not check(dense(), loader)
    assert torch.equal(torch.get_rng_state(), before)
    own = torch.Generator().manual_seed(5)
    before = own.get_state()
    check(dense(), torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, generator=own))
    assert torch.equal(own.get_state(), before)


def test_dicts_of_inputs():
    a, b = keras.Input((2,), name="a"), keras.Input((4,), name="b")
    joined = layers.Concatenate()([a, b])
    model = keras.Model({"a": a, "b": b}, layers.Dense(3, activation="softmax")(joined))
    model.compile("adam", "sparse_categorical_crossentropy")
    data = {"a": X[:, :2], "b": X[:, 2:]}
    assert not check(model, (data, Y))
    only(check(model, ({"a": X[:, :2], "c": X[:, 2:]}, Y)), "shape", "'b'")
    broken = {**data, "b": np.where(Y[:, None], X[:, 2:], np.inf)}
    only(check(model, (broken, Y)), "nan", "inputs 'b'")


def test_a_generator_is_refused_and_not_read():
    generator = (batch for batch in [(X, Y)])
    with pytest.raises(TypeError, match=r"check\(model, next\(generator\)\)"):
        check(dense(), generator)
    assert not check(dense(), next(generator))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (X, TypeError, r"ndarray of shape \(120, 6\): pass \(x, y\)"),
        ((X, Y[:7]), ValueError, "120 and 7 examples"),
        ((X, Y.tolist()), TypeError, "numpy.asarray"),
        ((X[:0], Y[:0]), ValueError, "empty"),
        ("photos", TypeError, "given a str"),
        (7, TypeError, "given a int"),
        (Batches([]), ValueError, "gives no batch"),
        (Batches([(X, Y, Y, Y)]), ValueError, "a tuple of 4"),
    ],
)
def test_data_that_fit_does_not_take(data, error, message):
    with pytest.raises(error, match=message) as e:
        check(dense(), data)
    assert "\n" not in str(e.value)


def test_other_arguments():
    assert not check(dense(), (X, Y), batches=np.int64(2), batch_size=np.int32(16))
    assert [f.code for f in check(dense(), (X, None))] == ["labels"]
    with pytest.raises(TypeError, match=r"given a Backbone; pass its \.model"):
        check(ftk.backbone("letters_resnet", input_shape=(24, 24, 3)), (X, Y))
    with pytest.raises(ValueError, match="batches must be an integer of 1 or more; given 0"):
        check(dense(), (X, Y), batches=0)
    with pytest.raises(ValueError, match="not built"):
        check(keras.Sequential([layers.Dense(2)]), (X, Y))


def test_subclassed_models_are_checked_as_far_as_they_can_be():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = layers.Dense(3, activation="softmax")

        def call(self, x):
            return self.out(x)

    model = Own()
    model(X[:2])
    model.compile("adam", "sparse_categorical_crossentropy")
    assert not check(model, (X, Y))
    only(check(model, (X, Y + 1)), "labels", "y - 1")


def test_what_findings_are():
    found = Findings((Finding("labels", "<b> is wrong", "do so"),), 32)
    assert bool(found)
    assert str(found) == "labels: <b> is wrong; fix: do so"
    assert "&lt;b&gt;" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["findings"][0]["fix"] == "do so"
    assert str(Findings((), 32)) == "nothing found in 32 examples"
    assert not Findings((), 32)
    assert "nothing found" in Findings((), 32)._repr_html_()


def test_a_sample_of_arrays_is_from_all_over():
    drawn = sample.draw((np.arange(1000)[:, None], np.arange(1000)), 2, 4)
    assert drawn.inputs[:, 0].tolist() == [0, 142, 285, 428, 570, 713, 856, 999]
    assert drawn.batch_y.tolist() == drawn.x[:, 0].tolist()
    assert len(drawn.x) == 4


def two_heads(**options):
    head = heads.Multi({"kind": heads.Classification(3), "age": heads.Regression()}, **options)
    return build(residual(), head)


KIND, AGE = np.arange(60) % 3, np.random.default_rng(5).normal(size=60).astype("float32")
PICTURES = np.random.default_rng(6).normal(size=(60, 16, 16, 3)).astype("float32")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            {"kind": KIND, "ages": AGE},
            r"dict of 'kind', 'ages'.*outputs 'age', 'kind'.*did you mean 'ages'",
        ),
        ({"kind": KIND}, "dict of 'kind', and the model has the outputs 'age', 'kind'"),
        ({"kind": KIND, "age": AGE, "more": AGE}, "dict of 'kind', 'age', 'more'"),
        (KIND, "one array, and the model has the outputs 'age', 'kind'"),
        ({"kind": KIND, "age": AGE}, None),
    ],
)
def test_labels_by_the_names_of_the_outputs(y, message):
    found = [f for f in check(two_heads(), (PICTURES, y)) if f.code == "labels"]
    assert [re.search(message, f.message) is not None for f in found] == [True] * bool(message)


def test_a_list_of_labels_for_heads_by_name():
    # Keras gives the first to 'age', and so would swap two heads of one kind without a word.
    (found,) = [f for f in check(two_heads(), (PICTURES, [KIND, AGE])) if f.code == "labels"]
    assert "gives to 'age', 'kind' in this order, and the heads are 'kind'" in found.message
    head = heads.Multi({"a": heads.Classification(3), "b": heads.Regression()})
    silent = check(build(residual(), head), (PICTURES, [KIND, AGE]))
    assert "labels" not in [f.code for f in silent]


def test_a_dict_of_labels_for_one_output():
    (found,) = check(dense(), (X, {"kind": Y}))
    assert (found.code, found.fix) == ("labels", "the labels themselves, y['kind']")
    assert "a dict of 'kind', and the model has one output" in found.message
    with pytest.raises((TypeError, ValueError, AttributeError)):  # each backend in its own words
        dense().fit(X, {"kind": Y}, verbose=0)


def test_labels_and_their_shape_are_said_once():
    model = build(residual(), heads.Classification(3))
    (found,) = [f for f in check(model, (PICTURES, np.stack([KIND] * 2, 1))) if f.code == "labels"]
    assert found.message.count("(batch,)") == 1
    (found,) = [f for f in check(model, (PICTURES, np.array(["x"] * 60))) if f.code == "labels"]
    assert "('x', for one)" in found.message


def test_labels_may_be_missing_where_the_head_says_so():
    kind, age = KIND.copy(), AGE.copy()
    kind[::4], age[::5] = -1, np.nan
    silent = check(two_heads(missing=True), (PICTURES, {"kind": kind, "age": age}))
    assert not [f for f in silent if f.code in ("labels", "balance")]
    told = check(two_heads(), (PICTURES, {"kind": kind, "age": age}))
    assert len([f for f in told if f.code == "labels"]) == 2
    kind[1] = 7
    wrong = check(two_heads(missing=True), (PICTURES, {"kind": kind, "age": age}))
    assert [f.code for f in wrong if f.code == "labels"] == ["labels"]


def test_smoothed_and_weighted_losses_are_understood():
    model = build(
        residual(), heads.Classification(3), label_smoothing=0.1, class_weight=[1.0, 2.0, 1.0]
    )
    assert not [f for f in check(model, (PICTURES, KIND)) if f.code in ("labels", "activation")]
    assert [f.code for f in check(model, (PICTURES, KIND + 1)) if f.code == "labels"]


def test_missing_labels_are_labels_where_the_head_allows_them():
    head = heads.Multi({"kind": heads.Classification(3), "age": heads.Regression()}, missing=True)
    y = {"kind": np.array([0, -1, 2, 1] * 3), "age": np.array([1.0, np.nan, 3.0, 4.0] * 3)}
    x, _ = images(12)
    model = ftk.build(residual(), head, freeze=ftk.select.backbone())
    assert "labels" not in [f.code for f in ftk.check(model, (x, y))]
    for wrong in ({**y, "kind": y["kind"] + 2}, {**y, "age": y["age"] * np.inf}):
        assert "labels" in [f.code for f in ftk.check(model, (x, wrong))]
