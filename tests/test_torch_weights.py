"""Weights of PyTorch: the same features from the same pixels, every tensor used or named."""

import os
import pickle
import re
import shutil
import sys
import warnings

import keras
import numpy as np
import pytest
from conftest import moved, same, snapshot, value

import finetune_keras as ftk
from finetune_keras import WeightsError, heads, select
from finetune_keras.backbones.torch_weights.adapt import adapted

layers = keras.layers

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5,) * 3, (0.5,) * 3)

# What is left over of each besides counters: the classifier.
LEFT = {
    "resnet18": {"fc.weight", "fc.bias"},
    "resnet50": {"fc.weight", "fc.bias"},
    "convnext_tiny": {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"},
    "vit_tiny_patch16": {"head.weight", "head.bias"},
}
CLASSIFIER = {"classifier.1.weight", "classifier.1.bias"}


@pytest.fixture
def nets():
    """The networks in PyTorch, where it is installed."""
    pytest.importorskip("torch")
    import torch_nets

    return torch_nets


def made(nets, name):
    return nets.randomised(nets.NETWORKS[name]())


def arrays(net):
    return {k: v.numpy() for k, v in net.state_dict().items()}


def pixels(size=64, n=2):
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3)).astype("float32")


def far(found, expected):
    found = value(found)
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-2
    return np.abs(found - expected).max() / np.abs(expected).max()


