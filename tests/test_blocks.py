import keras
import pytest
from conftest import chain, classifier, residual

from finetune_keras import backbone, blocks, describe, freeze, select, thaw

layers = keras.layers


def names(model):
    return [b.name for b in blocks.blocks(model)]


def test_stem_and_residual_blocks():
    assert names(residual()) == ["stem_relu", "block1_out", "block2_out"]


def test_nested_models_are_opened_and_the_head_left_out():
    assert names(classifier()) == ["stem_relu", "block1_out", "block2_out"]
    assert names(chain()) == ["a", "b"]


def test_blocks_share_out_every_weight_once():
    model = residual()
    found = [id(u.variable) for b in blocks.blocks(model) for u in b.units]
    assert sorted(found) == sorted(id(w) for w in model.weights)


def test_attributes_of_the_users_own_layers_say_nothing_here():
    class Own(layers.Layer):
        def __init__(self):
            super().__init__(name="own")
            self.stages = [layers.Dense(4, name="one"), layers.Dense(4, name="two")]
            self.note = ("x", 1)

        def call(self, x):
            return self.stages[1](self.stages[0](x))

    norm = layers.BatchNormalization(center=False, scale=False, name="norm")
    norm.fixed = True
    model = keras.Sequential([keras.Input((4,)), Own(), norm, layers.Dense(2, name="head")])
    assert "norm" in str(describe(model))
    freeze(model, select.everything())
    assert not norm.trainable
    thaw(model, select.named("norm"), norms=True)
    assert norm.trainable


def test_embeddings_side_by_side_are_one_block():
    tokens, segments = keras.Input((5,), dtype="int32"), keras.Input((5,), dtype="int32")
    x = layers.Add(name="sum")(
        [layers.Embedding(9, 4, name="token")(tokens), layers.Embedding(2, 4, name="seg")(segments)]
    )
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Add(name="res")([x, layers.Dense(4, name="mix")(x)])
    model = keras.Model([tokens, segments], x)
    assert names(model) == ["norm", "res"]


def test_a_residual_across_the_whole_net_is_one_block():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="in")(inputs)
    y = layers.Dense(4, name="mid")(x)
    y = layers.Dense(4, name="deep")(y)
    model = keras.Model(inputs, layers.Add(name="sum")([x, y]))
    assert names(model) == ["in", "sum"]


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet50", 17, "pool1_pool", "conv5_block3_out"),
        ("vgg16", 13, "block1_conv1", "block5_pool"),
        # a stem, 58 layers of the dense blocks, three transitions
        ("densenet121", 62, "pool1", "relu"),
        # a stem, 18 residual blocks, three steps down
        ("convnexttiny", 22, "convnext_tiny_stem_layernorm", None),
    ],
)
def test_depth_of_known_architectures(name, count, first, last):
    found = backbone(name, weights=None, input_shape=(64, 64, 3)).blocks
    assert len(found) == count
    assert found[0].name == first
    assert last is None or found[-1].name == last


def test_bert_is_embeddings_encoder_layers_and_pooler():
    keras_hub = pytest.importorskip("keras_hub")
    bert = keras_hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=3,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=12,
    )
    found = names(bert)
    assert found[1:] == [*(f"transformer_layer_{i}" for i in range(3)), "pooled_dense"]
    assert len(found) == 5
