"""A model in two: equal together, sharing variables, the prefix all that is frozen."""

import contracts
import keras
import numpy as np
import pytest
import zoo
from conftest import chain, classifier, images, residual, same, value, vectors
from networks import NETWORKS

import finetune_keras as ftk
from finetune_keras import flags, heads, select
from finetune_keras.cache.split import divide

layers = keras.layers


def together(model, x, *, atol=1e-6):
    """Splits, and asserts that the two give what the model gives, in inference."""
    prefix, suffix = ftk.split(model)
    found = suffix(prefix(x, training=False), training=False)
    expected = model(x, training=False)
    keras.tree.map_structure(lambda a, b: same(a, b, atol=atol), found, expected)
    ids = [id(v) for v in model.trainable_variables]
    assert [id(v) for v in suffix.trainable_variables] == ids
    assert {id(v) for v in suffix.weights} >= set(ids)
    assert not {id(v) for v in prefix.weights} & set(ids)
    return prefix, suffix


def test_a_frozen_backbone_goes_whole_with_the_pooling_of_the_head():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3), freeze=select.backbone())
    prefix, suffix = together(model, images(4)[0])
    assert prefix.output_shape == (None, 8)
    assert {w.path for w in suffix.weights} == {w.path for w in model.trainable_variables}


def test_freezing_half_divides_the_nested_model():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3), freeze=select.backbone())
    ftk.thaw(model, select.after("block1_out"))
    prefix, suffix = together(model, images(4)[0])
    assert prefix.output_shape == (None, 16, 16, 8)
    assert [layer.name for layer in suffix.layers if layer.name == "residual"] == ["residual"]
    names = {u.path for u in ftk.graph.opened(prefix).units}
    assert "residual/block1_conv2/kernel" in names
    assert not any("block2" in n for n in names)


def test_a_residual_across_the_cut_makes_two_tensors():
    x = inputs = keras.Input((6,))
    x = layers.Dense(6, name="a", trainable=False)(x)
    y = layers.Dense(6, name="b", trainable=False)(x)
    y = layers.Dense(6, name="c")(y)
    model = keras.Model(inputs, layers.Add(name="sum")([x, y]), name="skips")
    prefix, _suffix = together(model, vectors(4)[0])
    assert [t.shape for t in prefix.outputs] == [(None, 6), (None, 6)]
    assert divide(model).paths == ("b", "a")


def test_nothing_frozen_gives_an_empty_prefix():
    x = np.ones((2, 6), "float32")
    prefix, _suffix = together(chain(), x)
    assert not prefix.weights
    same(prefix(x), x, atol=0)


def test_preprocessing_alone_is_no_prefix():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3))
    assert divide(model).frozen == 0
    assert divide(model).paths == (model.inputs[0].name,)


def test_all_but_the_head_is_the_largest_prefix():
    model = classifier()
    model.get_layer("inner").trainable = False
    prefix, suffix = together(model, images(4)[0])
    assert prefix.count_params() == model.get_layer("inner").count_params()
    # Dropout after the pooling is the head's own, and stays random.
    assert [layer.name for layer in suffix.layers][1:] == ["dropped", "classes"]


def test_dropout_between_the_last_frozen_and_the_first_learning_layer_stays_random():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, trainable=False),
            layers.Dropout(0.3, name="inside"),
            layers.Dense(8, trainable=False),
            layers.Dropout(0.3, name="after"),
            layers.Dense(3),
        ]
    )
    prefix, suffix = together(model, vectors(4)[0])
    assert "inside" in [x.name for x in prefix.layers]
    assert "after" in [x.name for x in suffix.layers]
    assert divide(model).random == ("inside",)


def test_a_batch_normalisation_that_learns_nothing_but_moves_is_no_part_of_the_prefix():
    norm = layers.BatchNormalization(scale=False, center=False, name="moves")
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, trainable=False), norm, layers.Dense(3)]
    )
    prefix, suffix = together(model, vectors(4)[0])
    assert "moves" in [x.name for x in suffix.layers]
    norm.trainable = False
    prefix, suffix = together(model, vectors(4)[0])
    assert "moves" in [x.name for x in prefix.layers]


def test_statistics_that_only_adapt_sets_do_not_hinder():
    x = vectors(8)[0]
    norm = layers.Normalization(name="adapted")
    norm.adapt(x)
    model = keras.Sequential(
        [keras.Input((6,)), norm, layers.Dense(8, trainable=False), layers.Dense(3, name="last")]
    )
    prefix, _ = together(model, x)
    assert "adapted" in [x.name for x in prefix.layers]


def test_several_inputs_and_outputs_keep_their_names_and_structure():
    a, b = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    left = layers.Dense(5, name="left", trainable=False)(a)
    right = layers.Dense(5, name="right")(b)
    both = layers.Concatenate(name="both")([left, right])
    outputs = {
        "one": layers.Dense(2, name="first")(both),
        "two": layers.Dense(3, name="second", trainable=False)(left),
    }
    model = keras.Model({"a": a, "b": b}, outputs, name="many")
    x = {"a": np.ones((2, 6), "float32"), "b": np.ones((2, 4), "float32")}
    _prefix, suffix = together(model, x)
    assert suffix.output_names == model.output_names
    assert set(suffix.output) == {"one", "two"}


