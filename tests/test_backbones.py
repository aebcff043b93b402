"""Every source becomes the same record, fed with raw images, right by construction."""

import functools
import socket

import h5py
import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, residual, same, slow_marks, snapshot

import finetune_keras as ftk
from finetune_keras import SelectionError, WeightsError, backbone, build, heads, select
from finetune_keras.backbones import applications, files

# One small member of each family; `-m slow` takes all.
FAMILIES = {
    "convnexttiny": 64,
    "densenet121": 64,
    "efficientnetb0": 64,
    "efficientnetv2b0": 64,
    "inceptionresnetv2": 75,
    "inceptionv3": 75,
    "mobilenet": 64,
    "mobilenetv2": 64,
    "mobilenetv3small": 64,
    "nasnetmobile": 64,
    "resnet50": 64,
    "resnet50v2": 64,
    "vgg16": 64,
    "vgg19": 64,
    "xception": 71,
}
ALL = [
    pytest.param(name, FAMILIES.get(name, 75), marks=slow_marks(name, FAMILIES))
    for name in applications.names()
]


def raw(size, n=2):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype("float32")


@pytest.mark.parametrize(("name", "size"), ALL)
def test_each_family_equals_its_own_preprocessing_and_the_bare_network(name, size):
    if "nasnet" in name and keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="not available with the torch backend"):
            backbone(name, weights=None, input_shape=(size, size, 3))
        return
    base = backbone(name, weights=None, input_shape=(size, size, 3))
    x = raw(size)
    expected = base.network(applications._module(name).preprocess_input(x.copy()), training=False)
    found = base.model(x, training=False)
    scale = max(1.0, float(np.abs(keras.ops.convert_to_numpy(expected)).max()))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(found) / scale,
        keras.ops.convert_to_numpy(expected) / scale,
        atol=1e-4,
    )
    # A NASNet cell reads the two cells before it, so its graph meets in one tensor only twice.
    assert len(base.blocks) > (1 if "nasnet" in name else 3)
    strides = [int(s[1:]) for s in base.taps]
    assert strides == sorted(strides)
    assert strides[-1] == 32


def test_every_architecture_of_keras_is_known():
    have = {n.lower() for n in dir(keras.applications) if n[0].isupper()}
    assert set(applications.names()) == have
    assert set(FAMILIES) <= have
    modules = {applications._module(name).__name__ for name in have}
    assert {applications._module(name).__name__ for name in FAMILIES} == modules


def test_preprocessing_none_adds_nothing():
    base = backbone("resnet50", weights=None, input_shape=(64, 64, 3), preprocessing=None)
    x = raw(64)
    ready = keras.applications.resnet50.preprocess_input(x.copy())
    same(base.model(ready), base.network(ready), atol=1e-5)
    assert base.preprocessing == ()


def test_preprocessing_stays_float32_under_mixed_precision():
    with_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        base = backbone("mobilenetv2", weights=None, input_shape=(32, 32, 3), alpha=0.35)
    finally:
        keras.config.set_dtype_policy(with_policy)
    inputs = keras.Input((32, 32, 3))
    assert base.preprocessing[0](inputs).dtype == "float32"


def test_the_users_own_layer_or_another_familys_preprocessing():
    own = residual()
    x, _ = images()
    layer = keras.layers.Rescaling(1 / 255)
    same(backbone(own, preprocessing=layer).model(x), own(x / 255), atol=1e-5)
    same(backbone(own, preprocessing="mobilenetv2").model(x), own(x / 127.5 - 1), atol=1e-5)


def test_a_layer_before_the_networks_own_preprocessing():
    enlarge = keras.layers.Resizing(48, 48)
    kept = backbone("resnet50", weights=None)
    base = backbone(kept, preprocessing=[enlarge, "auto"])
    x, _ = images()
    wanted = kept.model(enlarge(x), training=False)
    assert x.shape[1] < 48
    same(base.model(x, training=False), wanted, atol=1e-5)
    named = backbone(kept.network, preprocessing=[enlarge, "resnet50"])
    same(named.model(x, training=False), wanted, atol=1e-5)


