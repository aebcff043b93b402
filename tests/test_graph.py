import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, residual

from finetune_keras import graph, parts, select

layers = keras.layers


def test_paths_are_unique_where_keras_paths_are_not():
    def part(name):
        inputs = keras.Input((4,))
        return keras.Model(inputs, layers.Dense(4, name="d")(inputs), name=name)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, part("two")(part("one")(inputs)))
    paths = [u.path for u in graph.opened(model).units]
    assert paths == ["one/d/kernel", "one/d/bias", "two/d/kernel", "two/d/bias"]


def test_every_weight_is_found_once():
    for model in (residual(), classifier(), chain()):
        units = graph.opened(model).units
        assert sorted(id(u.variable) for u in units) == sorted(id(w) for w in model.weights)


def test_shared_layer_and_nested_model_called_twice():
    shared = layers.Dense(4, name="shared")
    tower = keras.Sequential([keras.Input((4,)), shared], name="tower")
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], layers.Add()([tower(a), tower(b)]))
    seen = graph.opened(model)
    assert [c.path for c in seen.calls if c.units] == ["tower/shared", "tower/shared"]
    assert len(seen.units) == 2


def test_a_nested_model_called_with_a_dict_or_a_mask_is_wired_as_keras_wires_it():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    joined = layers.Add()([layers.Dense(2, name="da")(a), layers.Dense(2, name="db")(b)])
    inner = keras.Model([b, a], joined, name="inner")
    one, two = keras.Input((3,), name="one"), keras.Input((3,), name="two")
    given = {"a": layers.Dense(3, name="pre_a")(one), "b": layers.Dense(3, name="pre_b")(two)}
    model = keras.Model([one, two], inner(given))
    up = {u.path.split("/")[0] for u in select.resolve(model, select.up_to("da"))}
    assert up == {"pre_a", "inner"}
    mask = keras.Input((3,), dtype="bool", name="mask")
    sequence = keras.Sequential([keras.Input((3, 2)), layers.Dense(2, name="d")], name="seq")
    x = keras.Input((3, 2))
    masked = keras.Model([x, mask], sequence(x, mask=mask))
    assert {u.path for u in graph.opened(masked).units} == {"seq/d/kernel", "seq/d/bias"}


def test_layers_inside_layers_are_found():
    x = keras.Input((5, 8))
    y = layers.MultiHeadAttention(2, 4, name="mha")(x, x)
    paths = {u.path for u in graph.opened(keras.Model(x, y)).units}
    assert "mha/query/kernel" in paths
    assert "mha/attention_output/bias" in paths


def test_reading_a_model_changes_nothing():
    model = classifier()
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = images()
    model.fit(x, y, verbose=0)
    before, config = model.predict(x, verbose=0), model.to_json()
    optimizer = model.optimizer
    graph.opened(model)
    assert model.optimizer is optimizer
    assert model.to_json() == config
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)


def test_a_sequential_that_grows_is_read_again():
    model = chain()
    assert len(graph.opened(model).units) == 6
    model.add(layers.Dense(2, name="more"))
    assert [u.path for u in graph.opened(model).units][-2:] == ["more/kernel", "more/bias"]


@pytest.mark.parametrize("make", [residual, classifier, chain])
def test_replay_computes_the_same(make):
    model = make()
    fresh = keras.Input(batch_shape=model.inputs[0].shape)
    tensors = graph.replay(model, fresh)
    again = keras.Model(fresh, tensors[graph.opened(model).outputs[0]])
    x = np.random.default_rng(0).normal(size=(2, *model.inputs[0].shape[1:])).astype("float32")
    np.testing.assert_allclose(model.predict(x, verbose=0), again.predict(x, verbose=0), atol=1e-6)


def test_a_subclassed_model_is_closed_and_an_unbuilt_one_says_what_to_do():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.d = layers.Dense(2, name="d")

        def call(self, x):
            return self.d(x)

    model = Own()
    with pytest.raises(ValueError, match="not built: call it on a batch"):
        graph.opened(model)
    model(np.zeros((1, 3), "float32"))
    seen = graph.opened(model)
    assert seen.closed
    assert [u.path for u in seen.units] == ["d/kernel", "d/bias"]


def test_a_functional_subclass_with_its_own_call_is_not_opened():
    class Doubled(keras.Model):
        def call(self, inputs):
            return 2 * super().call(inputs)

    inputs = keras.Input((4,))
    model = Doubled(inputs, layers.Dense(2)(inputs))
    assert not graph.is_functional(model)


@pytest.mark.parametrize(
    ("make", "rule", "paths"),
    [
        (classifier, "nested model 'inner'", {"classes/kernel", "classes/bias"}),
        (chain, "last dense layer", {"c/kernel", "c/bias"}),
        (residual, "", set()),
    ],
)
def test_the_head_of_a_foreign_model(make, rule, paths):
    divided = parts.parts(make())
    assert rule in divided.rule
    assert {u.path for u in divided.head_units} == paths


def test_the_head_follows_the_pooling_of_a_flat_model():
    inner = residual()
    x = layers.GlobalAveragePooling2D(name="gap")(inner.output)
    x = layers.Dense(5, activation="relu", name="fc")(x)
    model = keras.Model(inner.input, layers.Dense(2, name="out")(x))
    assert {u.path.split("/")[0] for u in parts.parts(model).head_units} == {"fc", "out"}
