"""Whole models as Keras 2 wrote them, made by hand in its layout and held against Keras 3."""

import copy
import zipfile

import h5py
import keras
import numpy as np
import pytest
from conftest import learners, moved, same, snapshot, value
from keras_2 import (
    ARRAYS,
    conv,
    dense,
    draw,
    entry,
    functional,
    layer,
    named,
    reference,
    sequential,
    teachable,
    write,
    write_keras,
)

import finetune_keras as ftk
from finetune_keras import WeightsError, backbone, heads, select
from finetune_keras.backbones import files

layers = keras.layers


X = np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 3)).astype("float32")


def test_nested_models_as_teachable_machine_exports_them(tmp_path):
    path = write(tmp_path / "keras_model.h5", *teachable())
    same(files.load_model(path)(X, training=False), reference()(X, training=False), atol=1e-5)
    base = backbone(path)
    assert base.dropped == ("d2",)
    assert base.model.output_shape == (None, 6)
    model = ftk.build(base, heads.Classification(2), freeze=select.blocks(slice(0, 1)))
    names = {p.rsplit("/", 1)[0].rsplit("/", 1)[-1] for p in learners(model)}
    assert {"conv", "norm", "deep", "d1"} < names
    before = snapshot(model)
    model.fit(X, np.array([0, 1, 0]), verbose=0)
    changed = moved(before, model)
    assert not any("/conv/" in p for p in changed)
    assert any("/d1/" in p for p in changed)


def test_what_was_loaded_is_saved_again_for_keras_alone(tmp_path):
    base = backbone(write(tmp_path / "keras_model.h5", *teachable()))
    model = ftk.build(base, heads.Classification(2))
    model.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as archive:
        assert b"finetune_keras" not in archive.read("config.json")
    again = keras.models.load_model(tmp_path / "new.keras", compile=False)
    same(again(X, training=False), model(X, training=False), atol=1e-6)


@pytest.mark.parametrize("frozen_last", [True, False])
def test_weights_of_a_nested_model_go_where_their_names_say(tmp_path, frozen_last):
    """A frozen layer's weights stand last in most files, and may have any other's shape."""
    one, two = conv("one", ["i"], trainable=False), conv("two", ["one"])
    inner = functional("inner", [entry("i", 8, 8, 4), one, two], ["i"], ["two"], [["j"]])
    spec = functional("outer", [entry("j", 8, 8, 4), inner], ["j"], [["inner", 1, 0]])
    k1, b1, k2, b2 = draw(3, 3, 4, 4, seed=1), draw(4, seed=2), draw(3, 3, 4, 4, seed=3), draw(4)
    frozen = [("one", "kernel", k1), ("one", "bias", b1)]
    learning = [("two", "kernel", k2), ("two", "bias", b2)]
    weights = named(*(learning + frozen if frozen_last else frozen + learning))
    model = files.load_model(write(tmp_path / "m.h5", spec, {"inner": weights}))
    found = {u.path: value(u.variable) for u in ftk.graph.opened(model).units}
    np.testing.assert_array_equal(found["inner/one/kernel"], k1)
    np.testing.assert_array_equal(found["inner/two/kernel"], k2)
    assert not model.get_layer("inner").get_layer("one").trainable


def test_a_nested_model_that_is_called_twice_and_a_shared_layer(tmp_path):
    inner = functional(
        "inner", [entry("i", 4), dense("d", ["i"], units=4, use_bias=False)], ["i"], ["d"]
    )
    inner["inbound_nodes"] = [[["j", 0, 0, {}]], [["inner", 1, 0, {}]]]
    last = dense("last", [["inner", 2, 0, {}]], [["j", 0, 0, {}]], units=4, use_bias=False)
    spec = functional(
        "m",
        [entry("j", 4), inner, last, layer("Add", "sum", [["last", 0, 0, {}], ["last", 1, 0, {}]])],
        ["j"],
        ["sum"],
    )
    k, last = draw(4, 4, seed=1), draw(4, 4, seed=2)
    weights = {"inner": named(("d", "kernel", k)), "last": named(("last", "kernel", last))}
    model = files.load_model(write(tmp_path / "m.h5", spec, weights))
    x = draw(3, 4, seed=3)
    same(model(x), (x @ k @ k) @ last + x @ last, atol=1e-5)