def test_any_input_shape_and_other_channel_counts():
    base = backbone("mobilenetv2", weights=None, alpha=0.35)
    assert base.model.input_shape == (None, None, None, 3)
    assert set(base.taps) == {"S2", "S4", "S8", "S16", "S32"}
    assert backbone("mobilenetv2", weights=None, input_shape=(64, 96, 3), alpha=0.35).model(
        np.zeros((1, 64, 96, 3), "float32")
    ).shape == (1, 2, 3, 1280)
    grey = backbone("mobilenetv2", weights=None, input_shape=(64, 64, 1), alpha=0.35)
    x = raw(64)[..., :1]
    same(grey.model(x), grey.network(x / 127.5 - 1), atol=1e-5)
    with pytest.raises(ValueError, match="defined for 3 channels and its input has 1"):
        backbone("resnet50", weights=None, input_shape=(64, 64, 1))


def test_taps_feed_a_model_of_their_own():
    base = backbone("mobilenetv2", weights=None, input_shape=(64, 64, 3), alpha=0.35)
    pyramid = keras.Model(base.model.inputs, base.taps)
    shapes = {k: tuple(v.shape) for k, v in pyramid(raw(64)).items()}
    assert shapes["S4"][1:3] == (16, 16)
    assert shapes["S32"][1:3] == (2, 2)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_weights_from_a_file_are_the_weights_of_the_file(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    source = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35
    )
    source.set_weights([w + 0.01 for w in source.get_weights()])
    (source.save_weights if suffix == ".weights.h5" else source.save)(path)
    base = backbone("mobilenetv2", weights=path, input_shape=(64, 64, 3), alpha=0.35)
    for mine, its in zip(base.network.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert "mine" in base.source


@pytest.mark.parametrize("name", ["mine.weights.h5", "mine.h5", "mine.keras"])
def test_weights_that_are_not_finite_are_refused(tmp_path, name):
    path = tmp_path / name
    model = residual()
    model.get_layer("block1_bn").moving_variance.assign([1.0, np.inf, np.nan, *[1.0] * 5])
    (model.save_weights if "weights" in name else model.save)(path)
    load = functools.partial(files.load_into, residual("other"), name="other")
    with pytest.raises(WeightsError) as raised:
        (load if "weights" in name else backbone)(path)
    said = str(raised.value)
    assert f"{str(path)!r} has 2 values that are not finite in" in said
    assert "block1_bn/moving_variance'" in said


def test_the_state_of_random_layers_is_no_weight(tmp_path):
    path = tmp_path / "mine.weights.h5"
    source = backbone("letters_resnet", weights=None).network
    source.save_weights(path)
    with h5py.File(path, "a") as file:
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, "uint32")
        file["optimizer/vars/0"] = np.zeros(2, "float32")
    found = backbone("letters_resnet", weights=path).network
    for mine, its in zip(found.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)
    with h5py.File(path, "a") as file:
        file["layers/dense/vars/0"] = np.zeros(2, "float32")
    with pytest.raises(WeightsError, match="holds 46 weight arrays and 'letters_resnet' has 45"):
        backbone("letters_resnet", weights=path)


def test_efficientnet_weights_from_a_file_compute_what_imagenet_computes(tmp_path, monkeypatch):
    """Keras adds one more scaling only where it fetched the weights itself."""
    source = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    norm = next(x for x in source.layers if isinstance(x, keras.layers.Normalization))
    statistics = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0]
    norm.set_weights([np.asarray(s) for s in statistics])
    norm.finalize_state()
    path = tmp_path / "b0.weights.h5"
    source.save_weights(path)
    inputs = keras.Input((64, 64, 3))
    extra = keras.layers.Rescaling([1 / np.sqrt(s) for s in (0.229, 0.224, 0.225)])

    def call(op, *args, **kwargs):
        out = op(*args, **kwargs)
        return extra(out) if op is norm else out

    reference = keras.models.clone_model(
        source, input_tensors=inputs, clone_function=lambda op: op, call_function=call
    )
    base = backbone("efficientnetb0", weights=path, input_shape=(64, 64, 3))
    x = raw(64)
    expected = keras.ops.convert_to_numpy(reference(x, training=False))
    found = keras.ops.convert_to_numpy(base.model(x, training=False))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)
    bare = keras.ops.convert_to_numpy(source(x, training=False))
    assert np.abs(bare - expected).max() / scale > 1e-2


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_file_loses_its_classifier(tmp_path, suffix):
    path = tmp_path / f"theirs{suffix}"
    theirs = classifier()
    theirs.compile("adam", "sparse_categorical_crossentropy")
    theirs.save(path)
    base = backbone(path)
    assert base.dropped == ("classes",)
    assert base.network.output_shape == (None, 8)
    x, _ = images()
    expected = keras.Model(theirs.inputs, theirs.get_layer("pooled").output)(x)
    same(base.model(x), expected, atol=1e-5)


