"""Depth of the architectures of both libraries and of users' own networks, without a table."""

import keras
import numpy as np
import pytest
import zoo
from conftest import moved, snapshot

from finetune_keras import backbone, blocks, build, describe, freeze, graph, heads, select, thaw

layers = keras.layers


def names(model):
    return [b.name for b in blocks.blocks(model)]


# Blocks, as the papers draw them: stem, residual blocks or encoder layers, what comes after.
HUB = {
    "ResNet": ["pool1_pool", *(f"stack{s}_block{b}_out" for s in (0, 1) for b in (0, 1))],
    "ResNet v2": 5,
    "ResNet-vd": 7,  # three convolutions in the stem
    "MobileNet": 10,
    "EfficientNet": 7,  # stem, 5 MBConv, top
    "DenseNet": 6,  # stem, 2 + 2 layers, a transition
    "ViT": ["dropout", "transformer_block_1", "transformer_block_2", "ln"],
    "DINOv2": ["embeddings", "layers_0", "layers_1", "layernorm"],
    "Swin": 6,  # patches, 2 + 2 layers, a merge of patches
    "BERT": [
        "embeddings_dropout",
        *(f"transformer_layer_{i}" for i in range(3)),
        "pooled_dense",
    ],
    "RoBERTa": ["embeddings_dropout", *(f"transformer_layer_{i}" for i in range(3))],
}


def _check(found, expected):
    assert (len(found) if isinstance(expected, int) else found) == expected


@pytest.mark.parametrize("name", HUB)
def test_blocks_of_keras_hub(name):
    model = zoo.KERAS_HUB[name]()
    _check(names(model), HUB[name])
    units = [id(u.variable) for b in blocks.blocks(model) for u in b.units]
    assert sorted(units) == sorted(id(w) for w in model.weights)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "T5",
            [
                "encoder_embedding_dropout",
                "transformer_encoder_layer_0",
                "transformer_encoder_layer_1",
                "encoder_output_dropout",
            ],
        ),
        (
            "Whisper",
            [
                "encoder_padder",
                "encoder_embeddings_dropout",
                "transformer_encoder_layer_0",
                "transformer_encoder_layer_1",
                "encoder_layer_norm",
            ],
        ),
    ],
)
def test_the_encoder_of_an_encoder_decoder(name, expected):
    whole = zoo.KERAS_HUB[name]()
    base = backbone(whole, cut_at="encoder_sequence_output")
    assert [b.name for b in base.blocks] == expected
    assert not any("decoder" in t.name for t in base.model.inputs)
    # Encoder and decoder are each walked for themselves, and the decoder is nearer the end.
    assert names(whole)[: len(expected) - 1] == expected[:-1]
    assert names(whole)[-3:-1] == [f"transformer_decoder_layer_{i}" for i in (0, 1)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mobilenet", 14),  # stem, 13 separable convolutions
        ("mobilenetv2", 19),  # stem, 17 inverted residuals, the last convolution
        ("mobilenetv3small", 13),
        ("efficientnetb0", 18),  # stem, 16 MBConv, top
        pytest.param(
            "nasnetmobile",
            17,  # stem, 2 + 12 normal and 2 reduction cells
            marks=pytest.mark.skipif(
                keras.backend.backend() == "torch", reason="Keras has no NASNet on PyTorch"
            ),
        ),
    ],
)
def test_the_factors_of_one_convolution_are_one_block_and_cells_are_blocks(name, count):
    base = backbone(name, weights=None, input_shape=(96, 96, 3))
    assert len(base.blocks) == count
    assert set(base.taps) >= {"S2", "S4", "S8", "S16", "S32"}


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("ResNet", {"S2": 32, "S4": 16, "S8": 8}),
        ("ResNet v2", {"S2": 32, "S4": 16, "S8": 8}),
        ("MobileNet", {"S2": 32, "S4": 16, "S8": 8, "S16": 4}),
        ("EfficientNet", {"S2": 32, "S4": 16, "S8": 8}),
        ("DenseNet", {"S2": 32, "S4": 16, "S8": 8}),
        ("ViT", {"S8": 17}),  # 16 patches and a class token
        ("DINOv2", {"S14": 17}),
        ("Swin", {"S4": 256, "S8": 64}),
        ("BERT", {}),
    ],
)
def test_taps_by_stride(name, taps):
    base = backbone(zoo.KERAS_HUB[name]())
    found = base.taps
    if found:
        assert keras.Model(base.model.inputs, found).output.keys() == found.keys()
    assert {stride: t.shape[1] for stride, t in found.items()} == taps


