"""Other layers in place of some: the rest is shared, and the first model stays as it was."""

import zipfile

import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, moved, residual, snapshot, value, vectors

import finetune_keras as ftk
from finetune_keras import SelectionError, WeightsError, graph, heads, select

layers = keras.layers


def out(model, x):
    return value(model(x, training=False))


def reloaded(model, tmp_path):
    """The model as Keras loads it from a file that names nothing of this library's."""
    path = tmp_path / "model.keras"
    model.save(path)
    assert b"finetune_keras" not in zipfile.ZipFile(path).read("config.json")
    return keras.models.load_model(path, compile=False)


def test_a_layer_is_replaced_and_the_rest_is_shared(tmp_path):
    old, (x, _) = residual(), images()
    before, weights, config = out(old, x), snapshot(old), old.to_json()
    new = graph.replace(old, {"stem_conv": layers.Conv2D(8, 5, padding="same", use_bias=False)})
    assert new.get_layer("stem_conv").kernel.shape == (5, 5, 3, 8)
    assert all(
        new.get_layer(layer.name) is layer
        for layer in old.layers
        if layer.name != "stem_conv" and not isinstance(layer, layers.InputLayer)
    )
    np.testing.assert_array_equal(out(old, x), before)
    assert old.to_json() == config
    assert {p: v.shape for p, v in snapshot(old).items()} == {
        p: v.shape for p, v in weights.items()
    }
    assert not np.allclose(out(new, x), before)
    np.testing.assert_allclose(out(reloaded(new, tmp_path), x), out(new, x), atol=1e-6)


def test_a_layer_that_does_the_same_gives_the_same():
    old, (x, _) = residual(), images()
    like = layers.Conv2D(8, 3, padding="same", use_bias=False)
    new = graph.replace(old, {"stem_conv": like})
    like.set_weights(old.get_layer("stem_conv").get_weights())
    np.testing.assert_array_equal(out(new, x), out(old, x))


def test_none_takes_a_layer_out(tmp_path):
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="a")(inputs)
    x = layers.ReLU(name="act")(x)
    old = keras.Model(inputs, layers.Dense(2, name="b")(x))
    new = graph.replace(old, {"act": None})
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    a, b = old.get_layer("a"), old.get_layer("b")
    np.testing.assert_allclose(out(new, x), value(b(a(x))), atol=1e-6)
    assert [layer.name for layer in new.layers][1:] == ["a", "act", "b"]
    np.testing.assert_allclose(out(reloaded(new, tmp_path), x), out(new, x), atol=1e-6)


def test_a_function_of_keras_ops_is_replaced_by_its_name():
    inputs = keras.Input((4,))
    old = keras.Model(inputs, keras.ops.add(inputs, 1.0) * 2.0)
    name = next(s.op.name for s in graph.tape(old).steps if type(s.op).__name__ == "Add")
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(out(graph.replace(old, {name: None}), x), 2 * x)
    np.testing.assert_allclose(out(graph.replace(old, {name: layers.Rescaling(3.0)}), x), 6 * x)


@pytest.mark.parametrize("name", ["stem_conv", "inner/stem_conv"])
def test_a_nested_model_is_made_again_under_its_name(name, tmp_path):
    old, (x, _) = classifier(), images()
    before = out(old, x)
    new = graph.replace(old, {name: layers.Conv2D(8, 1, strides=2)})
    inner, was = new.get_layer("inner"), old.get_layer("inner")
    assert inner is not was
    assert inner.get_layer("block1_conv1") is was.get_layer("block1_conv1")
    assert new.get_layer("classes") is old.get_layer("classes")
    assert inner.output_shape == (None, 4, 4, 8)
    np.testing.assert_array_equal(out(old, x), before)
    np.testing.assert_allclose(out(reloaded(new, tmp_path), x), out(new, x), atol=1e-6)
    chosen = select.resolve(new, select.up_to("inner/stem_conv"))
    assert [u.path for u in chosen] == ["inner/stem_conv/kernel", "inner/stem_conv/bias"]


