"""Pretrained weights on grey, deeper and multispectral images."""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import chain, residual, slow_marks, snapshot, value

import finetune_keras as ftk
from finetune_keras import WeightsError, backbone, heads, select
from finetune_keras.backbones import applications
from finetune_keras.backbones.channels import adapt_kernel

layers = keras.layers

# Families that scale all channels alike, and such that do not (Caffe's means, ImageNet's
# deviations): these lose a little, since the values of the channels are averaged.
ALIKE = ("mobilenet", "mobilenetv2", "mobilenetv3small", "resnet50v2", "efficientnetv2s")
APART = ("resnet50", "densenet121", "convnexttiny", "efficientnetb0", "efficientnetv2b0")
FAST = (*ALIKE[:-1], *APART)
ALL = [pytest.param(name, marks=slow_marks(name, FAST)) for name in applications.names()]


def photo(channels, size=32, n=2):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, channels)).astype("float32")


def out(model, x):
    return value(model(x, training=False))


def as_if_pretrained(name, size=32):
    """Random weights that count as pretrained."""
    base = backbone(name, weights=None, input_shape=(size, size, 3))
    rng = np.random.default_rng(1)
    for layer in base.network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_variance.shape))
        if isinstance(layer, layers.Normalization) and layer.weights:
            for variable, v in zip(
                layer.weights, [[0.485, 0.456, 0.406], [0.23, 0.22, 0.225], 1], strict=True
            ):
                variable.assign(v)
            layer.finalize_state()
    return dataclasses.replace(base, pretrained=True)


def test_kernels_keep_their_sums():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4))
    np.testing.assert_allclose(adapt_kernel(kernel, 1), kernel.sum(2, keepdims=True))
    five = adapt_kernel(kernel, 5)
    np.testing.assert_allclose(five, kernel[:, :, [0, 1, 2, 0, 1]] * 3 / 5)
    np.testing.assert_allclose(adapt_kernel(kernel, 6).sum(2), kernel.sum(2))
    np.testing.assert_allclose(adapt_kernel(kernel[:, :, :1], 3).sum(2), kernel[:, :, 0])