@pytest.mark.parametrize("name", ["ViT", "Swin", "T5", "BERT", "EfficientNet"])
def test_freeze_thaw_and_describe_hold_on_layers_inside_layers(name):
    cut = {"T5": "encoder_sequence_output", "BERT": "pooled_output"}.get(name)
    base = backbone(zoo.KERAS_HUB[name](), cut_at=cut)
    model = build(base, heads.Classification(2), learning_rate=1e-2)
    freeze(model, select.blocks(slice(0, -1)))
    last = {u.path for u in select.resolve(model, select.blocks(-1))}
    rng = np.random.default_rng(0)
    x = {
        t.name: rng.uniform(0, 2, (4, *(n or 6 for n in t.shape[1:]))).astype(t.dtype)
        if "mask" not in t.name
        else np.ones((4, 6), "int32")
        for t in model.inputs
    }
    x = x if len(x) > 1 else next(iter(x.values()))
    before = snapshot(model)
    model.fit(x, np.array([0, 1, 0, 1]), epochs=2, verbose=0)
    changed = moved(before, model)
    assert changed <= last | {p for p in before if p.startswith("ftk_head")}
    assert changed & last
    assert [r.state for r in describe(model).rows][-2:] == ["learning", "learning"]
    change = thaw(model, select.blocks(-2), norms=True)
    assert set(change.thawed) == {
        u.path for u in select.resolve(model, select.blocks(-2)) if u.learnable
    }


def test_block_names_find_their_block_also_where_two_stages_share_them():
    model = zoo.KERAS_HUB["Swin"]()
    found = blocks.blocks(model)
    for i, block in enumerate(found):
        before = {u.path for b in found[: i + 1] for u in b.units}
        chosen = {u.path for u in select.resolve(model, select.up_to(block.name))}
        assert chosen == before


def conv(x, name):
    x = layers.Conv2D(4, 3, padding="same", name=name)(x)
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))


def test_two_towers_are_walked_for_themselves_and_meet_at_the_end():
    image, text = keras.Input((8, 8, 3)), keras.Input((5,), dtype="int32")
    x = conv(conv(conv(image, "c1"), "c2"), "c3")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    y = layers.Embedding(9, 4, name="words")(text)
    y = layers.LSTM(4, name="lstm")(y)
    model = keras.Model([image, text], layers.Concatenate(name="cat")([x, y]))
    parts = [{u.path.split("/")[0] for u in b.units} for b in blocks.blocks(model)]
    assert parts == [{"c1", "c1_bn"}, {"c2", "c2_bn", "words"}, {"c3", "c3_bn", "lstm"}]


def test_a_shared_tower_counts_once():
    tower = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="t1"), layers.Dense(4, name="t2")], name="tower"
    )
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], layers.Subtract()([tower(a), tower(b)]))
    assert [[x.name for x in b.layers] for b in blocks.blocks(model)] == [["t1"], ["t2"]]


def test_an_output_on_the_way_does_not_hold_the_graph_together():
    inputs = keras.Input((8, 8, 3))
    x1 = conv(inputs, "c1")
    x2 = conv(x1, "c2")
    model = keras.Model(inputs, {"early": x1, "late": conv(x2, "c3")})
    assert names(model) == ["c1_relu", "c2_relu", "c3_relu"]


def unet():
    inputs = keras.Input((16, 16, 3))
    down1 = conv(inputs, "down1")
    down2 = conv(layers.MaxPooling2D()(down1), "down2")
    middle = conv(conv(layers.MaxPooling2D()(down2), "middle1"), "middle2")
    up2 = conv(layers.Concatenate()([layers.UpSampling2D()(middle), down2]), "up2")
    up1 = conv(layers.Concatenate(name="join")([layers.UpSampling2D()(up2), down1]), "up1")
    return keras.Model(inputs, layers.Conv2D(2, 1, activation="sigmoid", name="mask")(up1))