def test_a_nested_model_that_gets_another_shape_is_made_again():
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(2, 3, name="c")], name="inner")
    inputs = keras.Input((16, 16, 3))
    old = keras.Model(inputs, inner(layers.Conv2D(4, 2, strides=2, name="down")(inputs)))
    new = graph.replace(old, {"down": layers.Conv2D(4, 1)})
    assert new.output_shape == (None, 14, 14, 2)
    assert new.get_layer("inner").get_layer("c") is inner.get_layer("c")
    assert old.output_shape == (None, 6, 6, 2)


def test_a_nested_model_that_is_called_twice_stays_one():
    inner = chain("tower")
    a, b = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    old = keras.Model([a, b], layers.Subtract()([inner(a), inner(b)]))
    new = graph.replace(old, {"tower/b": layers.Dense(8, name="mine")})
    assert [x.name for x in new.layers].count("tower") == 1
    x, _ = vectors(4)
    np.testing.assert_allclose(out(new, [x, x]), 0, atol=1e-6)


def test_one_model_in_two_others_is_replaced_where_the_path_says():
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="d")], name="inner")
    one = keras.Sequential([keras.Input((2,)), inner], name="one")
    two = keras.Sequential([keras.Input((2,)), inner], name="two")
    old = keras.Sequential([keras.Input((2,)), one, two])
    new = graph.replace(old, {"one/inner/d": layers.Dense(2), "two/inner/d": None})
    assert isinstance(new.get_layer("one").layers[0].layers[0], layers.Dense)
    assert isinstance(new.get_layer("two").layers[0].layers[0], layers.Identity)
    kept = graph.replace(old, {"one/inner/d": None})
    assert kept.get_layer("two") is two
    assert len(kept.weights) == 2


def test_a_sequential_model_stays_one(tmp_path):
    old, (x, _) = chain(), vectors(4)
    new = graph.replace(old, {"b": None, "c": layers.Dense(5)})
    assert isinstance(new, keras.Sequential)
    assert [x.name for x in new.layers] == ["a", "b", "c"]
    assert new.get_layer("a") is old.get_layer("a")
    assert new.output_shape == (None, 5)
    assert old.output_shape == (None, 3)
    np.testing.assert_allclose(out(reloaded(new, tmp_path), x), out(new, x), atol=1e-6)


def test_structures_of_inputs_and_outputs_stay():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    x = layers.Dense(2, name="d")(layers.Add(name="sum")([a, b]))
    old = keras.Model({"a": a, "b": b}, {"y": x, "z": [x, layers.ReLU(name="r")(x)]})
    new = graph.replace(old, {"sum": layers.Multiply()})
    data = {"a": np.ones((2, 3), "float32"), "b": np.zeros((2, 3), "float32")}
    found = new(data)
    np.testing.assert_allclose(value(found["y"]), np.zeros((2, 2)))  # the bias is zero
    assert len(found["z"]) == 2


def test_a_compiled_and_trained_model_can_be_operated_on():
    old, (x, y) = classifier(), images()
    old.compile("adam", loss=lambda a, b: keras.losses.sparse_categorical_crossentropy(a, b))
    old.fit(x, y, verbose=0)
    steps = int(old.optimizer.iterations)
    new = graph.replace(old, {"dropped": None})
    assert not new.compiled
    assert int(old.optimizer.iterations) == steps
    np.testing.assert_allclose(out(new, x), out(old, x), atol=1e-6)
    old.fit(x, y, verbose=0)


def test_the_result_is_a_backbone_that_trains():
    x, y = images()
    body = graph.replace(residual(), {"stem_conv": layers.Conv2D(8, 1, name="other")})
    model = ftk.build(body, heads.Classification(3), freeze=~select.up_to("stem_conv"))
    before = snapshot(model)
    model.fit(x, y, verbose=0)
    assert moved(before, model) == {"residual/stem_conv/kernel", "residual/stem_conv/bias"}


def test_flags_of_what_is_shared_stay():
    old = residual()
    old.get_layer("block1_conv1").trainable = False
    new = graph.replace(old, {"stem_conv": layers.Conv2D(8, 1)})
    assert not new.get_layer("block1_conv1").trainable
    assert new.get_layer("block1_conv2").trainable