def test_upsampling_at_the_end_is_left_to_the_suffix():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, strides=2, padding="same", name="conv", trainable=False),
            layers.UpSampling2D(4, name="up"),
            layers.Conv2D(2, 3, name="last"),
        ]
    )
    prefix, _ = together(model, np.ones((2, 8, 8, 3), "float32"), atol=1e-5)
    assert prefix.output_shape == (None, 4, 4, 4)


@pytest.mark.parametrize("nested", [False, True])
def test_an_implicit_mask_goes_along(nested):
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True, name="embedding")(tokens)
    x = layers.LSTM(4, return_sequences=True, name="low")(x)
    base = keras.Model(tokens, x, name="base")
    base.trainable = False
    x = base(tokens) if nested else x
    x = layers.LSTM(4, return_sequences=True, name="high")(x)
    model = keras.Model(tokens, layers.GlobalAveragePooling1D()(x))
    x = np.array([[3, 4, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    together(model, x)
    prefix, suffix = ftk.split(model)
    cut = suffix([value(t) for t in keras.tree.flatten(prefix(x))], training=False)
    same(cut, model(x, training=False), atol=1e-6)  # the mask is one of the arrays


def test_what_varies_features_is_whole_in_the_suffix():
    head = heads.Classification(3, feature_noise=0.1, feature_brightness=0.2)
    model = ftk.build(ftk.backbone(residual()), head, freeze=select.backbone())
    together(model, images(4)[0])
    assert divide(model).paths == ("ftk_head_pool",)


def test_a_layer_shared_by_both_sides_learns_in_both():
    shared = layers.Dense(6, name="shared")
    x = inputs = keras.Input((6,))
    x = layers.Dense(6, name="low", trainable=False)(x)
    model = keras.Model(inputs, layers.Dense(2, name="last")(shared(shared(x))))
    together(model, vectors(4)[0])


def test_names_may_clash_between_models_in_models():
    def tower(name):
        return keras.Sequential(
            [keras.Input((6,)), layers.Dense(6, name="d", trainable=False), layers.Dense(6)],
            name=name,
        )

    x = inputs = keras.Input((6,))
    x = tower("one")(x)
    model = keras.Model(inputs, tower("two")(x))
    together(model, vectors(4)[0])


def networks():
    """Where a graph is cut does not depend on the backend, so the larger ones are on one only."""
    few = keras.backend.backend() != "tensorflow"
    for network in NETWORKS.values():
        if not network.mark and not (few and network.kind not in ("this package", "your own")):
            yield network.name


@pytest.mark.parametrize("name", list(networks()))
def test_every_network_is_divided_where_it_is_frozen(name):
    trial = contracts.trial(NETWORKS[name])
    model = trial.model
    before = flags.Snapshot(model)
    try:
        together(model, trial.x, atol=1e-5)
        ftk.thaw(model, select.blocks(slice(len(trial.base.blocks) // 2, None)))
        together(model, trial.x, atol=1e-5)
    finally:
        before.restore()


def test_a_task_of_kerashub_is_a_model_like_any():
    import keras_hub

    backbone = zoo.KERAS_HUB["ResNet"]()
    task = keras_hub.models.ResNetImageClassifier(backbone=backbone, num_classes=3)
    backbone.trainable = False
    _prefix, suffix = together(task, np.ones((2, 64, 64, 3), "float32"), atol=1e-5)
    assert len(suffix.trainable_variables) == 2


def test_training_the_suffix_trains_the_model():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3), freeze=select.backbone())
    x, y = images(12)
    prefix, suffix = ftk.split(model)
    before = value(model.trainable_variables[0])
    suffix.compile("sgd", "sparse_categorical_crossentropy")
    suffix.fit(prefix.predict(x, verbose=0), y, verbose=0)
    assert not np.array_equal(before, value(model.trainable_variables[0]))
    same(model.predict(x, verbose=0), suffix.predict(prefix.predict(x, verbose=0)), atol=1e-5)


def test_what_cannot_be_divided_is_said():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    own = Own()
    own(np.ones((1, 3)))
    with pytest.raises(ValueError, match="Own is a subclass of keras.Model with a call"):
        ftk.split(own)
    model = chain()
    model.trainable = False
    with pytest.raises(ValueError, match=r"nothing learns .* finetune_keras.thaw"):
        ftk.split(model)
    with pytest.raises(TypeError, match="pass its .model"):
        ftk.split(ftk.backbone("letters_resnet", input_shape=(24, 24, 3)))
    with pytest.raises(ValueError, match="not built"):
        ftk.split(keras.Sequential([layers.Dense(2)]))


def test_the_model_stays_as_it_is():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3), freeze=select.backbone())
    x = images(4)[0]
    before, flags = value(model(x)), [v.trainable for v in model.variables]
    names = [layer.name for layer in model.layers]
    ftk.split(model)
    assert [v.trainable for v in model.variables] == flags
    assert [layer.name for layer in model.layers] == names
    np.testing.assert_array_equal(value(model(x)), before)
    assert model.get_layer("residual").get_layer("stem_conv").output.shape == (None, 16, 16, 8)