@pytest.mark.parametrize("name", ALL)
def test_a_grey_image_gives_what_it_gives_in_colour(name):
    size = 80 if name in ("xception", "inceptionv3", "inceptionresnetv2") else 32
    colour = as_if_pretrained(name, size)
    grey = backbone(colour, in_channels=1)
    x = photo(1, size)
    expected = out(colour.model, np.repeat(x, 3, -1))
    found = out(grey.model, x)
    assert grey.model.input_shape == (None, size, size, 1)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    if name in ALIKE:
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    four = backbone(colour, in_channels=4)
    deep = out(four.model, photo(3, size)[..., [0, 1, 2, 0]])
    assert np.isfinite(deep).all()
    assert 0.5 < deep.std() / expected.std() < 2
    assert grey.loaded.adapted == four.loaded.adapted != ()
    assert not grey.loaded.random


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_letters(channels):
    colour = backbone("letters_resnet", input_shape=(16, 16, 3))
    base = backbone("letters_resnet", input_shape=(16, 16, channels), in_channels=channels)
    x = photo(3 if channels == 6 else 1, 16)
    repeated = x if channels == 6 else np.repeat(x, 3, -1)
    mine = np.tile(x, channels // x.shape[-1])
    if channels in (1, 6):  # whole rounds of the kernel's channels: exactly the same
        np.testing.assert_allclose(out(base.model, mine), out(colour.model, repeated), atol=1e-4)
    else:
        ratio = out(base.model, mine).std() / out(colour.model, repeated).std()
        assert 0.7 < ratio < 1.4
    assert base.loaded.adapted == ("stem_conv/kernel",)
    assert f"in_channels={channels}" in base.source
    assert "1 adapted ('stem_conv/kernel')" in repr(base)


def linear(name="linear"):
    """A network in which the order of the channels shows."""
    inputs = keras.Input((4, 4, 3))
    kernel = np.arange(3.0).reshape(1, 1, 3, 1)
    conv = layers.Conv2D(1, 1, name="conv")
    network = keras.Model(inputs, conv(inputs), name=name)
    conv.set_weights([kernel, np.zeros(1)])
    return network


@pytest.mark.parametrize("inside", [False, True])
def test_reversed_channels_are_back_in_order(inside):
    """Red in the fourth channel counts as red in the first, though the weights are for BGR."""
    colour = backbone(linear(), preprocessing="resnet50")
    if inside:
        colour = backbone(colour.model)
    six = backbone(colour, in_channels=6)
    a, b = photo(3, 4, 1), photo(3, 4, 2)[1:]
    difference = out(colour.model, a) - out(colour.model, b)  # free of what is subtracted
    assert np.abs(difference).max() > 1
    found = out(six.model, np.tile(a, 2)) - out(six.model, np.tile(b, 2))
    np.testing.assert_allclose(found, difference, rtol=1e-4, atol=1e-3)


def test_what_scales_each_channel_is_averaged():
    inputs = keras.Input((4, 4, 3))
    x = layers.Rescaling([1.0, 2.0, 3.0], [0.0, 3.0, 6.0])(inputs)
    x = layers.Normalization(mean=[0.0, 1.0, 2.0], variance=[1.0, 4.0, 7.0])(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.DepthwiseConv2D(1, name="dw", use_bias=False)(x)
    network = keras.Model(inputs, layers.Conv2D(1, 1, name="conv", use_bias=False)(x))
    network.get_layer("bn").moving_mean.assign([0.0, 1.0, 2.0])
    network.get_layer("dw").kernel.assign(np.array([1.0, 2.0, 6.0]).reshape(1, 1, 3, 1))
    network.get_layer("conv").kernel.assign(np.array([1.0, 1.0, 2.0]).reshape(1, 1, 3, 1))
    before = snapshot(network)
    base = backbone(network, in_channels=1)
    x = photo(1, 4)
    expected = 4 * 3 * (((2 * x + 3 - 1) / 2 - 1) / np.sqrt(1 + 1e-3))
    np.testing.assert_allclose(out(base.model, x), expected, rtol=1e-4)
    assert base.loaded.adapted == (
        *(f"bn/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")),
        "dw/kernel",
        "conv/kernel",
    )
    after = snapshot(network)
    assert all(np.array_equal(after[p], before[p]) for p in before)


def test_layers_of_the_users_own_preprocessing_are_averaged():
    steps = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 1.0])
    base = backbone(linear(), preprocessing=steps, in_channels=1)
    x = photo(1, 4)
    np.testing.assert_allclose(out(base.model, x), 3 * (x - 2), rtol=1e-5)


def test_every_convolution_that_reads_the_image_is_adapted():
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(2, 3, padding="same", name="a")(inputs)
    b = layers.Conv2D(2, 1, name="b")(layers.ZeroPadding2D(0)(inputs))
    network = keras.Model(inputs, layers.Conv2D(2, 1, name="c")(layers.Add()([a, b])))
    base = backbone(network, in_channels=1)
    assert base.loaded.adapted == ("a/kernel", "b/kernel")
    x = photo(1, 8)
    np.testing.assert_allclose(
        out(base.model, x), out(network, np.repeat(x, 3, -1)), rtol=1e-4, atol=1e-2
    )


def test_a_nested_network_of_ones_own_trains_and_travels(tmp_path):
    inner = residual("inner")
    inputs = keras.Input((16, 16, 3))
    network = keras.Model(inputs, inner(layers.Rescaling(1 / 255)(inputs)), name="mine")
    base = backbone(network, in_channels=2)
    assert base.loaded.adapted == ("inner/stem_conv/kernel",)
    model = ftk.build(base, heads.Classification(3), freeze=~select.named("stem_conv"))
    before = snapshot(model)
    x = photo(2, 16, 6)
    model.fit(x, np.arange(6) % 3, verbose=0)
    moved = {p for p, v in snapshot(model).items() if not np.array_equal(v, before[p])}
    assert moved == {"mine/inner/stem_conv/kernel"}
    assert inner.input_shape == (None, 16, 16, 3)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(out(again, x), out(model, x), atol=1e-5)
    assert ftk.record.read(model).origin.endswith("in_channels=2")