def test_a_model_of_the_users_own_shares_its_variables():
    own = classifier()
    base = backbone(own)
    model = ftk.build(base, heads.Classification(2), learning_rate=1e-2)
    before = snapshot(own)
    model.fit(*images(classes=2), verbose=0)
    after = snapshot(own)
    assert not np.array_equal(before["inner/stem_conv/kernel"], after["inner/stem_conv/kernel"])
    np.testing.assert_array_equal(before["classes/kernel"], after["classes/kernel"])


def test_copy_has_variables_and_flags_of_its_own():
    base = backbone(residual())
    other = base.copy()
    x, y = images()
    same(base.model(x), other.model(x), atol=1e-6)
    before = snapshot(base.network)
    ftk.build(other, heads.Classification(3), learning_rate=1e-2).fit(x, y, verbose=0)
    after = snapshot(base.network)
    assert all(np.array_equal(before[k], after[k]) for k in before)
    ftk.freeze(other.network, select.everything())
    assert base.network.trainable_variables


def test_a_copy_normalises_with_the_statistics_it_was_given():
    inputs = keras.Input((4,))
    norm = keras.layers.Normalization(name="norm")
    own = keras.Model(inputs, keras.layers.Dense(2, activation="relu")(norm(inputs)))
    norm.adapt(np.random.default_rng(0).normal(5, 3, (50, 4)))
    x = np.random.default_rng(1).normal(5, 3, (6, 4)).astype("float32")
    same(backbone(own).copy().model(x), own(x), atol=1e-6)


def test_what_counts_as_a_classifier():
    layers = keras.layers
    inputs = keras.Input((6,))
    x = layers.Dense(5, activation="relu", name="features")(inputs)
    features = keras.Model(inputs, x)
    assert backbone(features).dropped == ()
    logits = layers.Dense(2, name="logits")(x)
    assert backbone(keras.Model(inputs, logits)).dropped == ("logits",)
    soft = layers.Softmax(name="soft")(logits)
    assert backbone(keras.Model(inputs, soft)).dropped == ("logits", "soft")
    kept = backbone(keras.Model(inputs, logits), cut_at="logits")
    assert kept.dropped == ()
    assert kept.network.output_shape == (None, 2)


def test_a_classifier_inside_a_nested_model_is_dropped():
    top = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(5, activation="relu", name="hidden"),
            keras.layers.Dense(2, activation="softmax", name="classes"),
        ],
        name="top",
    )
    body = keras.Sequential(
        [residual("inner"), keras.layers.GlobalAveragePooling2D(name="gap")], name="body"
    )
    whole = keras.Sequential([keras.Input((16, 16, 3)), body, top], name="whole")
    base = backbone(whole)
    assert base.dropped == ("classes",)
    assert base.network.output_shape == (None, 5)
    x, _ = images()
    hidden = keras.Model(top.inputs, top.get_layer("hidden").output)
    same(base.model(x), hidden(body(x)), atol=1e-5)


def test_the_text_of_a_backbone_is_short():
    model = build(residual(), heads.Classification(3), freeze=select.backbone())
    assert "ftk_head_record" not in repr(backbone(model))
    assert repr(backbone(model, cut_at="stem_relu")).count("block") < 6


def test_cut_at_suggests_the_keys_of_the_output_and_says_what_is_ambiguous():
    x = inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="dense")(x)
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="twin")], name="a")
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="twin")], name="b")
    network = keras.Model(inputs, {"sequence_output": other(inner(x))})
    with pytest.raises(SelectionError, match="did you mean 'sequence_output'"):
        backbone(network, cut_at="sequence_outputs")
    with pytest.raises(SelectionError, match="ambiguous: give one of 'a/twin', 'b/twin'"):
        backbone(network, cut_at="twin")
    assert backbone(network, cut_at="a/twin").model.output_shape == (None, 4)


