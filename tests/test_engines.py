"""Engines: exact by Keras, and others only where they agree with it."""

import gc
import json
import sys
import weakref

import keras
import numpy as np
import pytest

from finetune_keras import _optional
from finetune_keras.cache import engines
from finetune_keras.cache.engines import choosing, exported

layers = keras.layers
backend = keras.backend.backend()

# OpenVINO cannot read what Keras exports from JAX, and ONNX from JAX takes packages of its own.
exports = pytest.mark.skipif(backend == "jax", reason="nothing exports from JAX")
openvino = [exports, pytest.mark.skipif(not _optional.installed("openvino"), reason="optional")]
exporter = {"tensorflow": "tf2onnx", "torch": "onnxscript"}.get(backend, "jax2onnx")
onnx = [
    exports,
    pytest.mark.skipif(
        not (_optional.installed("onnxruntime") and _optional.installed(exporter)),
        reason="optional",
    ),
]
INSTALLED = [
    pytest.param("openvino", marks=openvino),
    pytest.param("onnxruntime", marks=onnx),
]


def convolution() -> keras.Model:
    """Convolution, batch normalisation with statistics of its own, pooling; nested."""
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(6, 3, use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.Dropout(0.5)(x)
    inner = keras.Model(inputs, layers.MaxPooling2D()(x))
    outside = keras.Input((12, 12, 3), name="image")
    short = layers.AveragePooling2D(2)(layers.Conv2D(6, 3)(outside))
    x = layers.Add()([inner(layers.Rescaling(0.1)(outside)), short])
    model = keras.Model(outside, layers.GlobalAveragePooling2D()(x))
    rng = np.random.default_rng(1)
    for v in inner.weights:
        v.assign(rng.uniform(0.2, 1.5, v.shape))
    return model


def several() -> keras.Model:
    """A dict of inputs, integers first and not in the order of their names; more than ten
    outputs, of which one is an input.
    """
    b = keras.Input((4,), dtype="int32", name="b")
    a = keras.Input((4,), dtype="int32", name="a")
    image = keras.Input((3,), name="image")
    x = layers.Flatten()(layers.Embedding(9, 2)(b))
    y = layers.Flatten()(layers.Embedding(9, 2)(a))
    x = layers.Concatenate()([x, layers.Dense(4, activation="tanh")(y), image])
    outputs = {f"o{i}": layers.Dense(3 + i % 2)(x) for i in range(12)}
    return keras.Model({"b": b, "a": a, "image": image}, {**outputs, "mask": a})


def bert() -> keras.Model:
    import keras_hub

    return keras_hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=10,
    )


def masked() -> keras.Model:
    """A mask that travels on the tensors."""
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(ids)
    x = layers.MultiHeadAttention(2, 2)(x, x)
    return keras.Model(ids, layers.GlobalAveragePooling1D()(x))


MODELS = [convolution, several, bert, masked]