def test_networks_of_keras_hub():
    hub = pytest.importorskip("keras_hub").models
    network = hub.DenseNetBackbone(stackwise_num_repeats=[1, 1], image_shape=(32, 32, 3))
    base = backbone(network, in_channels=1, stem="small")
    assert base.model.input_shape == (None, 32, 32, 1)
    assert base.loaded.random == base.loaded.skipped == ("conv1_conv/kernel",)
    assert base.loaded.adapted == ()
    x = photo(1)
    np.testing.assert_allclose(
        out(backbone(network, in_channels=1).model, x),
        out(network, np.repeat(x, 3, -1)),
        rtol=1e-3,
        atol=1e-3,
    )


def test_random_weights_are_made_for_the_channels_and_not_copied():
    base = backbone("resnet50", weights=None, in_channels=6)
    kernel = value(base.network.get_layer("conv1_conv").kernel)
    assert kernel.shape == (7, 7, 6, 64)
    assert not np.allclose(kernel[:, :, :3], kernel[:, :, 3:])
    assert not base.loaded.loaded
    assert not base.loaded.adapted


def test_the_same_number_changes_nothing():
    network = residual()
    base = backbone(network, in_channels=3)
    assert base.network is network
    assert "in_channels" not in base.source


def test_weights_of_a_file_are_adapted(tmp_path):
    saved = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35)
    saved.save_weights(tmp_path / "mine.weights.h5")
    base = backbone(
        "mobilenetv2",
        weights=tmp_path / "mine.weights.h5",
        input_shape=(32, 32, 1),
        in_channels=1,
        alpha=0.35,
    )
    expected = value(saved.get_layer("Conv1").kernel).sum(2, keepdims=True)
    np.testing.assert_allclose(value(base.network.get_layer("Conv1").kernel), expected, rtol=1e-5)
    assert base.loaded.adapted == ("Conv1/kernel",)


def flat():
    inputs = keras.Input((4, 4, 3))
    return keras.Model(inputs, layers.Dense(2, name="d", activation="relu")(inputs), name="flat")


def constant():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(2, 1, name="conv")(inputs - np.ones(3, "float32"))
    return keras.Model(inputs, x, name="constant")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: backbone(residual(), in_channels=0), ValueError, "1 or more; given 0"),
        (lambda: backbone(residual(), in_channels="4"), ValueError, "1 or more; given '4'"),
        (lambda: backbone(residual(), in_channels=True), ValueError, "1 or more; given True"),
        (lambda: backbone(chain(), in_channels=1), ValueError, "one batch of images"),
        (lambda: backbone(flat(), in_channels=1), ValueError, "'d' .Dense. reads the 3 channels"),
        (lambda: backbone(constant(), in_channels=1), ValueError, "constants for each channel"),
        (lambda: backbone(constant(), in_channels=4), ValueError, "does not take"),
        (
            lambda: backbone("resnet50", input_shape=(64, 64, 1)),
            WeightsError,
            r"for 3 channels and input_shape=\(64, 64, 1\) has 1: pass in_channels=1",
        ),
        (
            lambda: backbone("letters_resnet", input_shape=(16, 16, 4)),
            WeightsError,
            "pass in_channels=4 to adapt them, or weights=None",
        ),
        (
            lambda: backbone("resnet50", input_shape=(64, 64, 3), in_channels=1),
            ValueError,
            r"in_channels=1 and input_shape=\(64, 64, 3\) do not agree",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(make, error, message):
    with pytest.raises(error, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
