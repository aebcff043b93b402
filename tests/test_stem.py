"""Stems for small images, read off the graph of any network."""

import zipfile

import keras
import numpy as np
import pytest
from conftest import chain, residual, slow_marks, snapshot, value

import finetune_keras as ftk
from finetune_keras import backbone, graph, heads, select
from finetune_keras.backbones import applications

layers = keras.layers

# How many times less the small stem shrinks the image.
GAINS = {
    "convnext": 4,
    "densenet": 4,
    "efficientnet": 2,
    "inception": 4,
    "mobilenet": 2,
    "nasnet": 2,
    "resnet": 4,
    "xception": 2,
}
FAMILIES = (
    "convnexttiny",
    "densenet121",
    "efficientnetb0",
    "efficientnetv2b0",
    "mobilenet",
    "mobilenetv2",
    "mobilenetv3small",
    "resnet50",
    "resnet50v2",
    "xception",
)
ALL = [
    pytest.param(name, marks=slow_marks(name, FAMILIES))
    for name in applications.names()
    if not name.startswith("vgg")
]


def photo(size=32, n=2):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype("float32")


def out(model, x):
    return value(model(x, training=False))


@pytest.mark.parametrize("name", ALL)
def test_each_family_shrinks_small_images_less(name):
    gain = next(g for family, g in GAINS.items() if family in name)
    size = 32
    if "ception" in name:
        size = 96 if name == "xception" else 160  # Keras takes no less than 71 and 75
    plain = backbone(name, weights=None, input_shape=(size, size, 3))
    config = plain.network.to_json()
    small = backbone(plain, stem="small")
    assert plain.network.to_json() == config
    coarsest = [int(list(base.taps)[-1][1:]) for base in (plain, small)]
    assert coarsest == [32, 32 // gain]
    if size == 32:
        assert plain.model.output_shape[1:3] == (1, 1)
        assert small.model.output_shape[1:3] == (gain, gain)
    assert small.model.output_shape[-1] == plain.model.output_shape[-1]
    assert np.isfinite(out(small.model, photo(size, 1))).all()
    shared = {id(u.variable) for u in graph.opened(plain.network).units}
    own = {u.path for u in graph.opened(small.network).units if id(u.variable) not in shared}
    assert len({p.rsplit("/", 1)[0] for p in own}) == 1  # one convolution


def resnet_hub(hub, **changed):
    config = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
        "image_shape": (32, 32, 3),
    }
    return hub.ResNetBackbone(**{**config, **changed})


def mobilenet_hub(hub):
    return hub.MobileNetBackbone(
        stackwise_expansion=[[8, 16]],
        stackwise_num_blocks=[2],
        stackwise_num_filters=[[8, 8]],
        stackwise_kernel_size=[[3, 3]],
        stackwise_num_strides=[[2, 1]],
        stackwise_se_ratio=[[0.25, None]],
        stackwise_activation=[["relu", "relu"]],
        stackwise_padding=[[1, 1]],
        output_num_filters=32,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=16,
        image_shape=(32, 32, 3),
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=16,
        squeeze_and_excite=0.5,
    )


def efficientnet_hub(hub):
    return hub.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0, 1.0],
        stackwise_depth_coefficients=[1.0, 1.0],
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 1],
        stackwise_input_filters=[8, 16],
        stackwise_output_filters=[16, 24],
        stackwise_expansion_ratios=[1, 4],
        stackwise_strides=[1, 2],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_block_types=["fused", "unfused"],
        min_depth=8,
        input_shape=(32, 32, 3),
    )


HUB = {
    "resnet": (resnet_hub, 4, True),
    "resnet_v2": (lambda hub: resnet_hub(hub, use_pre_activation=True), 4, True),
    "resnet_vd": (
        lambda hub: resnet_hub(
            hub,
            input_conv_filters=[8, 8, 16],
            input_conv_kernel_sizes=[3, 3, 3],
            block_type="basic_block_vd",
        ),
        4,
        False,
    ),
    "densenet": (
        lambda hub: hub.DenseNetBackbone(stackwise_num_repeats=[1, 1], image_shape=(32, 32, 3)),
        4,
        True,
    ),
    "mobilenet": (mobilenet_hub, 2, False),
    "efficientnet": (efficientnet_hub, 2, False),
}