def message(error, call, *args, **kwargs):
    """What an error says, which is one line."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SLOW = pytest.mark.slow
# What is left to ``make test-slow`` on JAX and PyTorch: on JAX each new shape is compiled.
HERE = pytest.mark.slow if keras.backend.backend() != "tensorflow" else ()
FAMILIES = [
    ("resnet18", 75, {}),
    ("vgg11", 64, {}),
    pytest.param("mobilenet_v2", 75, {"alpha": 0.35}, marks=HERE),
    pytest.param("vit_tiny_patch16", 64, {}, marks=HERE),
    pytest.param("resnet50", 64, {}, marks=SLOW),
    pytest.param("densenet121", 64, {}, marks=SLOW),
    pytest.param("efficientnet_b0", 75, {}, marks=SLOW),
    pytest.param("convnext_tiny", 64, {}, marks=SLOW),
]


@pytest.mark.parametrize(("name", "size", "options"), FAMILIES)
def test_features_are_those_of_torch(nets, name, size, options):
    net, x = made(nets, name), pixels(size)
    base = ftk.backbone(name, weights=net.state_dict(), **options)
    expected = nets.features(net, x, *(HALVES if "vit" in name else IMAGENET))
    assert far(base.model(x, training=False), expected) < 1e-4
    record, state = base.loaded, net.state_dict()
    left = {n for n in record.skipped if not n.endswith("num_batches_tracked")}
    assert left == LEFT.get(name, CLASSIFIER)
    assert not record.random
    assert len(record.loaded) == len(base.network.weights)
    assert set(record.skipped) <= set(state)
    fused = 4 * 12 if "vit" in name else 0  # query, key and value are one tensor there
    assert len(record.loaded) + len(record.skipped) == len(state) + fused


@pytest.fixture(scope="module")
def small():
    """A VGG-11 in PyTorch, and its features of an image."""
    pytest.importorskip("torch")
    import torch_nets

    net = made(torch_nets, "vgg11")
    return net, torch_nets.features(net, pixels(), *IMAGENET)


def test_a_file_of_torch_gives_the_same(small, tmp_path):
    import torch

    net, expected = small
    torch.save(net.state_dict(), tmp_path / "vgg11-8a719046.pth")
    base = ftk.backbone("vgg11", weights=str(tmp_path / "vgg11-8a719046.pth"))
    assert far(base.model(pixels(), training=False), expected) < 1e-4
    assert "vgg11-8a719046.pth" in base.source
    assert base.pretrained


def test_safetensors_are_read_without_torch(small, tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    net, expected = small
    path = tmp_path / "model.safetensors"
    safetensors.save_file(arrays(net), path)
    if keras.backend.backend() != "torch":
        monkeypatch.setitem(sys.modules, "torch", None)
    base = ftk.backbone("vgg11", weights=path)
    assert far(base.model(pixels(), training=False), expected) < 1e-4


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "best": 0.9},
        lambda s: (
            {f"backbone.{k}": v for k, v in s.items() if "classifier" not in k}
            | {"head.0.weight": s["classifier.1.weight"]}
        ),
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
        lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    ],
    ids=["state_dict", "model and module", "backbone and head", "lightning", "half"],
)
def test_checkpoints_as_training_scripts_save_them(small, tmp_path, wrap):
    import torch

    net, expected = small
    torch.save(wrap(net.state_dict()), tmp_path / "checkpoint.pt")
    base = ftk.backbone("vgg11", weights=tmp_path / "checkpoint.pt")
    assert far(base.model(pixels(), training=False), expected) < 1e-2  # of half precision
    left = [n for n in base.loaded.skipped if not n.endswith("num_batches_tracked")]
    assert left
    assert all("classifier" in n or "head" in n for n in left)


@SLOW
def test_statistics_move_as_those_of_torch():
    inputs = keras.Input((2, 2, 3))
    norm = layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name="norm")
    network = adapted(keras.Model(inputs, norm(inputs)))
    x = np.random.default_rng(0).normal(2.0, 3.0, (4, 2, 2, 3)).astype("float32")
    found = network(x, training=True)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    same(found, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    same(network.get_layer("norm").moving_mean, 0.1 * mean, atol=1e-5)
    same(network.get_layer("norm").moving_variance, 0.9 + 0.1 * variance, atol=1e-5)


def test_names_of_old_densenets(nets):
    net = made(nets, "densenet121")
    old = {}
    for name, array in arrays(net).items():
        inside = "denselayer" in name
        for part in ("norm1", "norm2", "conv1", "conv2") if inside else ():
            name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = array
    base = ftk.backbone("densenet121", weights=old)
    kernel = base.network.get_layer("conv3_block2_1_conv").kernel
    torch_kernel = arrays(net)["features.denseblock2.denselayer2.conv1.weight"]
    same(kernel, torch_kernel.transpose(2, 3, 1, 0), atol=0)


STAGES = [1, 2, 3, 4, 3, 3, 1]


def timm_place(place: int) -> str:
    """Of the block of MobileNetV2 that torchvision counts through: timm counts by stage."""
    block = place - 1
    for stage, n in enumerate(STAGES):
        if block < n:
            return f"blocks.{stage}.{block}"
        block -= n
    raise AssertionError


# From the names that the networks of these tests have to those of other libraries, in order.
FIRST = [(r"conv\.0\.0\.", "conv_dw."), (r"conv\.0\.1\.", "bn1."), (r"conv\.1\.", "conv_pw.")]
REST = [(r"conv\.0\.0\.", "conv_pw."), (r"conv\.0\.1\.", "bn1."), (r"conv\.1\.0\.", "conv_dw.")]
REST += [(r"conv\.1\.1\.", "bn2."), (r"conv\.2\.", "conv_pwl."), (r"conv\.3\.", "bn3.")]
OTHER_NAMES = {
    ("mobilenet_v2", "timm"): [
        (r"features\.0\.0\.", "conv_stem."),
        (r"features\.0\.1\.", "bn1."),
        (r"features\.18\.0\.", "conv_head."),
        (r"features\.18\.1\.", "bn2."),
        *((r"(features\.1\.)" + a, r"\1" + b) for a, b in [*FIRST, (r"conv\.2\.", "bn2.")]),
        *((r"(features\.\d+\.)" + a, r"\1" + b) for a, b in REST),
        (r"features\.(\d+)", lambda m: timm_place(int(m[1]))),
    ],
    ("efficientnet_b0", "timm"): [
        (r"features\.0\.0\.", "conv_stem."),
        (r"features\.0\.1\.", "bn1."),
        (r"features\.8\.0\.", "conv_head."),
        (r"features\.8\.1\.", "bn2."),
        (r"(features\.1\.0\.)block\.0\.0\.", r"\1conv_dw."),
        (r"(features\.1\.0\.)block\.0\.1\.", r"\1bn1."),
        (r"(features\.1\.0\.)block\.2\.0\.", r"\1conv_pw."),
        (r"(features\.1\.0\.)block\.2\.1\.", r"\1bn2."),
        (r"block\.0\.0\.", "conv_pw."),
        (r"block\.0\.1\.", "bn1."),
        (r"block\.1\.0\.", "conv_dw."),
        (r"block\.1\.1\.", "bn2."),
        (r"block\.3\.0\.", "conv_pwl."),
        (r"block\.3\.1\.", "bn3."),
        (r"block\.\d\.fc1", "se.conv_reduce"),
        (r"block\.\d\.fc2", "se.conv_expand"),
        (r"features\.(\d)\.", lambda m: f"blocks.{int(m[1]) - 1}."),
    ],
    ("convnext_tiny", "torchvision"): [
        (r"stem\.", "features.0."),
        (r"stages\.(\d)\.downsample", lambda m: f"features.{2 * int(m[1])}"),
        (r"stages\.(\d)\.blocks", lambda m: f"features.{2 * int(m[1]) + 1}"),
        (r"conv_dw", "block.0"),
        (r"(features\.\d\.\d)\.norm", r"\1.block.2"),
        (r"mlp\.fc1", "block.3"),
        (r"mlp\.fc2", "block.5"),
        (r"gamma", "layer_scale"),
        (r"head\.norm", "classifier.0"),
        (r"head\.fc", "classifier.2"),
    ],
    ("convnext_tiny", "its authors"): [
        (r"stem\.", "downsample_layers.0."),
        (r"stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"blocks\.", ""),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"head\.norm", "norm"),
        (r"head\.fc", "head"),
    ],
    ("vit_tiny_patch16", "torchvision"): [
        (r"patch_embed\.proj", "conv_proj"),
        (r"cls_token", "class_token"),
        (r"pos_embed", "encoder.pos_embedding"),
        (r"blocks\.", "encoder.layers.encoder_layer_"),
        (r"norm([12])", r"ln_\1"),
        (r"attn\.qkv\.", "self_attention.in_proj_"),
        (r"attn\.proj", "self_attention.out_proj"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
        (r"^norm", "encoder.ln"),
        (r"^head", "heads.head"),
    ],
}


@SLOW
@pytest.mark.parametrize(("name", "library"), OTHER_NAMES)
def test_names_of_other_libraries(nets, name, library):
    net, x = made(nets, name), pixels()
    state = {}
    for key, array in arrays(net).items():
        for pattern, new in OTHER_NAMES[name, library]:
            key = re.sub(pattern, new, key)
        shape = (-1, 1, 1) if key.endswith("layer_scale") else array.shape
        state[key] = array.reshape(shape)
    options = {"alpha": 0.35} if "mobilenet" in name else {}
    base = ftk.backbone(name, weights=state, **options)
    assert far(base.model(x, training=False), nets.features(net, x, *IMAGENET)) < 1e-4


def test_the_rate_suits_what_learns_and_it_learns(small):
    base = ftk.backbone("vgg11", weights=small[0].state_dict(), input_shape=(64, 64, 3))
    opened = ftk.build(base, heads.Classification(2))
    assert float(value(opened.optimizer.learning_rate)) == pytest.approx(1e-5)
    frozen = ftk.build(base, heads.Classification(2), freeze=select.backbone())
    assert float(value(frozen.optimizer.learning_rate)) == pytest.approx(1e-3)
    before = snapshot(frozen)
    frozen.train_on_batch(pixels(), np.array([0, 1]))
    assert moved(before, frozen) == {"ftk_head_output/kernel", "ftk_head_output/bias"}


def test_a_whole_model_is_not_unpickled(nets, tmp_path):
    import torch

    torch.save(nets.vgg11(), tmp_path / "whole.pth")
    said = message(WeightsError, ftk.backbone, "vgg11", weights=tmp_path / "whole.pth")
    assert "model.state_dict()" in said
    assert "torch_nets.Features" in said


def test_a_pickle_that_runs_code_does_not(tmp_path):
    pytest.importorskip("torch")

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"conv1.weight": Bomb()}))
    message(WeightsError, ftk.backbone, "resnet18", weights=tmp_path / "bomb.pth")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_an_archive_around_a_file_is_to_be_unpacked(tmp_path, kind):
    torch = pytest.importorskip("torch")
    (tmp_path / "in").mkdir()
    torch.save({"conv1.weight": torch.ones(3)}, tmp_path / "in" / "mine.pth")
    packed = shutil.make_archive(str(tmp_path / "mine"), kind, tmp_path / "in")
    path = tmp_path / "packed.pth"
    shutil.copy(packed, path)
    for call in (
        lambda: ftk.backbone("resnet18", weights=path),
        lambda: ftk.backbone("resnet50", weights=packed),
        lambda: ftk.backbone(packed),
    ):
        said = message(WeightsError, call)
        assert "is an archive, with" in said
        assert "unpack it" in said


def test_torchscript_is_refused_in_one_line(tmp_path):
    torch = pytest.importorskip("torch")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        said = message(WeightsError, ftk.backbone, "resnet18", weights=tmp_path / "script.pt")
    assert "is TorchScript" in said


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_torn_file_is_named(small, tmp_path, ending):
    import torch

    path = tmp_path / f"torn{ending}"
    if ending == ".pth":
        torch.save(small[0].state_dict(), path)
    else:
        pytest.importorskip("safetensors.numpy").save_file(arrays(small[0]), path)
    path.write_bytes(path.read_bytes()[:-20000])
    said = message(WeightsError, ftk.backbone, "vgg11", weights=path)
    assert f"torn{ending}" in said
    assert "whole" in said
    path.write_bytes(b"")
    assert "whole" in message(WeightsError, ftk.backbone, "vgg11", weights=path)


def test_a_missing_file_names_what_is_there(tmp_path):
    (tmp_path / "resnet18-f37072fd.pth").touch()
    said = message(WeightsError, ftk.backbone, "resnet18", weights=tmp_path / "resnet18.pth")
    assert "did you mean 'resnet18-f37072fd.pth'?" in said


def test_without_torch_the_error_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.pth").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    said = message(ImportError, ftk.backbone, "resnet18", weights=tmp_path / "a.pth")
    assert "finetune_keras[torch]" in said


def shapes(stages):
    """A state dict of a ResNet without deep blocks, of zeros."""
    state, before = {"conv1.weight": np.zeros((64, 3, 7, 7), "float32")}, 64

    def norm(name, n):
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = np.zeros(n, "float32")

    norm("bn1", 64)
    for stage, count in enumerate(stages, 1):
        width = 32 * 2**stage
        for i in range(count):
            place = f"layer{stage}.{i}"
            state[f"{place}.conv1.weight"] = np.zeros((width, before, 3, 3), "float32")
            state[f"{place}.conv2.weight"] = np.zeros((width, width, 3, 3), "float32")
            norm(f"{place}.bn1", width)
            norm(f"{place}.bn2", width)
            if before != width:
                short = np.zeros((width, before, 1, 1), "float32")
                state[f"{place}.downsample.0.weight"] = short
                norm(f"{place}.downsample.1", width)
            before = width
    return state


def test_another_architecture_is_named():
    state, places = {}, {0: (64, 3), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256)}
    for place, size in (places | {13: (512, 512), 16: (512, 512), 18: (512, 512)}).items():
        state[f"features.{place}.weight"] = np.zeros((*size, 3, 3), "float32")
        state[f"features.{place}.bias"] = np.zeros(size[0], "float32")
    said = message(WeightsError, ftk.backbone, "vgg13", weights=state)
    assert "does not fit 'vgg13' (it looks like 'vgg11'): 2 of 20 weights have their tensor" in said
    assert "the first without is 'block1_conv2/kernel': no tensor 'features.2.weight'" in said
    said = message(WeightsError, ftk.backbone, "resnet50", weights=state)
    assert "it looks like 'vgg11'" in said
    wide = state | {"features.3.weight": np.zeros((256, 64, 3, 3), "float32")}
    said = message(WeightsError, ftk.backbone, "vgg11", weights=wide)
    assert "'features.3.weight' has shape (256, 64, 3, 3), (3, 3, 64, 256) here" in said
    assert "takes (3, 3, 64, 128)" in said
    # What is deeper holds all that the other needs, and more.
    deeper = shapes((3, 4, 6, 3))
    said = message(WeightsError, ftk.backbone, "resnet18", weights=deeper)
    assert "(it looks like 'resnet34'): 80 of its tensors have no place" in said


def test_names_and_files_that_do_not_go_together(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "mystery.safetensors"
    safetensors.save_file(shapes((2, 2, 2, 2)), path)
    said = message(WeightsError, ftk.backbone, path)
    assert f"backbone('resnet18', weights={str(path)!r})" in said
    said = message(WeightsError, ftk.backbone, "resnet18")
    assert "weights=<path of a .pth" in said
    said = message(WeightsError, ftk.backbone, "xception", weights=path)
    assert "load_torch" in said
    said = message(WeightsError, ftk.backbone, "resnet18", weights=path, input_shape=(64, 64, 1))
    assert "in_channels=1" in said
    said = message(TypeError, ftk.backbone, "resnet18", weights=path, alpha=2)
    assert "takes no alpha=" in said
    said = message(ValueError, ftk.backbone, "letters_resnet", weights=path)
    assert "weights of PyTorch" in said
    said = message(ValueError, ftk.backbone, "resnet8", weights=path)
    assert "resnet18" in said
    said = message(WeightsError, ftk.backbone, "resnet18", weights={"epoch": 3, "args": "x"})
    assert "'epoch', 'args'" in said


def test_batch_normalised_vgg_is_refused_by_name():
    state = {"features.0.weight": np.zeros((64, 3, 3, 3)), "features.1.weight": np.zeros(64)}
    kernels = {f"features.{3 * i}.weight": np.zeros((8, 8, 3, 3)) for i in range(1, 8)}
    said = message(WeightsError, ftk.backbone, "vgg11", weights=state | kernels)
    assert "it looks like 'vgg11_bn', which Keras does not have" in said


def test_a_vision_transformer_has_the_size_of_its_positions(nets):
    state = nets.NETWORKS["vit_tiny_patch16"]().state_dict()
    for name in ("vit_ti_16", "vit_tiny_patch16_224"):
        said = message(WeightsError, ftk.backbone, name, weights=state, input_shape=(224, 224, 3))
    assert "64 x 64" in said
    assert "Resizing(64, 64)" in said