def test_cut_at_a_named_layer_also_inside():
    x, _ = images()
    own = classifier()
    base = backbone(own, cut_at="block1_out")
    assert base.network.output_shape == (None, 16, 16, 8)
    inner = own.get_layer("inner")
    expected = keras.Model(inner.inputs, inner.get_layer("block1_out").output)(x)
    same(base.model(x), expected, atol=1e-5)
    named = backbone("resnet50", weights=None, input_shape=(64, 64, 3), cut_at="conv3_block4_out")
    assert named.model.output_shape == (None, 8, 8, 512)
    assert len(named.blocks) == 8


def test_a_model_built_here_gives_its_backbone_back():
    model = ftk.build(residual(), heads.Classification(3, hidden=[4]))
    again = backbone(model)
    assert all(name.startswith("ftk_head_") for name in again.dropped)
    other = ftk.build(again, heads.Classification(5))
    assert other.output_shape == (None, 5)


def test_the_embedded_network_needs_no_network():
    base = backbone("letters_resnet", input_shape=(24, 24, 3))
    random = backbone("letters_resnet", weights=None, input_shape=(24, 24, 3))
    assert len(base.blocks) >= 4
    assert not np.allclose(base.network.get_weights()[0], random.network.get_weights()[0])
    x = raw(24)
    same(base.model(x), base.network(x / 127.5 - 1), atol=1e-4)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refused(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))


def test_imagenet_without_network_names_the_file_and_the_argument(offline):
    with pytest.raises(WeightsError) as raised:
        backbone("resnet50", input_shape=(64, 64, 3))
    message = str(raised.value)
    assert "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5" in message
    assert "models" in message
    assert "weights=<path of that file>" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda d: backbone("resnet5"),
            ValueError,
            "unknown backbone 'resnet5'; did you mean 'resnet50'",
        ),
        (lambda d: backbone("ResNet-5000"), ValueError, "did you mean 'resnet"),
        (lambda d: backbone(7), TypeError, "given int"),
        (lambda d: backbone("vgg16", weights="imagnet"), WeightsError, "unknown weights='imagnet'"),
        (
            lambda d: backbone("vgg16", weights=None, input_shape=(64, 64)),
            ValueError,
            r"\(224, 224, 3\)",
        ),
        (
            lambda d: backbone("vgg16", weights=None, input_shape=(8, 8, 3)),
            ValueError,
            "at least 32x32",
        ),
        (lambda d: backbone("vgg16", weights=None, alpha=1), TypeError, "takes no alpha="),
        (
            lambda d: backbone("letters_resnet", weights="imagenet"),
            WeightsError,
            "there are 'letters'",
        ),
        (
            lambda d: backbone(residual(), weights="imagenet"),
            TypeError,
            "weights=.*name of an architecture",
        ),
        (
            lambda d: backbone(residual(), cut_at="block1_ou"),
            SelectionError,
            "did you mean 'block1_out'",
        ),
        (lambda d: backbone(d / "none.keras"), WeightsError, "no file"),
        (lambda d: backbone(d), WeightsError, "the folder .* has .*; or name the file, as"),
        (
            lambda d: backbone(d / "mine.weights.h5"),
            WeightsError,
            r"weights only.*backbone\('resnet50', weights=",
        ),
        (lambda d: backbone(d / "torn.keras"), WeightsError, "neither a .keras archive nor"),
        (lambda d: backbone(d / "mine.kears"), WeightsError, "no file"),
        (lambda d: backbone(d / "min.keras"), WeightsError, "did you mean 'mine.keras'"),
        (
            lambda d: backbone("vgg16", weights=d / "mine.weights.h5", input_shape=(32, 32, 3)),
            WeightsError,
            "for another architecture: it holds .* 'vgg16' has",
        ),
        (
            lambda d: backbone("mobilenetv2", weights=d / "wide.weights.h5", alpha=0.35),
            WeightsError,
            r"shape \(.*\) in the file, where the network has \(.*check alpha=",
        ),
        (lambda d: backbone("vgg16", weights=5), WeightsError, "given 5"),
        (lambda d: backbone("vgg16", weights=None, input_shape=("a", 64, 3)), ValueError, "'a'"),
        (lambda d: backbone("letters_resnet", input_shape=()), ValueError, r"given \(\)"),
        (lambda d: backbone(residual(), cut_at=5), SelectionError, "given 5"),
        (lambda d: backbone(d / "torn.h5"), WeightsError, "neither a .keras archive nor"),
        (lambda d: backbone(residual(), preprocessing=3), TypeError, "given 3"),
        (
            lambda d: backbone(residual(), preprocessing=["auto", None]),
            TypeError,
            "a list of these; given None",
        ),
        (
            lambda d: backbone(residual(), preprocessing="resnet"),
            ValueError,
            "did you mean 'resnet",
        ),
    ],
)
def test_bad_input_names_the_fix(tmp_path, call, error, message):
    residual().save_weights(tmp_path / "mine.weights.h5")
    residual().save(tmp_path / "mine.keras")
    keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.5).save_weights(
        tmp_path / "wide.weights.h5"
    )
    (tmp_path / "torn.keras").write_bytes((tmp_path / "mine.keras").read_bytes()[:1000])
    residual().save(tmp_path / "whole.h5")
    (tmp_path / "torn.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:3000])
    with pytest.raises(error, match=message) as raised:
        call(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "a name, a path or a handle; given ''"),
        (" ", "given ' '"),
        ("hf://", "names no model; expected one such as 'hf://google-bert/bert-base-uncased'"),
        ("kaggle://", "expected one such as 'kaggle://keras/bert/"),
        ("hf:/org/name", "expected one such as 'hf://google-bert/"),
        ("https://", "expected one such as 'https://tfhub.dev/"),
        ("s3://bucket/name", "unknown handle 's3://bucket/name': there are hf://, kaggle://"),
        ("HF://org/name", "unknown handle 'HF://org/name': there are hf://"),
        ("tfhub.dev/google/x", r"\(at TF Hub or Kaggle\? 'https://tfhub.dev/google/x'\)"),
    ],
)
def test_handles_that_are_none(source, message):
    with pytest.raises(ValueError, match=message) as raised:
        backbone(source)
    assert "\n" not in str(raised.value)