@pytest.mark.parametrize("family", HUB)
def test_networks_of_keras_hub(family, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    make, gain, random = HUB[family]
    network = make(keras_hub.models)
    x = photo() / 255
    before = out(network, x)
    small = backbone(network, stem="small")
    assert small.model.output_shape[1] == gain * network.output_shape[1]
    assert len(small.loaded.random) == len(small.loaded.skipped) == int(random)
    np.testing.assert_array_equal(out(network, x), before)
    small.model.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras", compile=False)
    np.testing.assert_allclose(out(again, x), out(small.model, x), atol=1e-6)


def test_a_kernel_of_3x3_is_kept_and_sees_every_pixel():
    plain = backbone("mobilenetv2", weights=None, input_shape=(32, 32, 3), preprocessing=None)
    small = backbone(plain, stem="small")
    x = photo() / 127.5 - 1

    def first(base):
        return out(keras.Model(base.network.inputs, base.network.get_layer("Conv1").output), x)

    np.testing.assert_allclose(first(small)[:, 1::2, 1::2], first(plain), atol=1e-5)


def test_the_stem_of_resnet_is_new_and_the_record_says_so():
    network = keras.applications.ResNet50(include_top=False, weights=None)
    old = network.get_layer("conv1_conv")
    old.bias.assign(np.arange(64.0))
    small = backbone(network, stem="small", preprocessing="resnet50")
    new = small.network.get_layer("conv1_conv")
    assert new.kernel.shape == (3, 3, 3, 64)
    assert np.std(value(new.kernel)) == pytest.approx(np.sqrt(2 / 27), rel=0.1)  # He normal
    np.testing.assert_array_equal(value(new.bias), np.arange(64.0))
    assert small.loaded.random == small.loaded.skipped == ("conv1_conv/kernel",)
    assert len(small.loaded.loaded) == len(network.weights) - 1
    assert "317 loaded, 1 random ('conv1_conv/kernel')" in str(small.loaded)
    assert "stem='small'" in small.source
    assert "1 random ('conv1_conv/kernel')" in repr(small)
    for name in ("conv1_pad", "pool1_pad", "pool1_pool"):
        assert isinstance(small.network.get_layer(name), layers.Identity)


def test_a_new_kernel_learns_in_a_frozen_network_and_a_kept_one_does_not():
    for kernel, learns in ((5, True), (3, False)):
        inputs = keras.Input((16, 16, 3))
        x = layers.Conv2D(4, kernel, strides=2, name="conv")(inputs)
        network = keras.Model(inputs, layers.Conv2D(4, 3, name="next")(x))
        network.trainable = False
        small = backbone(network, stem="small")
        assert small.network.get_layer("conv").trainable is learns
        assert not small.network.get_layer("next").trainable
        assert not network.get_layer("conv").trainable


def test_weights_at_random_are_recorded():
    base = backbone("letters_resnet", weights=None)
    assert base.loaded.loaded == ()
    assert set(base.loaded.random) == set(snapshot(base.network))
    whole = backbone("letters_resnet")
    assert set(whole.loaded.loaded) == set(snapshot(whole.network))
    assert str(whole.loaded) == f"{len(whole.network.weights)} loaded"
    cut = backbone("letters_resnet", cut_at="stage1_block1_out")
    assert set(cut.loaded.loaded) == set(snapshot(cut.network))


def test_a_model_with_a_small_stem_trains_and_travels(tmp_path):
    base = backbone("mobilenetv2", weights=None, input_shape=(32, 32, 3), stem="small", alpha=0.35)
    model = ftk.build(base, heads.Classification(3), freeze=~select.up_to("Conv1"))
    before = snapshot(model)
    model.fit(photo(n=4), np.arange(4) % 3, verbose=0)
    moved = {p for p, v in snapshot(model).items() if not np.array_equal(v, before[p])}
    assert {p.split("/")[1] for p in moved} == {"Conv1"}
    model.save(tmp_path / "model.keras")
    assert b"finetune_keras" not in zipfile.ZipFile(tmp_path / "model.keras").read("config.json")
    for compiled in (False, True):
        again = keras.models.load_model(tmp_path / "model.keras", compile=compiled)
        np.testing.assert_allclose(out(again, photo()), out(model, photo()), atol=1e-5)
    assert "stem='small'" in ftk.record.read(model).origin


def test_a_copy_keeps_the_record():
    base = backbone(residual_strided(), stem="small")
    assert base.copy().loaded == base.loaded
    assert base.loaded.random == ("body/conv/kernel",)


def residual_strided():
    """The stem inside a nested model, the pooling after it."""
    body = keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Conv2D(8, 5, strides=2, name="conv")], name="body"
    )
    inputs = keras.Input((32, 32, 3))
    x = layers.MaxPooling2D(name="pool")(layers.ReLU()(body(inputs)))
    return keras.Model(inputs, layers.Add()([x, layers.Conv2D(8, 1)(x)]), name="own")


def test_a_stem_in_a_nested_model():
    network = residual_strided()
    small = backbone(network, stem="small")
    assert network.output_shape == (None, 7, 7, 8)
    assert small.model.output_shape == (None, 32, 32, 8)
    assert isinstance(small.network.get_layer("body"), keras.Sequential)


def text():
    ids = keras.Input((7,), dtype="int32")
    return keras.Model(ids, layers.Embedding(5, 4)(ids), name="text")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: backbone(residual(), stem="smal"), "unknown stem='smal'; did you mean 'small'"),
        (lambda: backbone(residual(), stem=3), "unknown stem=3"),
        (lambda: backbone(residual(), stem="small"), "'residual' has none .'stem_conv' has str"),
        (
            lambda: backbone("vgg16", weights=None, stem="small"),
            "'vgg16' has none .'block1_conv1' has stride 1.: leave stem= out",
        ),
        (lambda: backbone(chain(), stem="small"), r"takes one batch of images .*\(None, 6\)"),
        (lambda: backbone(text(), stem="small"), "'text' takes .None, 7."),
        (
            lambda: backbone("resnet50", weights=None, input_shape=(16, 16, 3), stem="small"),
            "'resnet50' takes images of at least 32x32; given .*16, 16, 3.*Resizing.*stem='small'",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