def op(function, name, node, kind="TFOpLambda"):
    made = layer(kind, name, function=function)
    return {**made, "inbound_nodes": [node]}


def test_operations_of_tensorflow_become_those_of_keras(tmp_path):
    back = {
        "slice_spec": [{"class_name": "__ellipsis__"}, {"start": None, "stop": None, "step": -1}]
    }
    entries = [
        entry("i", 8, 8, 3),
        op("math.truediv", "tf.math.truediv", ["i", 0, 0, {"y": 127.5, "name": None}]),
        op("math.subtract", "tf.math.subtract", ["tf.math.truediv", 0, 0, {"y": 1.0}]),
        op("__operators__.getitem", "flip", ["tf.math.subtract", 0, 0, back], "SlicingOpLambda"),
        op("nn.bias_add", "bias", ["flip", 0, 0, {"bias": [1.0, 2.0, 3.0], "data_format": "NHWC"}]),
        op("concat", "cat", [["flip", 0, 0, {"axis": -1}], ["bias", 0, 0, {"axis": -1}]]),
        op("math.reduce_mean", "mean", ["cat", 0, 0, {"axis": [1, 2], "keepdims": False}]),
        op("math.multiply", "twice", ["_CONSTANT_VALUE", -1, 2.0, {"y": ["mean", 0, 0]}]),
        op("__operators__.add", "sum", ["twice", 0, 0, {"y": ["mean", 0, 0], "name": None}]),
        # A layer that bears the name that Keras gives to an operation.
        layer("Multiply", "multiply", [["sum", 0, 0, {}], ["mean", 0, 0, {}]]),
    ]
    model = files.load_model(
        write(tmp_path / "m.h5", functional("m", entries, ["i"], ["multiply"]), {})
    )
    x = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    flipped = (x / 127.5 - 1)[..., ::-1]
    mean = np.concatenate([flipped, flipped + np.arange(1, 4)], -1).mean((1, 2))
    same(model(x), 3 * mean * mean, atol=1e-5)
    model.save(tmp_path / "again.keras")
    same(keras.models.load_model(tmp_path / "again.keras")(x), 3 * mean * mean, atol=1e-5)


def test_names_with_slashes_and_a_model_that_is_a_list(tmp_path):
    spec = {
        "class_name": "Sequential",
        "config": [
            dense("block/one", units=4, batch_input_shape=[None, 5], use_bias=False),
            dense("block_one", units=2, use_bias=False),
        ],
    }
    a, b = draw(5, 4, seed=1), draw(4, 2, seed=2)
    weights = {
        "block/one": named(("block/one", "kernel", a)),
        "block_one": named(("block_one", "kernel", b)),
    }
    model = files.load_model(write(tmp_path / "m.h5", spec, weights, version="2.1.6"))
    x = draw(3, 5)
    same(model(x), x @ a @ b, atol=1e-5)
    assert [item.name for item in model.layers] == ["block_one", "block_one_1"]