def test_a_folder_with_several_files_names_them(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"backbone\('resnet50', weights='.*a\.pth'\)"):
        backbone(tmp_path)
    for name in ("a.keras", "b.keras"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"name the file, as '.*a\.keras' or '.*b\.keras'$"):
        backbone(tmp_path)


def fixed(stateful=False):
    x = inputs = keras.Input(batch_shape=(2, 5, 4))
    x = keras.layers.GRU(3, stateful=stateful)(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def test_a_file_for_one_size_of_batch_takes_any(tmp_path):
    path = tmp_path / "fixed.keras"
    model = fixed()
    model.save(path)
    base = backbone(path)
    assert base.model.input_shape == (None, 5, 4)
    x = np.random.default_rng(0).normal(size=(6, 5, 4)).astype("float32")
    gru = keras.Model(model.inputs, model.layers[1].output)
    expected = np.concatenate([keras.ops.convert_to_numpy(gru(x[i : i + 2])) for i in (0, 2, 4)])
    same(base.model(x), expected, atol=1e-5)
    built = build(base, heads.Classification(2), freeze=select.backbone())
    ftk.fit(built, x, np.arange(6) % 2, batch_size=3, verbose=0)
    fixed(stateful=True).save(path)
    kept = backbone(path)
    assert kept.model.input_shape == (2, 5, 4)
    built = build(kept, heads.Classification(2), freeze=select.backbone())
    with pytest.raises(ValueError, match=r"takes \(2, 5, 4\): .*give batches of 2"):
        ftk.fit(built, x, np.arange(6) % 2, batch_size=3, verbose=0)


def test_a_subclassed_model_says_how_to_hand_it_in():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.d = keras.layers.Dense(4, activation="relu", name="d")

        def call(self, x):
            return self.d(x)

    own = Own()
    own(np.zeros((1, 6), "float32"))
    with pytest.raises(ValueError, match=r"Wrap it: keras.Model\(inputs, model\(inputs\)\)"):
        backbone(own)
    inputs = keras.Input((6,))
    model = ftk.build(keras.Model(inputs, own(inputs)), heads.Classification(2))
    assert model.output_shape == (None, 2)


def test_copy_keeps_flags_of_single_variables_and_needs_no_compile():
    def odd_loss(y, p):
        return keras.ops.mean((y - p) ** 2, axis=-1)

    own = residual()
    own.compile("adam", odd_loss)
    base = backbone(own)
    ftk.freeze(own, select.biases())
    copied = base.copy()
    assert len(copied.network.trainable_variables) == len(own.trainable_variables)
    assert not copied.network.compiled


def test_an_embedding_that_is_normalised_is_no_classifier():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, name="embedding")(inputs)
    own = keras.Model(inputs, keras.layers.UnitNormalization()(x))
    assert backbone(own).dropped == ()