def test_a_connection_across_the_whole_net_makes_one_block_and_describe_says_so():
    model = unet()
    x = inputs = keras.Input((4,))
    x = first = layers.Dense(4, name="first")(x)
    for i in range(6):
        x = layers.Dense(4, name=f"d{i}")(x)
    across = keras.Model(inputs, layers.Add(name="sum")([x, first]))
    assert names(across) == ["first", "sum"]
    note = " ".join(describe(across).notes)
    assert "6 of 7 layers are one block, 'sum': 'sum' reads 'first' across them" in note
    assert not any("are one block" in n for n in describe(zoo.KERAS_HUB["ResNet"]()).notes)
    inside = select.resolve(across, select.after("d2"))
    assert {u.layer.name for u in inside} == {"d3", "d4", "d5"}
    assert len(blocks.blocks(model)) >= 3


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = layers.Dense(4, name="a")
        self.b = layers.Dense(2, name="b")

    def call(self, x):
        return self.b(self.a(x))


def test_a_subclassed_model_says_what_works():
    model = Subclassed()
    model(np.zeros((1, 3), "float32"))
    model.compile("sgd", "mse")
    note = " ".join(describe(model).notes)
    assert "subclassed" in note
    assert "select.named" in note
    freeze(model, select.named("a/"))
    before = snapshot(model)
    model.fit(np.ones((4, 3)), np.zeros((4, 2)), verbose=0)
    assert {p.rsplit("/", 2)[-2] for p in moved(before, model)} == {"b"}
    with pytest.raises(ValueError, match=r"subclassed model: choose by select.named"):
        freeze(model, select.up_to("a"))


class Chain(layers.Layer):
    """Calls blocks one after another; ``twist`` adds something of its own."""

    def __init__(self, twist=False, **kwargs):
        super().__init__(**kwargs)
        self.twist = twist
        self.parts = [Block(name=f"part{i}") for i in range(3)]

    def build(self, shape):
        for part in self.parts:
            part.build(shape)

    def call(self, x):
        first = x
        for part in self.parts:
            x = part(x)
        return x + first if self.twist else x


class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.a, self.b = layers.Dense(4, name="a"), layers.Dense(4, name="b")

    def build(self, shape):
        self.a.build(shape)
        self.b.build(shape)

    def call(self, x):
        return x + self.b(self.a(x))


def test_a_layer_that_chains_blocks_is_opened_and_computes_the_same():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Chain(name="chain")(inputs))
    assert names(model) == ["part0", "part1", "part2"]
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    again = keras.Model(inputs, graph.replay(model, inputs)[-1])
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_a_layer_that_does_more_than_chain_stays_one_block():
    inputs = keras.Input((4,))
    assert names(keras.Model(inputs, Chain(twist=True, name="whole")(inputs))) == ["whole"]


def test_layers_that_run_again_are_no_deeper_block():
    shared = Block(name="again")
    x = inputs = keras.Input((4,))
    x = layers.Dense(4, name="first")(x)
    for _ in range(3):
        x = shared(x)
    model = keras.Model(inputs, x)
    assert [[u.layer.name for u in b.units[::2]] for b in blocks.blocks(model)] == [
        ["first"],
        ["a", "b"],
    ]
    assert [b.index for b in blocks.blocks(model)] == [0, 1]
    assert {u.layer.name for u in select.resolve(model, select.blocks(-1))} == {"a", "b"}


@pytest.mark.parametrize("name", ["ViT", "DINOv3", "ALBERT"])
def test_each_name_of_a_block_is_one_that_selectors_take(name):
    base = backbone(zoo.KERAS_HUB[name](), cut_at="sequence_output" if name == "ALBERT" else None)
    before = set()
    for block in base.blocks:
        assert block.units
        before |= {u.path for u in block.units}
        assert {u.path for u in select.resolve(base.network, select.up_to(block.name))} == before


def test_describe_counts_what_stays_random_in_a_frozen_part():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dropout(0.1),
            layers.Dense(8, trainable=False),
            layers.Dropout(0.1),
            layers.Dense(8, trainable=False),
            layers.Dropout(0.1),
            layers.Dense(3),
        ]
    )
    told = "1 random layers inside the frozen part"
    assert any(note.startswith(told) for note in describe(model).notes)
    for layer in model.layers:
        layer.trainable = True
    assert not any("random" in note for note in describe(model).notes)