def hard(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


def test_gates_and_activations_that_were_other_functions(tmp_path):
    """hard_sigmoid was steeper, and a GRU without ``reset_after`` was the older kind."""
    spec = sequential(
        "s",
        layer(
            "GRU", "gru", units=2, activation="tanh", recurrent_activation="hard_sigmoid",
            batch_input_shape=[None, 4, 3], time_major=False, implementation=1, unroll=False,
        ),
        layer("Dense", "d", units=2, activation="hard_sigmoid"),
    )  # fmt: skip
    k, r, b = draw(3, 6, seed=1, scale=2), draw(2, 6, seed=2, scale=2), draw(6, seed=3)
    d, db = draw(2, 2, seed=4, scale=3), draw(2, seed=5)
    weights = {
        "gru": {"gru/kernel:0": k, "gru/recurrent_kernel:0": r, "gru/bias:0": b},
        "d": named(("d", "kernel", d), ("d", "bias", db)),
    }
    model = files.load_model(write(tmp_path / "m.h5", spec, weights, version="2.2.4"))
    x = draw(5, 4, 3, seed=6, scale=1)
    h = np.zeros((5, 2))
    for t in range(4):
        a = x[:, t] @ k + b
        z, reset = hard(a[:, :2] + h @ r[:, :2]), hard(a[:, 2:4] + h @ r[:, 2:4])
        h = z * h + (1 - z) * np.tanh(a[:, 4:] + (reset * h) @ r[:, 4:])
    same(model(x), hard(h @ d + db), atol=1e-5)


def test_gates_of_an_lstm(tmp_path):
    """Three of its four parts are gates: input, forget and output, and not the candidate."""
    spec = sequential(
        "s",
        layer(
            "LSTM", "lstm", units=2, activation="tanh", recurrent_activation="hard_sigmoid",
            batch_input_shape=[None, 4, 3],
        ),
    )  # fmt: skip
    k, r, b = draw(3, 8, seed=1, scale=2), draw(2, 8, seed=2, scale=2), draw(8, seed=3)
    weights = {"lstm": {"lstm/kernel:0": k, "lstm/recurrent_kernel:0": r, "lstm/bias:0": b}}
    model = files.load_model(write(tmp_path / "m.h5", spec, weights, version="2.2.4"))
    x = draw(5, 4, 3, seed=6, scale=1)
    h = c = np.zeros((5, 2))
    for t in range(4):
        i, f, candidate, o = np.split(x[:, t] @ k + h @ r + b, 4, axis=1)
        c = hard(f) * c + hard(i) * np.tanh(candidate)
        h = hard(o) * np.tanh(c)
    same(model(x), h, atol=1e-5)


def test_a_model_in_time_distributed_and_initial_states(tmp_path):
    inner = sequential("inner", dense("d", units=4, batch_input_shape=[None, 3], use_bias=False))
    lstm = {"units": 4, "recurrent_activation": "sigmoid", "time_major": False}
    entries = [
        entry("i", 5, 3),
        layer("TimeDistributed", "each", ["i"], layer=inner),
        layer("LSTM", "first", ["each"], return_state=True, **lstm),
        layer(
            "LSTM", "second", [["each", 0, 0, {}], ["first", 0, 1, {}], ["first", 0, 2, {}]], **lstm
        ),
    ]
    cell = [draw(4, 16, seed=1), draw(4, 16, seed=2), draw(16, seed=3)]
    k = draw(3, 4, seed=4)
    names = ("kernel", "recurrent_kernel", "bias")
    weights = {
        "each": {"each/kernel:0": k},
        **{
            n: {f"{n}/lstm_cell/{w}:0": v for w, v in zip(names, cell, strict=True)}
            for n in ("first", "second")
        },
    }
    spec = functional("m", entries, ["i"], ["second"])
    model = files.load_model(write(tmp_path / "m.h5", spec, weights))
    x = draw(2, 5, 3, seed=6)
    first, second = layers.LSTM(4, return_state=True), layers.LSTM(4)
    inputs = keras.Input((5, 4))
    _, h, c = first(inputs)
    expected = keras.Model(inputs, second(inputs, initial_state=[h, c]))
    first.set_weights(cell)
    second.set_weights(cell)
    same(model(x), expected(x @ k), atol=1e-5)


@pytest.mark.parametrize("root", ["layers", "_layer_checkpoint_dependencies"])
def test_archives_of_tf_keras(tmp_path, root):
    spec, _ = teachable()
    inner = f"{root}/sequential/{root}/functional/{root}"
    groups = {
        f"{inner}/conv2d": ARRAYS["conv"],
        f"{inner}/batch_normalization": ARRAYS["norm"],
        f"{inner}/depthwise_conv2d": ARRAYS["deep"],
        f"{root}/sequential_1/{root}/dense": ARRAYS["d1"],
        f"{root}/sequential_1/{root}/dense_1": ARRAYS["d2"],
    }
    path = write_keras(tmp_path / "m.keras", spec, groups)
    same(files.load_model(path)(X, training=False), reference()(X, training=False), atol=1e-5)
    del groups[f"{root}/sequential_1/{root}/dense_1"]
    with pytest.raises(WeightsError, match="'d2'") as raised:
        files.load_model(write_keras(path, spec, groups))
    assert "\n" not in str(raised.value)


def test_files_of_keras_3_are_left_to_keras(tmp_path):
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(4)])
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2)])
    x = draw(3, 4)
    for suffix in (".h5", ".keras"):
        model.save(tmp_path / f"m{suffix}")
        same(files.load_model(tmp_path / f"m{suffix}")(x), model(x), atol=1e-6)