def test_cut_at_a_layer_that_is_called_twice_takes_the_last():
    shared = keras.layers.Dense(6, name="shared")
    inputs = keras.Input((6,))
    own = keras.Model(inputs, keras.layers.ReLU()(shared(shared(inputs))))
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    same(backbone(own, cut_at="shared").model(x), shared(shared(x)), atol=1e-6)


def test_unsafe_files_stay_refused(tmp_path):
    inputs = keras.Input((4,))
    own = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs))
    own.save(tmp_path / "lambda.keras")
    with pytest.raises(WeightsError, match="unsafe|safe_mode"):
        backbone(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match="unsafe|safe_mode"):
        ftk.load(tmp_path / "lambda.keras")


def test_a_sequential_backbone():
    base = backbone(chain())
    assert base.dropped == ("c",)
    assert base.network.output_shape == (None, 8)
    assert [x.name for x in base.network.layers] == ["a", "b"]  # counted as in the model given
    model = ftk.build(base, heads.Classification(3), freeze=select.first(1))
    assert [v.path.split("/")[-2] for v in model.trainable_variables][::2] == [
        "b",
        "ftk_head_output",
    ]


def test_weights_with_a_classifier_name_the_way_to_use_them(tmp_path):
    path = tmp_path / "top.weights.h5"
    keras.applications.VGG16(weights=None, classes=5, input_shape=(32, 32, 3)).save_weights(path)
    with pytest.raises(WeightsError, match="another architecture"):
        backbone("vgg16", weights=path)
    whole = keras.applications.MobileNet(weights=None, classes=5, alpha=0.25)
    whole.save_weights(path)
    with pytest.raises(WeightsError, match=r"backbone\(keras.applications.MobileNet\(weights="):
        backbone("mobilenet", weights=path, alpha=0.25)
    base = backbone(whole, preprocessing="mobilenet")
    assert base.network.output_shape[-1] == 256
    assert "conv_preds" in base.dropped


@pytest.mark.parametrize("name", ["DenseNet", "EfficientNet", "VGG"])
def test_networks_that_keep_a_dtype_from_their_layers_are_made_by_layer(name):
    import zoo

    base = backbone(zoo.KERAS_HUB[name]())
    half = backbone(base, dtype="mixed_bfloat16")
    assert half.network.outputs[0].dtype == "bfloat16"
    assert base.network.outputs[0].dtype == "float32"
    assert {x.dtype_policy.name for x in half.network.layers if x.weights} == {"mixed_bfloat16"}
    mine, theirs = half.network.get_weights(), base.network.get_weights()
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["BERT", "ALBERT"])
def test_a_network_cut_at_one_of_its_outputs_takes_a_dtype(name):
    import zoo

    base = backbone(zoo.KERAS_HUB[name](), cut_at="sequence_output", dtype="mixed_bfloat16")
    assert base.network.outputs[0].dtype == "bfloat16"


def test_other_channels_are_refused_in_one_line_where_a_layer_has_no_config():
    import zoo

    with pytest.raises(ValueError, match=r"'patch_embedding' .* cannot be adapted") as raised:
        backbone(zoo.KERAS_HUB["Swin"](), in_channels=1)
    assert "\n" not in str(raised.value)