def test_names_of_new_layers():
    used = layers.ReLU(name="mine")
    used(keras.Input((2,)))
    free = layers.ReLU(name="mine_too")
    new = graph.replace(residual(), {"stem_relu": used, "block1_relu": free})
    assert new.get_layer("mine") is used  # another graph knows it by this name
    assert new.get_layer("block1_relu") is free


def two_of_a_name():
    inputs = keras.Input((6,))
    return keras.Model(inputs, chain("other")(layers.Dense(6, name="a")(inputs)), name="two")


def held():
    inputs = keras.Input((5, 4))
    x = layers.MultiHeadAttention(2, 2, name="mha")(inputs, inputs)
    return keras.Model(inputs, layers.Bidirectional(layers.GRU(3, name="gru"), name="both")(x))


def normed():
    inputs = keras.Input((6,))
    x = layers.Dense(4, name="d")(inputs)
    return keras.Model(inputs, layers.LayerNormalization(name="ln")(x), name="normed")


def clashing():
    used = layers.ReLU(name="stem_bn")
    used(keras.Input((2,)))
    return used


@pytest.mark.parametrize(
    ("make", "changes", "error", "message"),
    [
        (residual, {"stem_con": None}, SelectionError, "no layer 'stem_con'.*'stem_conv'"),
        (classifier, {"inner/stem": None}, SelectionError, "no layer 'inner/stem'.*'stem_conv'"),
        (two_of_a_name, {"other/x": None}, SelectionError, "no layer 'other/x'"),
        (held, {"both/gru": None}, SelectionError, "what 'both' holds cannot be replaced singly"),
        (classifier, {"inner": None, "stem_conv": None}, SelectionError, "one is in the other"),
        (residual, {"stem_bn": 3}, TypeError, "layer or None in the place of 'stem_bn'; given 3"),
        (residual, {}, TypeError, "one name at least; given {}"),
        (residual, ["stem_bn"], TypeError, "given .'stem_bn'."),
        (residual, {3: None}, SelectionError, "given 3"),
        (residual, {"block1_add": None}, ValueError, "'block1_add' takes 2 tensors"),
        (residual, {"stem_relu": clashing()}, ValueError, "would be named 'stem_bn'"),
        (
            residual,
            {"stem_conv": layers.Conv2D(4, 1)},
            WeightsError,
            r"'stem_bn' gets \(None, 16, 16, 4\) and has weights for \(None, 16, 16, 8\)",
        ),
        (
            normed,
            {"d": layers.Dense(3)},
            WeightsError,
            r"'ln' gets \(None, 3\) and has weights for \(None, 4\)",
        ),
        (
            residual,
            {"block1_conv2": layers.Conv2D(8, 3)},
            ValueError,
            r"'block1_add' does not take \(None, 16, 16, 8\) and \(None, 14, 14, 8\)",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(make, changes, error, message):
    model = make()
    config = model.to_json()
    new = [x for x in (changes.values() if isinstance(changes, dict) else ()) if x]
    names = [getattr(layer, "name", None) for layer in new]
    with pytest.raises(error, match=message) as raised:
        graph.replace(model, changes)
    assert "\n" not in str(raised.value)
    assert model.to_json() == config
    assert [getattr(layer, "name", None) for layer in new] == names


def test_an_ambiguous_name_lists_the_paths():
    model = keras.Sequential([keras.Input((6,)), chain("one"), layers.Dense(6), chain("two")])
    with pytest.raises(SelectionError, match="'a' is ambiguous: give one of 'one/a', 'two/a'"):
        graph.replace(model, {"a": None})
    new = graph.replace(model, {"two/a": None, "two/b": layers.Dense(8)})
    assert new.get_layer("one") is model.get_layer("one")


def test_a_model_without_a_graph_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(SelectionError, match="subclassed"):
        graph.replace(Own(), {"a": None})


def test_public_names_of_graph_are_all_there():
    assert ftk.graph is graph
    assert {"opened", "replace", "ancestors", "descendants"} <= set(graph.__all__)