class Own(layers.Layer):
    def call(self, x):
        return 2 * x


def test_a_class_of_the_users_own(tmp_path):
    spec = functional("m", [entry("i", 4), layer("mine>Own", "own", ["i"])], ["i"], ["own"])
    path = write(tmp_path / "m.h5", spec, {})
    with pytest.raises(WeightsError, match=r"register_keras_serializable\('mine'\)"):
        backbone(path)
    x = draw(2, 4)
    with keras.saving.custom_object_scope({"mine>Own": Own}):
        same(files.load_model(path)(x), 2 * x, atol=1e-6)


def one(item, *shape):
    shape = shape or (8, 4)
    return functional("m", [entry("i", *shape), {**item, "inbound_nodes": [[["i", 0, 0, {}]]]}],
                      ["i"], [item["name"]])  # fmt: skip


def lambda_layer():
    code = {"function": ["4wEAAAAA", None, None], "function_type": "lambda"}
    return layer("Lambda", "twice", **code)


@pytest.mark.parametrize(
    ("spec", "weights", "message"),
    [
        (one(lambda_layer()), {}, "'twice' is a Lambda: it runs Python code that is in the file"),
        (one(layer("Mine", "x")), {}, "a class that Keras 3 has not, 'Mine'.*custom_object_scope"),
        (one(layer("LSTM", "x", units=2, time_major=True)), {}, "time_major=True, which Keras 3"),
        (
            one(layer("LSTM", "x", units=2, activation="hard_sigmoid")),
            {},
            "'x' has activation='hard_sigmoid' inside it",
        ),
        (
            one(
                layer(
                    "TimeDistributed",
                    "x",
                    layer=dense("inner")
                    | {"config": {"name": "inner", "units": 2, "activation": "hard_sigmoid"}},
                )
            ),
            {},
            "'inner' has activation='hard_sigmoid' inside it",
        ),
        (one(layer("LocallyConnected1D", "x", filters=2)), {}, "no locally connected layers"),
        (one(layer("CuDNNGRU", "x", units=2)), {}, "GRU.reset_after=True"),
        (one(op("signal.fft", "x", [])), {}, r"calls tf\.signal\.fft"),
        (
            one(op("math.reduce_mean", "x", [])),
            {"x": {"x/k:0": draw(2)}},
            "'x', which has none",
        ),
        (one(dense("x")), {}, "no weights for its layer 'x'"),
        (one(dense("x")), {"y": {"y/k:0": draw(2)}}, "a layer 'y' that its config has not"),
        (one(dense("x")), {"x": {"x/kernel:0": draw(4, 3)}}, "1 weights for the layer 'x'.*has 2"),
        (
            one(dense("x")),
            {"x": {"x/kernel:0": draw(3, 4), "x/bias:0": draw(3)}},
            r"'x/kernel:0' of shape \(3, 4\) for the layer 'x', which has \(4, 3\)",
        ),
        (sequential("s", dense("x")), {}, "saved before it had an input"),
        ({"class_name": "MyModel", "config": {"name": "m", "layers": []}}, {}, "'MyModel'"),
        ({"class_name": "Model"}, {}, "its config is not whole"),
        ([1], {}, "its config is not whole"),
        (functional("m", [entry("i", 4, ragged=True)], ["i"], ["i"]), {}, "'i' is ragged"),
        (functional("m", [entry("i", 4), dense("x", ["y"])], ["i"], ["x"]), {}, "'x' reads"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, spec, weights, message):
    path = write(tmp_path / "m.h5", copy.deepcopy(spec), weights)
    with pytest.raises(WeightsError, match=message) as raised:
        files.load_model(path)
    assert "\n" not in str(raised.value)
    assert "m.h5" in str(raised.value)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("model_weights", "a config and no weights"),
        ("model_weights/x", "lists a layer 'x' and has it not"),
        ("model_weights/x/x/bias:0", "lacks the weight 'x/bias:0'"),
    ],
)
def test_a_file_that_lacks_what_it_lists(tmp_path, lost, message):
    weights = {"x": {"x/kernel:0": draw(4, 3), "x/bias:0": draw(3)}}
    path = write(tmp_path / "m.h5", one(dense("x")), weights)
    assert files.load_model(path).count_params() == 15
    with h5py.File(path, "a") as file:
        del file[lost]
    with pytest.raises(WeightsError, match=message):
        files.load_model(path)