def probe(model, n: int = 4, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = []
    for t in model.inputs:
        shape = (n, *(d or 10 for d in t.shape[1:]))
        if t.dtype == "int32":
            high = 2 if "mask" in t.name or "segment" in t.name else 9
            ids = rng.integers(0, high, shape).astype("int32")
            ids[:, 0] = 1
            found.append(ids)
        else:
            found.append(rng.normal(size=shape).astype(t.dtype))
    return found


def by_keras(model, arrays) -> list[np.ndarray]:
    packed = keras.tree.pack_sequence_as(model.input, arrays)
    found = keras.tree.flatten(model(packed, training=False))
    return [np.array(keras.ops.convert_to_numpy(x)) for x in found]


@pytest.mark.parametrize("make", MODELS)
def test_keras_is_exact(make):
    model = make()
    chosen = engines.choose(model, probe(model))
    arrays = probe(model, seed=5)
    found = chosen.run(arrays)
    packed = keras.tree.pack_sequence_as(model.input, arrays)
    expected = keras.tree.flatten(model.predict_on_batch(packed))
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert chosen.record == engines.EngineRecord("keras", 0.0, None, ())


def test_keras_reads_the_weights_of_today():
    model = convolution()
    arrays = probe(model)
    chosen = engines.choose(model, arrays)
    before = chosen.run(arrays)[0]
    model.weights[0].assign(model.weights[0] * 2)
    assert np.abs(chosen.run(arrays)[0] - before).max() > 1e-3
    np.testing.assert_allclose(chosen.run(arrays)[0], by_keras(model, arrays)[0], rtol=1e-5)


def test_keras_keeps_half_precision():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, dtype="mixed_bfloat16")(x)
    inner = keras.Input(x.shape[1:])  # float32: the nested model casts what it is given
    nested = keras.Model(inner, layers.Conv2D(2, 3)(inner))
    model = keras.Model(inputs, [x, nested(x)])
    arrays = probe(model)
    found = engines.choose(model, arrays).run(arrays)
    assert [x.dtype.name for x in found] == ["bfloat16", "float32"]
    for a, b in zip(model.predict_on_batch(arrays[0]), found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_is_random_even_where_the_graph_says_training():
    inputs = keras.Input((20,))
    model = keras.Model(inputs, layers.Dropout(0.5)(inputs, training=True))
    arrays = probe(model)
    np.testing.assert_array_equal(engines.choose(model, arrays).run(arrays)[0], arrays[0])


def test_results_are_no_views_of_the_batch():
    model = several()
    arrays = probe(model)
    found = engines.choose(model, arrays).run(arrays)
    kept = [x.copy() for x in found]
    for a in arrays:
        a += 1
    for a, b in zip(kept, found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(backend != "torch", reason="compiled elsewhere")
def test_tensors_go_after_their_last_use():
    import torch

    alive, most = weakref.WeakSet(), 0

    class Watched(layers.Layer):
        def call(self, x):
            nonlocal most
            made = x + 1
            alive.add(made)
            most = max(most, len(alive))
            return made

    x = inputs = keras.Input((4,))
    for _ in range(4):
        x = Watched()(x)
    nested = keras.Model(inputs, x)
    x = outside = keras.Input((4,))
    for _ in range(4):
        x = Watched()(x)
    model = keras.Model(outside, nested(x))
    chosen = engines.choose(model, probe(model))
    gc.collect()
    alive.clear()
    most = 0
    chosen.run(probe(model))
    # A layer's result, what it read, and what the nested model was given.
    assert 0 < most <= 3
    most = 0
    with torch.no_grad():
        model(probe(model)[0])
    assert most == 8


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("make", MODELS)
def test_others_agree_and_leave_the_model_alone(name, make, tmp_path, monkeypatch, capfd):
    model = make()
    model(keras.tree.pack_sequence_as(model.input, probe(model)))
    arrays = probe(model, seed=5)
    expected = by_keras(model, arrays)
    before = {k: id(v) for k, v in vars(model).items()}
    flags = [m.training for m in model.modules()] if backend == "torch" else []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    capfd.readouterr()
    chosen = engines.choose(model, probe(model), name, tolerance=1e-5)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.glob("finetune_keras_*"))
    if backend == "torch":
        assert [m.training for m in model.modules()] == flags
        assert {k: id(v) for k, v in vars(model).items()} == before
    assert chosen.record.name == name
    assert chosen.record.error < 1e-5  # 0 where the processor adds up as Keras does
    assert chosen.record.examples_per_second > 0
    found = chosen.run(arrays)
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(expected, by_keras(model, arrays), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", INSTALLED)
def test_not_within_the_tolerance_is_an_error(name):
    model = convolution()
    with pytest.raises(ValueError, match=r"relative error of .*tolerance is 1e-12: choose 'keras'"):
        engines.choose(model, probe(model), name, tolerance=1e-12)


@pytest.mark.parametrize("name", INSTALLED)
def test_auto_tries_what_is_installed(name):
    model = convolution()
    record = engines.choose(model, probe(model), "auto", 1e-4).record
    tried = dict(record.tried)
    assert set(tried) == {"keras", "openvino", "openvino-bfloat16", "onnxruntime"}
    tested = name == "openvino" or "examples/s" not in tried["openvino"]
    told = "examples/s, relative error" if tested else "not tried, since OpenVINO agrees"
    assert told in tried[name]
    assert record.name in tried


@pytest.mark.parametrize("name", INSTALLED)
def test_what_is_installed_runs_by_its_name(name):
    model = convolution()
    record = engines.choose(model, probe(model), name, 1e-4).record
    assert record.name == name


@pytest.mark.parametrize("precision", [pytest.param("f32", marks=openvino)])
def test_batch_normalisation_is_folded(precision):
    model = convolution()
    with exported.Exports(model, probe(model)) as files:
        graph = exported.compiled(files, precision).get_runtime_model()
    kinds = [op.get_rt_info()["layerType"].astype(str) for op in graph.get_ops()]
    assert kinds.count("Convolution") == 2
    # Of elementwise operations only the scaling of the image is left, and the sum; from PyTorch
    # also one of scale, shift and ReLU, as Keras changes the layout before it.
    left = sum(kind in ("Eltwise", "Subgraph") for kind in kinds)
    assert left <= (2 if backend == "tensorflow" else 3), kinds


# --- choosing, with engines of our own ---


@pytest.fixture
def fakes(monkeypatch):
    """Engines that answer as they are told, with their speeds."""
    calls = []

    def install(speeds=(), **made):
        def maker(name, run):
            def make(exports):
                calls.append(name)
                if isinstance(run, Exception):
                    raise run
                return run

            return make

        monkeypatch.setattr(choosing, "_EXPORTED", {k: maker(k, r) for k, r in made.items()})
        monkeypatch.setattr(choosing, "NAMES", ("keras", "auto", *made))
        speeds = dict(speeds)
        functions = {id(r): k for k, r in made.items()}

        def seconds(run, arrays, best):
            cells = [c.cell_contents for c in run.__closure__ or ()]
            name = next((functions[id(c)] for c in cells if id(c) in functions), "keras")
            return speeds[name]

        monkeypatch.setattr(choosing, "_seconds", seconds)
        return calls

    return install


def doubled(arrays):
    return [arrays[0] * 2]


def off(arrays):
    return [arrays[0] * 2.1]


def nothing(arrays):
    return [arrays[0] * np.nan]


def double() -> keras.Model:
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Rescaling(2.0)(inputs))


def test_auto_takes_the_fastest_that_agrees(fakes):
    fakes(
        {"keras": 3, "right": 2, "wrong": 1, "broken": 1}, right=doubled, wrong=off, broken=nothing
    )
    model = double()
    chosen = engines.choose(model, probe(model), "auto")
    assert chosen.record.name == "right"
    assert chosen.record.examples_per_second == 2.0
    tried = dict(chosen.record.tried)
    assert tried["wrong"] == "relative error 0.05, above 0.01"
    assert tried["broken"] == "relative error inf, above 0.01"
    assert engines.choose(model, probe(model), "auto", 0.1).record.name == "wrong"


def test_auto_stays_with_keras_where_others_are_slower(fakes):
    fakes({"keras": 3, "right": 4}, right=doubled)
    model = double()
    chosen = engines.choose(model, probe(model), "auto")
    assert (chosen.record.name, chosen.record.error) == ("keras", 0.0)
    np.testing.assert_array_equal(chosen.run(probe(model))[0], 2 * probe(model)[0])


def test_auto_survives_what_fails(fakes):
    made = {"bad": RuntimeError("Check 'false' failed at x.cpp:151:\nmore"), "right": doubled}
    fakes({"keras": 3, "right": 2}, **made)
    model = double()
    record = engines.choose(model, probe(model), "auto").record
    assert record.name == "right"
    assert dict(record.tried)["bad"] == "failed: Check 'false' failed at x.cpp:151:"
    with pytest.raises(ValueError, match="'bad' cannot run this model: failed: Check"):
        engines.choose(model, probe(model), "bad")


def test_the_choice_is_kept_while_nothing_changes(fakes):
    calls = fakes({"keras": 3, "right": 2}, right=doubled)
    inputs = keras.Input((3,))
    dense = layers.Dense(3, kernel_initializer=lambda *a, **k: 2 * np.eye(3, dtype="float32"))
    model = keras.Model(inputs, dense(inputs))
    for _ in range(3):
        engines.choose(model, probe(model), "auto")
    assert calls == ["right"]
    engines.choose(model, probe(model, 5), "auto")  # another shape
    assert calls == ["right"] * 2
    engines.choose(model, probe(model, 5), "right")  # another question
    assert calls == ["right"] * 3
    dense.kernel.assign(3 * np.eye(3))
    assert engines.choose(model, probe(model, 5), "auto").record.name == "keras"
    assert calls == ["right"] * 4


def test_the_choice_does_not_keep_the_model(fakes):
    fakes({"keras": 3, "right": 4}, right=doubled)
    model = double()
    engines.choose(model, probe(model), "auto")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_what_is_not_installed_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    model = double()
    extra = {"openvino": "openvino", "onnxruntime": "onnx"}[name]
    with pytest.raises(ImportError, match=rf"pip install 'finetune_keras\[{extra}\]'"):
        engines.choose(model, probe(model), name)
    monkeypatch.setitem(sys.modules, "openvino", None)
    record = engines.choose(model, probe(model), "auto").record
    assert "not installed" in dict(record.tried)[name]


@pytest.mark.skipif(backend != "jax", reason="exports")
def test_jax_says_that_nothing_exports():
    model = double()
    with pytest.raises(ValueError, match="from JAX; choose 'keras'"):
        engines.choose(model, probe(model), "openvino")
    assert engines.choose(model, probe(model), "auto").record.name == "keras"


def test_a_name_that_does_not_exist_gives_the_nearest():
    model = double()
    with pytest.raises(ValueError, match="'open-vino'.*'openvino'"):
        engines.choose(model, probe(model), "open-vino")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ([], "0 arrays and the model 1 inputs"),
        ([np.zeros((4, 5), "float32")], r"\(4, 5\), and \(None, 3\) is expected"),
        ([np.zeros(3, "float32")], r"\(3,\), and \(None, 3\)"),
    ],
)
def test_a_probe_that_does_not_fit(arrays, match):
    with pytest.raises(ValueError, match=match):
        engines.choose(double(), arrays)


@pytest.mark.parametrize("tolerance", [0, -1, float("nan"), float("inf")])
def test_a_tolerance_is_positive(tolerance):
    model = double()
    with pytest.raises(ValueError, match="tolerance"):
        engines.choose(model, probe(model), "auto", tolerance)


def test_the_record_reads_and_travels():
    record = engines.EngineRecord("openvino", 2e-7, 40.0, (("keras", "20.0 examples/s, exact"),))
    assert str(record) == (
        "engine: openvino, relative error 2.0e-07\n  keras: 20.0 examples/s, exact"
    )
    assert json.loads(json.dumps(record.to_dict())) == {
        "name": "openvino",
        "error": 2e-7,
        "examples_per_second": 40.0,
        "tried": {"keras": "20.0 examples/s, exact"},
    }