def test_a_file_does_not_reach_into_other_files(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = draw(4, 3)
    weights = {"x": {"x/kernel:0": draw(4, 3), "x/bias:0": draw(3)}}
    path = write(tmp_path / "m.h5", one(dense("x")), weights)
    with h5py.File(path, "a") as file:
        del file["model_weights/x/x/kernel:0"]
        file["model_weights/x/x/kernel:0"] = h5py.ExternalLink("secret.h5", "kernel")
    with pytest.raises(WeightsError, match="a link in place of 'x/kernel:0'"):
        files.load_model(path)


def mangled(value, rng, odds=0.03):
    """A copy with some of its parts lost, or in place of others."""
    if isinstance(value, dict):
        kept = {k: mangled(v, rng) for k, v in value.items() if rng.random() > odds}
        return kept if rng.random() > odds / 3 else list(kept)
    if isinstance(value, list):
        kept = [mangled(v, rng) for v in value if rng.random() > odds]
        return kept if rng.random() > odds / 3 else {"a": kept}
    return value if rng.random() > odds / 3 else rng.choice([None, -1, "x", True, 1e30])


SEEDS = [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 9))]


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_configs_give_a_model_or_one_line(tmp_path, seed):
    rng = np.random.default_rng(seed)
    spec, weights = teachable()
    refused = []
    for _ in range(25):
        path = write(tmp_path / "m.h5", mangled(spec, rng), weights)
        try:
            files.load_model(path)
        except WeightsError as e:
            refused.append(str(e))
    assert refused
    assert not [text for text in refused if "\n" in text or len(text) > 600]


def test_a_normalization_computes_with_what_it_adapted_to(tmp_path):
    item = layer("Normalization", "n", axis=[-1], batch_input_shape=[None, 3])
    mean, variance = draw(3, seed=1), np.abs(draw(3, seed=2)) + 1
    arrays = named(("n", "mean", mean), ("n", "variance", variance), ("n", "count", np.array(5)))
    model = files.load_model(write(tmp_path / "m.h5", sequential("s", item), {"n": arrays}))
    x = draw(4, 3, seed=3)
    same(model(x), (x - mean) / np.sqrt(variance), atol=1e-5)


def test_a_nested_model_that_was_frozen_is(tmp_path):
    inner = functional("inner", [entry("i", 8, 8, 4), conv("one", ["i"])], ["i"], ["one"], [["j"]])
    inner["config"]["trainable"] = False
    spec = functional("outer", [entry("j", 8, 8, 4), inner], ["j"], [["inner", 1, 0]])
    weights = named(("one", "kernel", draw(3, 3, 4, 4)), ("one", "bias", draw(4)))
    model = files.load_model(write(tmp_path / "m.h5", spec, {"inner": weights}))
    assert not model.get_layer("inner").trainable
    assert not model.trainable_variables


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kind", ["MaxPooling2D", "AveragePooling2D"])
def test_pooling_pads_as_it_did(tmp_path, kind, padding):
    pool = layer(kind, "p", pool_size=[2, 2], strides=[2, 2], padding=padding)
    spec = sequential("s", entry("x", 5, 5, 3), conv("conv"), pool)
    weights = {
        "conv": named(("conv", "kernel", ARRAYS["conv"][0]), ("conv", "bias", ARRAYS["conv"][1]))
    }
    model = ftk.backbone(write(tmp_path / "m.h5", spec, weights), preprocessing=None).model
    expected = keras.Sequential(
        [
            keras.Input((5, 5, 3)),
            layers.Conv2D(4, 3, padding="same"),
            getattr(layers, kind)(2, strides=2, padding=padding),
        ]
    )
    expected.set_weights(ARRAYS["conv"])
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype("float32")
    same(model(x), expected(x), atol=1e-6)
